"""Measured memory, and the allocator's settings that make it agree with the plan."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeff.runtime import allocator as allocator_module
from edgeff.runtime import meter as meter_module
from edgeff.runtime.allocator import AllocatorMode, return_free_memory, set_lean_allocator
from edgeff.runtime.meter import Meter, Residency, parse_status, residency

LINUX = Path("/proc/self/status").exists()
MIB = 2**20


def probe_of(*readings):
    values = iter(readings)
    return lambda: next(values)


def test_training_bytes_are_the_peak_over_the_floor():
    meter = Meter(probe_of(Residency(100, 100, "VmHWM"), Residency(120, 150, "VmHWM")), lambda: True)
    reading = meter.read()
    assert (reading.floor_bytes, reading.resident_bytes, reading.peak_bytes) == (100, 120, 150)
    assert reading.training_bytes == 50
    assert reading.source == "VmHWM"


def test_a_peak_that_cannot_be_reset_says_so():
    meter = Meter(probe_of(Residency(100, 300, "VmHWM"), Residency(120, 300, "VmHWM")), lambda: False)
    assert meter.read().source == "VmHWM, not reset"
    assert meter.floor_bytes == 100


def test_training_bytes_are_never_below_zero():
    meter = Meter(probe_of(Residency(100, 100, "VmHWM"), Residency(60, 60, "VmHWM")), lambda: True)
    assert meter.read().training_bytes == 0


def test_program_code_that_was_read_in_since_the_floor_is_told_apart():
    probe = probe_of(Residency(100, 100, "VmHWM", 40), Residency(180, 200, "VmHWM", 70))
    reading = Meter(probe, lambda: True).read()
    assert (reading.code_bytes, reading.training_bytes) == (30, 100)


def test_code_that_the_system_took_back_is_not_less_than_none():
    probe = probe_of(Residency(100, 100, "VmHWM", 40), Residency(90, 110, "VmHWM", 10))
    assert Meter(probe, lambda: True).read().code_bytes == 0


def test_a_status_without_the_fields_is_not_read():
    with pytest.raises(KeyError):
        parse_status("Name:\tpython\n")


def test_where_there_is_no_proc_getrusage_serves(monkeypatch, tmp_path):
    monkeypatch.setattr(meter_module, "_STATUS", tmp_path / "none")
    found = residency()
    assert found.source == "getrusage"
    assert found.peak_bytes > MIB


def test_where_the_peak_cannot_be_reset_the_meter_still_measures(monkeypatch, tmp_path):
    monkeypatch.setattr(meter_module, "_CLEAR_REFS", tmp_path / "none" / "clear_refs")
    assert not meter_module.reset_peak()
    assert Meter().read().peak_bytes > 0


MEASURE = """
import json
import numpy as np
from edgeff.runtime.allocator import set_lean_allocator
from edgeff.runtime.meter import Meter
mode = set_lean_allocator()
meter = Meter()
before = meter.read()
array = np.ones(32 * 2**20, np.uint8)
during = meter.read()
del array
after = meter.read()
print(json.dumps([mode.name, mode.lean, before.training_bytes, during.training_bytes, after.training_bytes,
    during.resident_bytes - after.resident_bytes]))
"""


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_in_a_fresh_process_an_array_is_measured_while_it_lives_and_remembered_as_the_peak():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    name, lean, before, during, after, returned = json.loads(done.stdout)
    assert before < 2 * MIB
    assert 31 * MIB < during < 36 * MIB
    assert after >= during
    if lean:
        assert name == "glibc, thresholds 65536"
        assert returned > 31 * MIB


def test_settings_in_the_environment_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator_module, "_glibc", lambda: object())
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    assert set_lean_allocator() == AllocatorMode("glibc, from the environment", lean=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    assert set_lean_allocator() == AllocatorMode("glibc, from the environment", lean=True)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator_module, "_glibc", lambda: None)
    assert set_lean_allocator() == AllocatorMode("system default", lean=False)
    return_free_memory()


def test_a_library_that_refuses_is_reported_as_it_is(monkeypatch):
    class Refusing:
        def mallopt(self, option, value):
            return 0

    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator_module, "_glibc", Refusing)
    assert set_lean_allocator() == AllocatorMode("system default", lean=False)
