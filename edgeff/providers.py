"""Names of onnxruntime's execution providers, as the command line takes them; `edgeff.runtime.providers` knows more."""

from __future__ import annotations

AUTO, CPU = "auto", "cpu"
# The last six are there to be refused by a message that says why: nothing can be trained on them.
TRAINING = (CPU, "cuda", "webgpu", "coreml", "openvino", "xnnpack")
REFUSED = ("qnn", "nnapi", "vsinpu", "rknpu", "vitisai", "tensorrt")
# Those in whose forms graphs can be written (`edgeff.export.targets`).
TARGETS = (CPU, "coreml", "webgpu")
NAMES = (AUTO, *TRAINING, *REFUSED)
