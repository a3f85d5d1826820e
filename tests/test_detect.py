"""Detection below a fake root: memory, processors, control groups, boards; and the budget that follows."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeff.devices import (
    DetectedMachine,
    DeviceProfile,
    detect,
    fill_in,
    load_all,
    load_profile,
    machine_budget_bytes,
    match_profile,
    match_reason,
    require_supported,
)
from edgeff.devices.show import detection_json, detection_text
from edgeff.errors import DeviceError

MIB = 2**20
PROFILES = load_all()
COMPUTERS = [profile for profile in PROFILES if profile.runs_python and not profile.as_found]

MEMINFO = (
    "MemTotal:        8000000 kB\nMemFree: 100 kB\nMemAvailable:    7000000 kB\nHugePages_Total: 0\nSwapTotal: 512 kB\n"
)
A72 = (
    "processor\t: {}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n"
    "CPU architecture: 8\nCPU part\t: 0xd08\n\n"
)
PI4 = {
    "proc/meminfo": MEMINFO,
    "proc/cpuinfo": "".join(A72.format(number) for number in range(4))
    + "Hardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n",
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
}
GENERIC = DetectedMachine(system="Linux", architecture="x86_64", cores=2, ram_bytes=3000 * MIB, isa=("avx2",))

Root = Callable[[dict[str, str]], Path]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Write files below a fake root."""

    def write(files: dict[str, str]) -> Path:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content.encode())
        return tmp_path

    return write


def look(root: Path, architecture: str = "aarch64", pointer_bits: int = 64) -> DetectedMachine:
    return detect(root, architecture=architecture, pointer_bits=pointer_bits)


# Memory and processors


def test_a_board_is_read_from_the_kernels_files(root: Root) -> None:
    machine = look(root(PI4))
    assert machine == DetectedMachine(
        system=machine.system,
        architecture="aarch64",
        model="Raspberry Pi 4 Model B Rev 1.4",
        compatible=("raspberrypi,4-model-b", "brcm,bcm2711"),
        cpu="Cortex-A72",
        cores=4,
        isa=("neon",),
        ram_bytes=8_192_000_000,
        mem_available_bytes=7_168_000_000,
        swap_bytes=524_288,
    )
    assert machine.available_bytes == 7_168_000_000
    assert machine.usable_bytes == 5_017_600_000


def test_without_any_file_everything_is_unknown(tmp_path: Path) -> None:
    machine = look(tmp_path / "nowhere", architecture="")
    assert machine == DetectedMachine(system=machine.system, pointer_bits=64)
    assert (machine.available_bytes, machine.usable_bytes, machine.unsupported) == (None, None, "")


def test_files_full_of_nonsense_are_unknown_too(root: Root) -> None:
    names = ("proc/meminfo", "proc/cpuinfo", "proc/self/cgroup", "sys/fs/cgroup/memory.max", "sys/fs/cgroup/cpu.max")
    machine = look(root(dict.fromkeys(names, "MemTotal: lots\n::::\n\0\n-5 kB")))
    assert (machine.ram_bytes, machine.cores, machine.limit_bytes, machine.cpu_limit) == (None, None, None, None)


def test_the_real_machine_can_be_looked_at() -> None:
    machine = detect()
    assert machine.system
    assert machine.available_bytes is None or machine.available_bytes > 0
    profile, differences = match_profile(machine, PROFILES)
    assert detection_text(machine, profile, differences)


def test_the_board_is_named_by_cpuinfo_where_there_is_no_device_tree(root: Root) -> None:
    files = {name: content for name, content in PI4.items() if "device-tree" not in name}
    assert look(root(files)).model == "Raspberry Pi 4 Model B Rev 1.4"


def test_a_mixed_processor_has_the_features_that_all_its_cores_have(root: Root) -> None:
    little = "processor : 0\nFeatures : fp asimd asimdhp asimddp\nCPU part : 0xd05\n\n"
    big = "processor : 1\nFeatures : fp asimd asimdhp asimddp sve i8mm\nCPU part : 0xd0b\n\n"
    machine = look(root({"proc/cpuinfo": little * 2 + big * 2}))
    assert (machine.cpu, machine.cores) == ("Cortex-A55 + Cortex-A76", 4)
    assert machine.isa == ("neon", "dotprod", "fp16")


def test_a_pc_is_read_from_flags_and_model_name(root: Root) -> None:
    block = "processor\t: 0\nmodel name\t: Intel(R) N100\nflags\t\t: sse2 avx2 avx_vnni\n\n"
    machine = look(root({"proc/cpuinfo": block * 4}), architecture="AMD64")
    assert (machine.architecture, machine.cpu, machine.cores) == ("x86_64", "Intel(R) N100", 4)
    assert machine.isa == ("avx2", "vnni")


# Systems without a wheel


@pytest.mark.parametrize("name", ["x86_64", "AMD64", "aarch64", "arm64"])
def test_a_64_bit_system_by_any_of_its_names_is_supported(tmp_path: Path, name: str) -> None:
    require_supported(look(tmp_path, architecture=name))


@pytest.mark.parametrize(
    ("architecture", "pointer_bits", "reason"),
    [
        ("armv7l", 32, "this system is 32-bit (armv7l): onnxruntime has no wheel for it"),
        # Raspberry Pi OS, 32-bit: a 64-bit kernel under 32-bit programs.
        ("aarch64", 32, "this system is 32-bit (aarch64): onnxruntime has no wheel for it"),
        ("armv7l", 64, "onnxruntime has no wheel for armv7l"),
        ("riscv64", 64, "onnxruntime has no wheel for riscv64"),
    ],
)
def test_a_system_without_a_wheel_is_refused(root: Root, architecture: str, pointer_bits: int, reason: str) -> None:
    machine = look(root(PI4), architecture, pointer_bits)
    assert match_profile(machine, PROFILES) == (None, [])
    assert match_reason(machine, None) == reason
    with pytest.raises(DeviceError) as caught:
        require_supported(machine)
    assert str(caught.value) == f"edgeff cannot train here: {reason}"
    assert caught.value.hint == "install a 64-bit operating system (x86_64 or aarch64)"


# Control groups

V2 = "0::/system.slice/edgeff.service\n"
GROUP = "sys/fs/cgroup/system.slice/edgeff.service"


def limits(root: Path) -> tuple[int | None, int | None]:
    machine = look(root)
    return machine.limit_bytes, machine.limit_used_bytes


def test_version_2_of_control_groups_limits_memory(root: Root) -> None:
    files = {"proc/self/cgroup": V2, f"{GROUP}/memory.max": "300\n", f"{GROUP}/memory.current": "100\n"}
    assert limits(root(files)) == (300, 100)


def test_cache_that_can_be_dropped_is_not_used_memory(root: Root) -> None:
    stat = "anon 40\ninactive_file 60\nactive_file 7\n"
    files = {"proc/self/cgroup": V2, f"{GROUP}/memory.max": "300", f"{GROUP}/memory.current": "100"}
    assert limits(root(files | {f"{GROUP}/memory.stat": stat})) == (300, 40)


def test_the_level_that_leaves_the_least_holds(root: Root) -> None:
    slice_ = "sys/fs/cgroup/system.slice"
    files = {"proc/self/cgroup": V2, f"{GROUP}/memory.max": "300", f"{GROUP}/memory.current": "100"}
    files |= {f"{slice_}/memory.max": "1000", f"{slice_}/memory.current": "950"}
    assert limits(root(files)) == (1000, 950)


def test_where_a_process_is_slowed_down_is_a_limit_too(root: Root) -> None:
    files = {"proc/self/cgroup": V2, f"{GROUP}/memory.max": "max", f"{GROUP}/memory.current": "60"}
    assert limits(root(files | {f"{GROUP}/memory.high": "128"})) == (128, 60)
    files |= {f"{GROUP}/memory.max": "100"}
    assert limits(root(files | {f"{GROUP}/memory.high": "128"})) == (100, 60)
    assert limits(root(files | {f"{GROUP}/memory.high": "max"})) == (100, 60)


def test_max_is_no_limit(root: Root) -> None:
    assert limits(root({"proc/self/cgroup": V2, f"{GROUP}/memory.max": "max\n"})) == (None, None)


def test_a_container_sees_its_own_group_at_the_mount_point(root: Root) -> None:
    files = {"sys/fs/cgroup/memory.max": "300", "sys/fs/cgroup/memory.current": "20"}
    assert limits(root({"proc/self/cgroup": "0::/docker/only/outside\n"} | files)) == (300, 20)


def test_a_path_that_leaves_the_mount_point_is_not_followed(root: Root) -> None:
    files = {"proc/self/cgroup": "0::/../../../secret\n", "secret/memory.max": "1", "sys/fs/cgroup/memory.max": "300"}
    assert limits(root(files)) == (300, 0)


def test_version_1_of_control_groups_limits_memory(root: Root) -> None:
    group = "sys/fs/cgroup/memory/docker/abc"
    files = {
        "proc/self/cgroup": "9:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/x\n",
        f"{group}/memory.limit_in_bytes": "500",
        f"{group}/memory.usage_in_bytes": "200",
        f"{group}/memory.stat": "inactive_file 1\ntotal_inactive_file 50\n",
    }
    assert limits(root(files)) == (500, 150)


def test_the_largest_number_of_version_1_is_no_limit(root: Root) -> None:
    assert limits(root({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"})) == (None, None)


def test_a_mixed_mount_is_read(root: Root) -> None:
    assert limits(root({"proc/self/cgroup": V2, "sys/fs/cgroup/unified/memory.max": "70"})) == (70, 0)


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": V2, f"{GROUP}/cpu.max": "150000 100000", "sys/fs/cgroup/cpu.max": "max 100000"}, 1.5),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 2.0),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_processor_time_is_limited(root: Root, files: dict[str, str], processors: float | None) -> None:
    assert look(root(files)).cpu_limit == processors


def test_available_memory_is_the_smaller_of_limit_and_kernel(root: Root) -> None:
    folder = root(PI4 | {"sys/fs/cgroup/memory.max": "1000", "sys/fs/cgroup/memory.current": "300"})
    assert look(folder).available_bytes == 700
    folder = root({"sys/fs/cgroup/memory.max": str(2**50)})
    assert look(folder).available_bytes == 7_168_000_000
    folder = root({"sys/fs/cgroup/memory.max": "1000", "sys/fs/cgroup/memory.current": "1300"})
    assert look(folder).available_bytes == 0


# Matching


@pytest.mark.parametrize(
    ("profile", "entry"),
    [(profile, entry) for profile in COMPUTERS for entry in profile.device_tree],
    ids=lambda value: value if isinstance(value, str) else value.id,
)
def test_a_board_is_known_by_its_name_and_its_ram(profile: DeviceProfile, entry: str) -> None:
    ram = profile.visible_ram or profile.ram
    assert ram is not None
    machine = DetectedMachine("Linux", profile.architecture, ram_bytes=ram.value * 97 // 100)
    named = replace(machine, compatible=(entry,)) if "," in entry else replace(machine, model=entry + " Rev 1.0")
    assert match_profile(named, PROFILES) == (profile, [])


def test_a_board_of_unknown_ram_counts_as_the_smallest_of_its_kind() -> None:
    profile, _ = match_profile(DetectedMachine("Linux", "aarch64", model="Raspberry Pi 5 Model B Rev 1.0"), PROFILES)
    assert profile == load_profile("pi5-2gb")


def test_a_pc_is_known_by_its_processor() -> None:
    machine = replace(GENERIC, cpu="Intel(R) N100", cores=4, ram_bytes=16_000 * MIB)
    profile, differences = match_profile(machine, PROFILES)
    assert profile == load_profile("n100-8gb")
    assert differences == ["RAM: 15.6 GiB here, 8 GiB in the profile"]


def test_an_unknown_board_is_matched_by_architecture_cores_ram_and_instruction_set() -> None:
    machine = DetectedMachine("Linux", "aarch64", model="Acme Board", cores=4, ram_bytes=3900 * MIB, isa=("neon",))
    plain, differences = match_profile(machine, PROFILES)
    assert plain is not None
    assert plain.isa == ("neon",)
    assert differences == []
    assert match_reason(machine, plain) == (
        "no profile lists this machine's name; this one has its architecture, its number of cores and about its RAM"
    )
    modern, _ = match_profile(replace(machine, isa=("neon", "dotprod", "fp16")), PROFILES)
    assert modern == load_profile("pi5-4gb")
    named, _ = match_profile(replace(machine, cpu="Cortex-A72"), PROFILES)
    assert named == load_profile("pi4-4gb")


def test_any_other_machine_is_the_as_found_profile_filled_in() -> None:
    machine = replace(GENERIC, cpu="Some CPU", mem_available_bytes=2000 * MIB)
    profile, differences = match_profile(machine, PROFILES)
    assert profile is not None
    assert profile.ram is not None
    assert profile.app_ram is not None
    assert profile.cores is not None
    assert (profile.id, profile.cpu, profile.cores.value) == ("generic-x86-2core", "Some CPU", 2)
    assert (profile.ram.value, profile.ram.text) == (3000 * MIB, "2.93 GiB")
    assert (profile.app_ram.value, profile.app_ram.basis) == (1400 * MIB, "estimate")
    assert differences == []
    assert match_reason(machine, profile) == (
        "no device of the catalogue is like this machine; the figures of the profile are those found here"
    )


def test_an_as_found_profile_never_differs_from_the_machine_it_was_filled_in_with() -> None:
    machine = replace(GENERIC, architecture="aarch64", cores=12, isa=("neon",), limit_bytes=1000 * MIB, cpu_limit=1.5)
    profile, differences = match_profile(machine, PROFILES)
    assert profile is not None
    assert (profile.id, profile.architecture, differences) == ("generic-x86-2core", "aarch64", [])


def test_only_an_as_found_profile_is_filled_in() -> None:
    assert fill_in(load_profile("pi4-4gb"), GENERIC) == load_profile("pi4-4gb")
    filled = fill_in(load_profile("generic-x86-2core"), GENERIC)
    assert filled.ram is not None
    assert filled.ram.value == 3000 * MIB


def test_an_unknown_machine_leaves_the_as_found_profile_empty() -> None:
    profile, differences = match_profile(DetectedMachine("Darwin", "aarch64"), PROFILES)
    assert profile is not None
    assert (profile.id, profile.ram, profile.app_ram) == ("generic-x86-2core", None, None)
    assert (profile.architecture, differences) == ("aarch64", [])


def test_nothing_fits_an_empty_catalogue() -> None:
    assert match_profile(GENERIC, []) == (None, [])
    assert match_reason(GENERIC, None) == "no profile fits this machine"


def test_phones_and_microcontrollers_are_never_matched() -> None:
    phone = load_profile("pixel-9")
    machine = DetectedMachine("Linux", "aarch64", cores=8, ram_bytes=12 * 1024 * MIB, isa=phone.isa)
    assert match_profile(machine, [phone]) == (None, [])


def test_every_difference_is_named() -> None:
    machine = DetectedMachine(
        system="Linux",
        architecture="x86_64",
        model="Raspberry Pi 5 Model B Rev 1.0",
        cores=2,
        cpu_limit=1.5,
        isa=("neon",),
        ram_bytes=6000 * MIB,
        mem_available_bytes=1500 * MIB,
        limit_bytes=1000 * MIB,
        limit_used_bytes=500 * MIB,
    )
    profile, differences = match_profile(machine, PROFILES)
    assert profile == load_profile("pi5-8gb")
    assert differences == [
        "architecture: x86_64 here, aarch64 in the profile",
        "cores: 2 here, 4 in the profile",
        "RAM: 5.86 GiB here, 8048 MiB in the profile",
        "instruction set: the profile has dotprod, fp16, this machine does not",
        "memory limit of the control group: 1000 MiB",
        "CPU limit of the control group: 1.5 processors",
        "app RAM: 350 MiB usable here now, 6.8 GB in the profile",
    ]


# Budget on the device


def test_available_memory_or_app_ram_whichever_is_less_is_planned_with() -> None:
    pi = load_profile("pi-zero-2w")
    roomy = DetectedMachine("Linux", mem_available_bytes=400_000_000)
    assert machine_budget_bytes(pi, roomy, 60_000_000) == 190_000_000
    tight = DetectedMachine("Linux", mem_available_bytes=200_000_000)
    assert machine_budget_bytes(pi, tight, 60_000_000) == 80_000_000


def test_a_floor_that_is_already_resident_comes_off_once() -> None:
    pi = load_profile("pi-zero-2w")
    before = DetectedMachine("Linux", mem_available_bytes=200_000_000)
    after = DetectedMachine("Linux", mem_available_bytes=150_000_000)
    assert machine_budget_bytes(pi, after, 50_000_000, resident_bytes=50_000_000) == machine_budget_bytes(
        pi, before, 50_000_000
    )


def test_an_as_found_profile_plans_with_what_is_available() -> None:
    machine = replace(GENERIC, mem_available_bytes=1_000_000_000)
    profile, _ = match_profile(machine, PROFILES)
    assert profile is not None
    assert machine_budget_bytes(profile, machine, 100_000_000) == 600_000_000
    assert machine_budget_bytes(profile, machine, 100_000_000, resident_bytes=100_000_000) == 670_000_000


def test_a_floor_that_leaves_nothing_is_refused() -> None:
    machine = DetectedMachine("Linux", mem_available_bytes=100)
    with pytest.raises(DeviceError) as caught:
        machine_budget_bytes(load_profile("pi-zero-2w"), machine, 70)
    assert str(caught.value) == "the floor alone is 70 bytes, training may use 70 here"
    assert caught.value.hint == "end other programs, or give `--budget`"


def test_a_machine_that_tells_nothing_needs_a_budget() -> None:
    with pytest.raises(DeviceError, match=r"^cannot tell how much memory is available here$") as caught:
        machine_budget_bytes(load_profile("generic-x86-2core"), DetectedMachine("Darwin"), 1)
    assert caught.value.hint == "give `--budget`"


@settings(deadline=None)
@given(
    available=st.integers(0, 2**33),
    limit=st.none() | st.integers(0, 2**33),
    used=st.integers(0, 2**33),
    floor=st.integers(1, 2**27),
)
def test_a_budget_with_its_floor_never_exceeds_what_is_there(
    available: int, limit: int | None, used: int, floor: int
) -> None:
    machine = DetectedMachine("Linux", mem_available_bytes=available, limit_bytes=limit, limit_used_bytes=used)
    bounds = [available, load_profile("pi-zero-2w").app_ram.value]  # type: ignore[union-attr]
    bounds += [] if limit is None else [max(limit - used, 0)]
    try:
        total = machine_budget_bytes(load_profile("pi-zero-2w"), machine, floor) + floor
    except DeviceError:
        assert min(bounds) * 7 // 10 <= floor
    else:
        assert floor < total <= min(bounds)


# Text and JSON


def test_the_text_tells_what_was_found_and_what_differs(root: Root) -> None:
    files = PI4 | {"sys/fs/cgroup/memory.max": str(1024 * MIB), "sys/fs/cgroup/memory.current": str(24 * MIB)}
    machine = replace(look(root(files | {"sys/fs/cgroup/cpu.max": "200000 100000"})), system="Linux")
    profile, differences = match_profile(machine, PROFILES)
    assert detection_text(machine, profile, differences).splitlines() == [
        "machine             Raspberry Pi 4 Model B Rev 1.4",
        "system              Linux on aarch64, 64-bit",
        "CPU                 Cortex-A72, 4 cores",
        "instruction set     neon",
        "RAM                 7.63 GiB",
        "swap (not counted)  512 KiB",
        "memory limit        1 GiB, 24 MiB of it used",
        "CPU limit           2 processors",
        "available           1000 MiB",
        "usable (70 %)       700 MiB",
        "profile             pi4-8gb (Raspberry Pi 4 Model B 8 GB)",
        "because             the profile lists the name of this board or processor",
        "",
        "not as in the profile",
        "  memory limit of the control group: 1 GiB",
        "  CPU limit of the control group: 2 processors",
        "  app RAM: 700 MiB usable here now, 6.8 GB in the profile",
    ]


def test_the_text_of_an_unsupported_system_says_why() -> None:
    machine = DetectedMachine("Linux", "armv7l", pointer_bits=32)
    assert detection_text(machine, *match_profile(machine, PROFILES)).splitlines() == [
        "machine             unknown",
        "system              Linux on armv7l, 32-bit",
        "CPU                 unknown, unknown number of cores",
        "instruction set     unknown",
        "RAM                 unknown",
        "swap (not counted)  unknown",
        "available           unknown",
        "usable (70 %)       unknown",
        "profile             none",
        "because             this system is 32-bit (armv7l): onnxruntime has no wheel for it",
    ]


def test_the_text_of_any_other_computer_claims_no_difference_from_the_profile() -> None:
    machine = replace(GENERIC, cpu="Some CPU", mem_available_bytes=2000 * MIB)
    assert detection_text(machine, *match_profile(machine, PROFILES)).splitlines()[-3:] == [
        "usable (70 %)       1.37 GiB",
        "profile             generic-x86-2core (any other computer, as found)",
        "because             no device of the catalogue is like this machine; "
        "the figures of the profile are those found here",
    ]


def test_json_of_a_detection_has_bytes_and_reasons() -> None:
    machine = replace(GENERIC, mem_available_bytes=1000)
    document = json.loads(json.dumps(detection_json(machine, *match_profile(machine, PROFILES))))
    assert document["machine"]["available_bytes"] == 1000
    assert document["machine"]["usable_bytes"] == 700
    assert document["machine"]["isa"] == ["avx2"]
    assert (document["profile"], document["unsupported"]) == ("generic-x86-2core", "")
    assert document["differences"] == []
    assert document["reason"].startswith("no device of the catalogue is like this machine; ")
