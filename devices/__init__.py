"""Device profiles with a source for every number, and detection of the machine at hand.

>>> from edgeff.devices import default_budget_bytes, load_profile
>>> profile = load_profile("pi-zero-2w")
>>> default_budget_bytes(profile, profile.floor.value)
190000000
"""

from edgeff.devices.detect import (
    DetectedMachine,
    detect,
    fill_in,
    machine_budget_bytes,
    match_profile,
    match_reason,
    require_supported,
)
from edgeff.devices.figure import Accelerator, Figure, Provider
from edgeff.devices.profile import (
    DeviceProfile,
    default_budget_bytes,
    load_all,
    load_profile,
    profile_names,
    require_trainable,
)

__all__ = [
    "Accelerator",
    "DetectedMachine",
    "DeviceProfile",
    "Figure",
    "Provider",
    "default_budget_bytes",
    "detect",
    "fill_in",
    "load_all",
    "load_profile",
    "machine_budget_bytes",
    "match_profile",
    "match_reason",
    "profile_names",
    "require_supported",
    "require_trainable",
]
