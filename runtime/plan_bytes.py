"""What graphs, sessions and the process take, in bytes: the constants behind plans, with how they were measured."""

from __future__ import annotations

from edgeff.engines import TRAINING_FOLDER
from edgeff.manifest import GraphKind, GraphSpec
from edgeff.runtime.engine import ARENA_MARGIN

MIB = 2**20

# What a loaded graph takes: anonymous resident bytes (RssAnon) before and after loading and running once, in a fresh
# process with the allocator's thresholds set, over the graphs of five presets (8 to 414 nodes) with onnxruntime 1.19.2
# and 1.32, which agree. The line is near the upper edge of what was found: a step graph of 147 nodes took 716 kB, one
# of 392 nodes 1,618 kB, a forward graph of 14 nodes 106 kB. Weights are inputs, so that none are inside.
SESSION_BYTES = 96 * 1024
NODE_BYTES = 4608
# Each thread beyond the first, in each session: the same measurement with three threads.
THREAD_BYTES = 80 * 1024
# The same of onnxruntime-training's sessions of a block (`edgeff.runtime.ort_training`), which hold more for each node.
TRAINING_SESSION_BYTES = 256 * 1024
TRAINING_NODE_BYTES = 18 * 1024
# Whatever the model, found the same way: 1.6 to 2.5 MiB of program code that is read in when it first runs (kernels,
# numpy's, Python's; how much depends on what the system has cached), and 0.5 to 1.7 MiB of Python objects, of heap that
# cannot be returned, and of Python's table of names, which may double at any time: as much as was seen of both at once,
# with a guard, replay rows and checkpoints.
PROCESS_BYTES = 4 * MIB
# And for each block: views of its arrays, what the manifest says of it alone, a bound call; 21 KiB with 5 parameters.
BLOCK_BYTES = 28 * 1024
# Each thread beyond the first that takes micro-batches through the blocks, and its bound call of each block.
WORKER_BYTES = 512 * 1024
WORKER_BLOCK_BYTES = 8 * 1024
# Numbers of a block's tensors that `apply` updates in one run: its temporaries stay in a cache.
APPLY_NUMBERS = 64 * 1024
# What the bound call of each such piece takes.
APPLY_CALL_BYTES = 3 * 1024


def session_bytes(graph: GraphSpec, threads: int = 1) -> int:
    """Planned bytes of a loaded graph."""
    training = graph.file.startswith(TRAINING_FOLDER)
    fixed, node = (TRAINING_SESSION_BYTES, TRAINING_NODE_BYTES) if training else (SESSION_BYTES, NODE_BYTES)
    return fixed + node * graph.nodes + THREAD_BYTES * (threads - 1)


def graph_transient_bytes(graph: GraphSpec, kind: GraphKind, micro_batch: int, *, arena: bool) -> int:
    """Bytes that one run of a graph needs: those alive inside it, or the stretch in which they find room."""
    rows = APPLY_NUMBERS if kind == "apply" else micro_batch
    return graph.arena_bytes(rows) if arena else graph.transient_bytes(rows)


def beside(arena: int, filling: int, inside: int) -> int:
    """The most at once of what fills the buffers and what runs after it: an arena is there all the while."""
    return arena_cost(arena) + filling if arena else max(filling, inside)


def arena_cost(size: int) -> int:
    """Bytes of an arena of `size` bytes with its margin and its list of pieces: a pointer for every 256 bytes."""
    return (size + ARENA_MARGIN) * 33 // 32 if size else 0
