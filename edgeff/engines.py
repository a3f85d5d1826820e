"""Names of what can run a block's update, and where an artifact keeps what only one of them can run.

`onnxruntime` runs the plain graphs, which every artifact has. `ort-training` is onnxruntime-training 1.19.2, the last
that was published: its training artifacts (training, eval and optimizer model, checkpoint) lie in a folder for each
block, beside a manifest of their own that differs from the artifact's in the graphs of the update alone.
"""

from __future__ import annotations

ONNXRUNTIME, ORT_TRAINING = "onnxruntime", "ort-training"
ENGINES = (ONNXRUNTIME, ORT_TRAINING)

# Files with operators of onnxruntime's own lie under this path and nowhere else.
TRAINING_FOLDER = f"{ORT_TRAINING}/"
# How `generate_artifacts` calls them, in the folder of a block.
TRAINING_MODEL, EVAL_MODEL, OPTIMIZER_MODEL, CHECKPOINT = (
    "training_model.onnx",
    "eval_model.onnx",
    "optimizer_model.onnx",
    "checkpoint",
)
# What a platform needs for it.
WHEELS = "x86-64 Linux, Windows and macOS, Python 3.8 to 3.12"


def engine_manifest(engine: str) -> str:
    """Path of an engine's manifest inside an artifact.

    >>> engine_manifest("ort-training")
    'engines/ort-training.json'
    """
    return f"engines/{engine}.json"
