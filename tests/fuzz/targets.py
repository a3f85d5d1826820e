"""Every reader of files that may come from anywhere."""

from __future__ import annotations

from fuzz.artifact_targets import ARTIFACT_TARGETS
from fuzz.base import Target
from fuzz.data_targets import DATA_TARGETS
from fuzz.engine_targets import ENGINE_TARGETS
from fuzz.onnx_targets import ONNX_TARGETS
from fuzz.run_targets import RUN_TARGETS

TARGETS: dict[str, Target] = {
    target.name: target for target in (*ARTIFACT_TARGETS, *ONNX_TARGETS, *ENGINE_TARGETS, *DATA_TARGETS, *RUN_TARGETS)
}
