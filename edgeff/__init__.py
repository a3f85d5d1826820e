"""edgeff: on-device training inside a memory budget, from PyTorch to any onnxruntime."""

__version__ = "0.1.0"
