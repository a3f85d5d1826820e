"""How many threads are worth having: physical cores, and of two kinds the fast ones."""

import os

import pytest

from edgeff.runtime.cores import fast_cores


def machine(root, capacities=(), siblings=()):
    """A `/sys/devices/system/cpu` of so many cores."""
    for cpu, capacity in enumerate(capacities):
        folder = root / f"cpu{cpu}"
        folder.mkdir(parents=True)
        (folder / "cpu_capacity").write_text(f"{capacity}\n")
    for cpu, text in enumerate(siblings):
        folder = root / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("capacities", "cores"),
    [
        ([1024] * 4, 4),  # Raspberry Pi 4
        ([414, 414, 414, 414, 1024, 1024, 1024, 1024], 4),  # RK3588: four of each
        ([250, 250, 250, 250, 775, 775, 775, 1024], 4),  # three kinds: the middle ones still keep up
    ],
)
def test_slow_cores_get_no_thread(tmp_path, capacities, cores):
    assert fast_cores(machine(tmp_path, capacities), range(len(capacities))) == cores


def test_of_two_threads_of_one_core_one_counts(tmp_path):
    root = machine(tmp_path, siblings=["0,2", "1,3", "0,2", "1,3"])
    assert fast_cores(root, range(4)) == 2
    assert fast_cores(root, [0, 2]) == 1


def test_only_cores_that_may_be_used_are_compared(tmp_path):
    root = machine(tmp_path, [400, 400, 1024, 1024])
    assert fast_cores(root, [0, 1]) == 2


def test_where_the_system_does_not_tell_every_core_counts(tmp_path):
    assert fast_cores(tmp_path, range(3)) == 3


def test_nonsense_in_a_file_counts_as_a_fast_core(tmp_path):
    root = machine(tmp_path, [1024, 1024])
    (root / "cpu1" / "cpu_capacity").write_text("fast\n")
    assert fast_cores(root, range(2)) == 2


def test_this_machine_has_at_least_one():
    assert 1 <= fast_cores() <= (os.cpu_count() or 1)
