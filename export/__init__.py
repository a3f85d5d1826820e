"""The workstation side: from a PyTorch network to an artifact (torch, onnx; never imported on a device)."""

from edgeff.export.writer import ExportSettings, check_locality, export_network

__all__ = ["ExportSettings", "check_locality", "export_network"]
