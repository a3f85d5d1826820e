"""From trained weights to one plain inference model: the artifact's template, with the weights' bytes written in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from edgeff.artifact import Artifact
from edgeff.atomic import atomic_file
from edgeff.errors import RunError
from edgeff.manifest import Manifest
from edgeff.rows import Rows
from edgeff.runtime.arrays import Array
from edgeff.runtime.engine import Engine, Graph
from edgeff.runtime.network import open_network
from edgeff.runtime.predict import predict

# float32 sums in another order, on log-probabilities; relative where they are below -1.
TOLERANCE = 1e-4
_CHECK_ROWS = 32
_RESULTS = ("log_probabilities", "label")


@dataclass(frozen=True)
class FinalModel:
    """A model that was written and checked.

    Attributes:
        path: The ONNX file.
        bytes: Its size.
        largest_error: Of its log-probabilities against the network's, relative where these are below -1.
        rows: Compared.
    """

    path: Path
    bytes: int
    largest_error: float
    rows: int


def finalize(artifact: Artifact, weights: Mapping[str, Array] | None, out: Path, *, engine: Engine) -> FinalModel:
    """Write an inference model, and let it take its name only once it predicts what the network predicts.

    Args:
        artifact: Has the template.
        weights: Parameters and buffers by `<block>.<name>`; None for the artifact's own.
        out: The ONNX file to write.
        engine: Runs both sides of the comparison, on replay rows or, without, on random ones.

    Raises:
        RunError: `out` exists, cannot be written, a weight does not fit, or the predictions differ.
        EngineError: The engine refuses the model.
    """
    if os.path.lexists(out):
        raise RunError(f"`{out}` exists already", hint="remove it, or write to another place")
    network = open_network(artifact, engine, weights=weights)
    rows = check_rows(artifact)
    expected = predict(network, rows, micro_batch=_CHECK_ROWS)
    with atomic_file(out) as stream:
        stream.write(artifact.read(artifact.manifest.inference.file))
        write_weights(stream, artifact.manifest, network.weights())
        stream.flush()
        content = Path(stream.name).read_bytes()
        error = compare(engine.load(content, out.name), rows, expected, path=out)
    return FinalModel(out, len(content), error, len(rows))


def write_weights(stream: IO[bytes], manifest: Manifest, weights: Mapping[str, Array]) -> None:
    """Write each weight over its place in the template."""
    for name, offset in manifest.inference.offsets.items():
        stream.seek(offset)
        stream.write(np.ascontiguousarray(weights[name]).astype(weights[name].dtype.newbyteorder("<")).tobytes())


def check_rows(artifact: Artifact) -> Array:
    """Raw rows to compare on: the artifact's replay rows, spread over all of them; random ones where it has none."""
    replay = artifact.replay()
    if replay is not None:
        chosen = np.unique(np.linspace(0, len(replay[0]) - 1, _CHECK_ROWS).astype(np.int64))
        return replay[0][chosen]
    spec = artifact.manifest.input
    random = np.random.default_rng(0)
    shape = (_CHECK_ROWS, *spec.shape)
    if spec.dtype.startswith("float"):
        return random.standard_normal(shape).astype(spec.dtype)
    # 0 and 1 are valid whatever the numbers mean: tokens, pixels, truth values.
    return random.integers(0, 2, shape).astype(spec.dtype)


def compare(model: Graph, rows: Rows, expected: Array, *, path: Path) -> float:
    """Run the model and compare it with the network's log-probabilities (rows, classes).

    Returns:
        The largest error found.

    Raises:
        RunError: An error above the tolerance, or another label where no two are equally likely.
    """
    found = _run(model, rows, expected.shape[1])
    error = np.abs(found["log_probabilities"] - expected) / np.maximum(1.0, np.abs(expected))
    largest = float(error.max())
    at_label = np.take_along_axis(expected, found["label"][:, None], axis=1)[:, 0]
    margin = (expected.max(axis=1) - at_label) / np.maximum(1.0, np.abs(at_label))
    if not largest <= TOLERANCE or not float(margin.max()) <= 2 * TOLERANCE:
        raise RunError(
            f"`{path}` would predict otherwise than the network: log-probabilities differ by {largest:.1e}, "
            f"allowed {TOLERANCE:.0e}",
            hint="the artifact's inference template does not fit its blocks: export the model again",
        )
    return largest


def _run(model: Graph, rows: Rows, classes: int) -> dict[str, Array]:
    out: dict[str, Array] = {
        "log_probabilities": np.zeros((len(rows), classes), np.float32),
        "label": np.zeros(len(rows), np.int64),
    }
    names = sorted(port.name for port in model.outputs)
    if names != sorted(_RESULTS) or len(model.inputs) != 1:
        raise RunError(
            f"the inference template must have one input and the outputs `log_probabilities` and `label`, got {names}",
            hint="export the model again",
        )
    model.bind({model.inputs[0].name: np.ascontiguousarray(rows[:]), **out}).run()
    return out
