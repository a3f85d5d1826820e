"""Profiles: the catalogue, the form of a file with every complaint, budgets, text and JSON, and the document."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeff.devices import (
    DeviceProfile,
    default_budget_bytes,
    load_all,
    load_profile,
    profile_names,
    require_trainable,
)
from edgeff.devices.figure import Figure
from edgeff.devices.form import DEVICE_CLASSES, READERS
from edgeff.devices.reader import Place
from edgeff.devices.show import profile_table, profile_text, to_json
from edgeff.errors import DeviceError

DOCUMENT = (Path(__file__).parent.parent / "docs" / "devices.md").read_text(encoding="utf-8")
PROFILES = load_all()

SMALL = """
id = "small"
name = "a small board"
class = "sbc"
architecture = "aarch64"
onnxruntime_supported = true
cpu = "4x Cortex-A53"
ram = { value = "512 MiB", basis = "sourced", source = "data sheet" }
app_ram = { value = "250 MB", basis = "estimate", source = "by feel" }
providers = [{ name = "CPUExecutionProvider", training = "yes" }]
"""

ONE_PROVIDER = '[{ name = "CPUExecutionProvider", training = "yes" }]'

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the small profile with a change and return its path."""

    def change(old: str = "", new: str = "", *, name: str = "small.toml") -> str:
        assert old in SMALL
        path = tmp_path / name
        path.write_text(SMALL.replace(old, new) if old else SMALL + new, encoding="utf-8")
        return str(path)

    return change


def failure(path: str) -> tuple[str, str]:
    """Message, with the path taken out, and hint of the error that loading raises."""
    with pytest.raises(DeviceError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert "\n" not in message
    assert not message.endswith(".")
    assert caught.value.hint
    return message.replace(path, "PATH"), caught.value.hint


# The catalogue


def test_the_catalogue_has_every_device() -> None:
    assert profile_names() == (
        *("alif-e7", "alif-e8", "android-6gb", "arduino-uno-q-2gb", "arduino-uno-q-4gb", "bbai64"),
        *("browser-wasm32", "browser-wasm32-mobile", "browser-wasm64", "coral-dev-1gb", "coral-dev-4gb"),
        *("cortex-m55-generic", "esp32-s3", "generic-x86-2core", "imx8mp-evk", "ios-extension", "iphone-15"),
        *("iphone-15-pro", "iphone-16", "iphone-17-pro", "jetson-nano-4gb", "n100-8gb", "orin-nano-4gb"),
        *("orin-nano-8gb", "pi4-1gb", "pi4-2gb", "pi4-4gb", "pi4-8gb", "pi5-2gb", "pi5-4gb", "pi5-8gb", "pi5-16gb"),
        *("pi-zero-2w", "pixel-9", "pixel-9-pro", "rk3588-8gb", "stm32f746", "stm32h7p", "stm32h743"),
        *("stm32mp257-dk", "stm32n6", "ti-f29h85x"),
    )


def test_a_profile_of_the_catalogue_has_its_figures_with_their_sources() -> None:
    pi = load_profile("pi5-4gb")

    assert (pi.id, pi.name, pi.device_class, pi.architecture) == ("pi5-4gb", "Raspberry Pi 5 4 GB", "sbc", "aarch64")
    assert pi.ram == Figure(4 * 2**30, "sourced", "Raspberry Pi documentation, Raspberry Pi 5", "4 GiB")
    assert pi.app_ram is not None
    assert (pi.app_ram.value, pi.app_ram.basis) == (3_200_000_000, "estimate")
    assert pi.cores is not None
    assert (pi.cores.value, pi.cpu, pi.isa) == (4, "4x Cortex-A76 (BCM2712)", ("neon", "dotprod", "fp16"))
    assert pi.bandwidth_copy_gb_s is not None
    assert (pi.bandwidth_copy_gb_s.value, pi.bandwidth_copy_gb_s.basis) == (5.3, "measured")
    assert [(provider.short_name, provider.training) for provider in pi.providers] == [
        ("CPU", "yes"),
        ("WebGpu", "untested"),
    ]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.id)
def test_a_computer_trains_and_a_microcontroller_says_why_not(profile: DeviceProfile) -> None:
    if profile.device_class == "mcu":
        assert not profile.can_train
        assert profile.refusal.startswith(f"onnxruntime does not run on {profile.name}; runtimes that can train")
        assert (profile.app_ram, profile.floor) == (None, None)
    else:
        assert profile.can_train
        assert profile.refusal == ""
        assert profile.floor is not None


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.id)
def test_app_ram_is_less_than_the_ram_of_the_box(profile: DeviceProfile) -> None:
    if profile.as_found:
        assert (profile.ram, profile.app_ram) == (None, None)
        return
    assert profile.ram is not None
    if profile.app_ram is not None:
        assert profile.app_ram.is_estimate
        assert profile.app_ram.value < (profile.visible_ram or profile.ram).value


def test_no_processing_unit_made_for_inference_is_said_to_train() -> None:
    said = {a.name: a.training for profile in PROFILES for a in profile.accelerators}
    units = ("Edge TPU", "C7x with MMA", "NPU", "Neural Engine", "Neural-ART", "Ethos-U55", "Ethos-U55 and Ethos-U85")
    assert {said[unit] for unit in units} == {"no"}


def test_devices_import_neither_numpy_nor_an_engine() -> None:
    code = "import edgeff.devices.show, sys; print({'numpy', 'onnxruntime', 'torch', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# Finding a profile


def test_a_path_to_a_users_own_profile_works(write: Write) -> None:
    profile = load_profile(write())
    assert (profile.id, profile.floor is not None) == ("small", True)


def test_a_file_without_the_ending_works_too(write: Write) -> None:
    assert load_profile(write(name="small")).id == "small"


def test_a_name_of_the_catalogue_wins_over_a_file_of_that_name(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(write(name="pi5-8gb")).parent)
    assert load_profile("pi5-8gb").name == "Raspberry Pi 5 8 GB"


def test_an_unknown_name_lists_near_ones() -> None:
    message, hint = failure("pi5-8g")
    assert message == "there is no device profile `PATH`"
    assert hint == "did you mean `pi5-8gb` or `pi5-4gb` or `pi5-2gb`? (a path to your own `.toml` works too)"


def test_a_name_like_no_other_lists_them_all() -> None:
    _, hint = failure("zzz")
    assert hint.startswith("known: alif-e7, ")
    assert hint.endswith(", ti-f29h85x (a path to your own `.toml` works too)")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert failure(str(tmp_path / "none.toml"))[0] == "cannot read device profile `PATH`: No such file or directory"


def test_a_folder_is_no_profile(tmp_path: Path) -> None:
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    assert failure(str(folder))[0].startswith("cannot read device profile `PATH`: ")


# The form: every complaint


def test_broken_toml_names_the_line(write: Write) -> None:
    message, hint = failure(write(new="ram = = 3\n"))
    assert re.fullmatch(r"device profile `PATH` is not valid TOML: .* \(at line \d+, column \d+\)", message)
    assert hint == "mend the file there"


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    assert failure(str(tmp_path / "bytes.toml"))[0].startswith("device profile `PATH` is not valid TOML: 'utf-8' codec")


def test_an_unknown_key_is_refused_with_the_nearest(write: Write) -> None:
    message, hint = failure(write("app_ram", "app_rom"))
    assert message == "device profile `PATH` has an unknown key `app_rom`"
    assert hint.startswith("did you mean `app_ram`")


def test_an_unknown_key_of_a_figure_is_named_with_its_place(write: Write) -> None:
    message, _ = failure(write('value = "512 MiB", ', 'value = "512 MiB", unit = "B", '))
    assert message == "device profile `PATH` has an unknown key `ram.unit`"


def test_missing_ram_is_named(write: Write) -> None:
    message, hint = failure(write('ram = { value = "512 MiB", basis = "sourced", source = "data sheet" }\n'))
    assert message == "device profile `PATH` lacks `ram`"
    assert hint == 'add `ram = { value = "4 GiB", basis = "sourced", source = "..." }`'


def test_missing_app_ram_is_named_where_onnxruntime_runs(write: Write) -> None:
    message, hint = failure(write('app_ram = { value = "250 MB", basis = "estimate", source = "by feel" }\n'))
    assert message == "device profile `PATH` lacks `app_ram`"
    assert hint == "say what one training process may plan with; it is never the RAM on the box"


@pytest.mark.parametrize("key", ["id", "name", "class", "architecture", "cpu", "onnxruntime_supported"])
def test_a_missing_key_is_named(write: Write, key: str) -> None:
    line = next(line for line in SMALL.splitlines() if line.startswith(f"{key} ="))
    assert failure(write(line + "\n")) == (f"device profile `PATH` lacks `{key}`", "add the key")


@pytest.mark.parametrize("key", ["value", "basis", "source"])
def test_a_figure_needs_value_basis_and_source(write: Write, key: str) -> None:
    entries = {"value": '"512 MiB"', "basis": '"sourced"', "source": '"data sheet"'}
    whole = "{ " + ", ".join(f"{name} = {entry}" for name, entry in entries.items()) + " }"
    part = "{ " + ", ".join(f"{name} = {entry}" for name, entry in entries.items() if name != key) + " }"
    assert failure(write(whole, part))[0] == f"device profile `PATH` lacks `ram.{key}`"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('id = "small"', "id = 3", "`id` of device profile `PATH` must be text on one line, got `3`"),
        ('"a small board"', '"  "', "`name` of device profile `PATH` must be text on one line, got ``"),
        (
            '"sbc"',
            '"toaster"',
            "`class` of device profile `PATH` must be one of `sbc`, `mpu`, `pc`, `phone`, `browser`, `mcu`,"
            " got `toaster`",
        ),
        (
            "onnxruntime_supported = true",
            'onnxruntime_supported = "yes"',
            "`onnxruntime_supported` of device profile `PATH` must be `true` or `false`, got `yes`",
        ),
        (
            '{ value = "512 MiB", basis = "sourced", source = "data sheet" }',
            '"512 MiB"',
            "`ram` of device profile `PATH` must be a figure with its source, got `512 MiB`",
        ),
        ('"512 MiB"', "536870912", "`ram.value` of device profile `PATH` must be a size in quotes, got `536870912`"),
        ('"512 MiB"', '"lots"', "`ram.value` of device profile `PATH` must be a number of bytes, got `lots`"),
        ('"512 MiB"', '"-3 MB"', "`ram.value` of device profile `PATH` must be more than 0 bytes, got `-3 MB`"),
        (
            '"512 MiB"',
            '"0 B"',
            "`ram.value` of device profile `PATH` must be more than 0 bytes and fewer than an exabyte, got `0 B`",
        ),
        (
            'basis = "sourced"',
            'basis = "guess"',
            "`ram.basis` of device profile `PATH` must be one of `sourced`, `measured`, `estimate`, got `guess`",
        ),
        ('"data sheet"', '""', "`ram.source` of device profile `PATH` must be text on one line, got ``"),
        (
            'training = "yes"',
            "training = true",
            "`providers.0.training` of device profile `PATH` must be one of `yes`, `no`, `untested`, got `true`",
        ),
        (ONE_PROVIDER, "3", "`providers` of device profile `PATH` must be a list of tables, got `3`"),
        (ONE_PROVIDER, '["CPU"]', "`providers.0` of device profile `PATH` must be a table, got `CPU`"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(write: Write, old: str, new: str, complaint: str) -> None:
    assert failure(write(old, new))[0] == complaint


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("cores = { value = 4.0,", "`cores.value` of device profile `PATH` must be a whole number, got `4.0`"),
        ("cores = { value = true,", "`cores.value` of device profile `PATH` must be a whole number, got `true`"),
        (
            "cores = { value = -4,",
            "`cores.value` of device profile `PATH` must be a finite number more than 0, got `-4`",
        ),
        ('power_load_w = { value = "6",', "`power_load_w.value` of device profile `PATH` must be a number, got `6`"),
        (
            "power_load_w = { value = nan,",
            "`power_load_w.value` of device profile `PATH` must be a finite number more than 0, got `nan`",
        ),
        (
            "power_load_w = { value = inf,",
            "`power_load_w.value` of device profile `PATH` must be a finite number more than 0, got `inf`",
        ),
    ],
)
def test_a_number_of_the_wrong_kind_is_named(write: Write, line: str, complaint: str) -> None:
    assert failure(write(new=line + ' basis = "estimate", source = "x" }\n'))[0] == complaint


def test_a_list_of_texts_holds_texts(write: Write) -> None:
    with pytest.raises(DeviceError, match=r"^`notes.1` of device profile `.*` must be text on one line, got `3`$"):
        load_profile(write(new='notes = ["a", 3]\n'))
    with pytest.raises(DeviceError, match=r"^`notes` of device profile `.*` must be a list of texts, got `a`$"):
        load_profile(write(new='notes = "a"\n'))


def test_a_long_value_is_cut_in_the_message(write: Write) -> None:
    with pytest.raises(DeviceError, match=r"got `x{57}\.\.\.`$"):
        load_profile(write('"sbc"', f'"{"x" * 400}"'))


def test_the_id_is_the_name_of_the_file(write: Write) -> None:
    message, hint = failure(write('id = "small"', 'id = "tiny"'))
    assert message == "device profile `PATH` has the id `tiny`, its file is named `small`"
    assert hint == 'write `id = "small"`, or rename the file to `tiny.toml`'


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"250 MB"', '"1 GB"', "has more `app_ram` than `ram`: 1 GB > 512 MiB"),
        (
            "",
            'visible_ram = { value = "1 GB", basis = "measured", source = "x" }\n',
            "has more `visible_ram` than `ram`: 1 GB > 512 MiB",
        ),
        (
            "",
            'floor = { value = "300 MB", basis = "measured", source = "x" }\n',
            "has more `floor` than `app_ram`: 300 MB > 250 MB",
        ),
        (ONE_PROVIDER, "[]", "lists no execution provider"),
        (
            "onnxruntime_supported = true",
            "onnxruntime_supported = false",
            "lists execution providers, but onnxruntime does not run there",
        ),
    ],
)
def test_keys_that_do_not_agree_are_refused(write: Write, old: str, new: str, complaint: str) -> None:
    assert failure(write(old, new))[0] == f"device profile `PATH` {complaint}"


def outcome(reader: Callable[[object, Place], object], value: object) -> str:
    """What the reader complains of, empty if of nothing; any other exception fails the test."""
    try:
        reader(value, Place("p", "key"))
    except DeviceError as error:
        return str(error)
    return ""


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4))
@example("9" * 5000)
@example("9" * 30 + " GB")
@example(10**400)
def test_any_value_is_read_or_refused_on_one_line(value: object) -> None:
    for reader in READERS.values():
        for entry in (value, {"value": value, "basis": "estimate", "source": "x"}, [value], [{"name": value}]):
            assert "\n" not in outcome(reader, entry)


@pytest.mark.parametrize("extra", [f"cores = {'9' * 5000}\n", f"isa = {'[' * 5000}\n"])
def test_a_file_made_to_break_the_parser_is_refused(write: Write, extra: str) -> None:
    assert failure(write(new=extra))[0].startswith("device profile `PATH` is not valid TOML: ")


# What can be planned


def test_a_file_that_is_too_large_to_be_a_profile_is_refused_before_it_is_read(write: Write) -> None:
    """tomllib takes minutes for a key of so many parts."""
    assert failure(write(new=".".join("a" * 500_000) + " = 1")) == (
        "device profile `PATH` has more than 32,768 bytes",
        "those of the catalogue have 2,000",
    )


def test_the_default_budget_is_app_ram_less_floor() -> None:
    pi = load_profile("pi-zero-2w")
    assert pi.floor is not None
    assert (pi.floor.value, pi.floor.basis) == (60_000_000, "estimate")
    assert default_budget_bytes(pi, pi.floor.value) == 190_000_000
    assert default_budget_bytes(pi, 249_999_999) == 1


def test_a_profile_may_bring_its_own_floor(write: Write) -> None:
    profile = load_profile(write(new='floor = { value = "52 MB", basis = "measured", source = "VmRSS" }\n'))
    assert profile.floor == Figure(52_000_000, "measured", "VmRSS", "52 MB")


def test_phones_plan_with_the_floor_of_the_library_alone() -> None:
    extension = load_profile("ios-extension")
    assert extension.floor is not None
    assert not extension.runs_python
    assert default_budget_bytes(extension, extension.floor.value) == 10_000_000


def test_a_floor_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(DeviceError) as caught:
        default_budget_bytes(load_profile("pi-zero-2w"), 250_000_000)
    assert str(caught.value) == "the floor alone is 250000000 bytes, the app RAM of `pi-zero-2w` is 250000000"
    assert caught.value.hint == "choose a device with more RAM"


def test_a_device_without_app_ram_has_no_default_budget() -> None:
    with pytest.raises(DeviceError) as caught:
        default_budget_bytes(load_profile("stm32f746"), 0)
    assert str(caught.value).startswith(
        "device profile `stm32f746` has no app RAM to plan with: onnxruntime does not run on STM32F746"
    )
    with pytest.raises(DeviceError) as caught:
        default_budget_bytes(load_profile("generic-x86-2core"), 0)
    assert str(caught.value) == (
        "device profile `generic-x86-2core` has no app RAM to plan with: its RAM is what is found on the machine"
    )
    assert caught.value.hint == "give `--budget`, or run `edgeff devices --detect` on the device"


def test_training_is_refused_with_the_reason_and_what_else_there_is() -> None:
    require_trainable(load_profile("pi-zero-2w"))
    with pytest.raises(DeviceError) as caught:
        require_trainable(load_profile("stm32h743"))
    assert str(caught.value) == (
        "edgeff cannot train on `stm32h743`: onnxruntime does not run on STM32H743; runtimes that can train something"
        " there: AIfES, TinyEngine-style generated code, u-FF (paper)"
    )
    assert caught.value.hint == "`edgeff report` still gives its tensor bytes; choose another profile to train"


def test_a_device_whose_providers_only_infer_cannot_train(write: Write) -> None:
    profile = load_profile(write('training = "yes"', 'training = "no"'))
    assert not profile.can_train
    assert profile.refusal == "no execution provider of a small board is known to train"


def test_an_untested_provider_counts_after_the_proven_ones(write: Write) -> None:
    one = '{ name = "CPUExecutionProvider", training = "yes" }'
    profile = load_profile(write(one, f'{{ name = "WebGpuExecutionProvider", training = "untested" }}, {one}'))
    assert [provider.short_name for provider in profile.training_providers] == ["CPU", "WebGpu"]


# Text and JSON


def test_the_table_marks_estimates_and_goes_by_class() -> None:
    names = ("stm32h743", "generic-x86-2core", "browser-wasm64", "orin-nano-4gb", "coral-dev-4gb")
    assert profile_table(load_profile(name) for name in names) == (
        "id                 class    RAM       app RAM   CPU                                    trains on"
        "                          onnxruntime\n"
        "orin-nano-4gb      sbc      4 GiB     ~2.5 GB   6x Cortex-A78AE                        CUDA, CPU"
        "                          yes\n"
        "coral-dev-4gb      sbc      ~4 GiB    ~3.2 GB   4x Cortex-A53 (i.MX 8M)                CPU"
        "                                yes\n"
        "generic-x86-2core  pc       as found  as found  as found                               CPU"
        "                                yes\n"
        "browser-wasm64     browser  16 GiB    ~2 GB     any, through WebAssembly               CPU (untested), "
        "WebGpu (untested)  yes\n"
        "stm32h743          mcu      1 MiB     -         Cortex-M7 with a double-precision FPU  -"
        "                                  no"
    )


def test_the_text_has_every_figure_with_basis_and_source(write: Write) -> None:
    path = write(
        new='power_load_w = { value = 4.5, basis = "measured", source = "my meter" }\nnotes = ["Mind the cat"]\n'
        'accelerators = [{ name = "NPU", training = "no", detail = "1 TOPS", basis = "sourced", source = "box" }]\n'
    )
    floor = (
        "Python with numpy and onnxruntime: 45 to 57 MB resident measured on x86-64, rounded up; aarch64 not measured"
    )
    assert profile_text(load_profile(path)).splitlines() == [
        "small: a small board",
        "",
        "class            sbc",
        "architecture     aarch64",
        "CPU              4x Cortex-A53",
        "instruction set  -",
        "stores on        -",
        "onnxruntime      yes",
        "trains           yes, on CPU",
        "",
        "RAM          512 MiB  sourced   data sheet",
        "app RAM      250 MB   estimate  by feel",
        f"floor        60 MB    estimate  {floor}",
        "power, load  4.5 W    measured  my meter",
        "",
        "execution providers",
        "  CPUExecutionProvider: trains",
        "",
        "accelerators",
        "  NPU, 1 TOPS: does not train (sourced: box)",
        "",
        "notes",
        "  Mind the cat",
    ]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.id)
def test_the_text_of_a_profile_leaves_out_no_source(profile: DeviceProfile) -> None:
    text = profile_text(profile)
    figures = [figure for figure in vars(profile).values() if isinstance(figure, Figure)]
    for part in (*(figure.source for figure in figures), *profile.notes, *profile.sources, *profile.other_runtimes):
        assert part in text
    assert (f"no: {profile.refusal}" if profile.refusal else "yes, on ") in text


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.id)
def test_json_holds_what_the_profile_holds(profile: DeviceProfile) -> None:
    document = json.loads(json.dumps(to_json(profile)))
    assert set(document) == set(READERS) | {"can_train", "refusal"}
    assert document["class"] in DEVICE_CLASSES
    assert document["can_train"] is profile.can_train
    for key, value in document.items():
        figure = getattr(profile, key, None)
        if isinstance(figure, Figure):
            assert (value["value"], value["basis"], value["source"]) == (figure.value, figure.basis, figure.source)


def test_json_gives_units() -> None:
    document = to_json(load_profile("pi5-8gb"))
    assert document["ram"]["value"] == 8 * 2**30
    units = {key: document[key]["unit"] for key in ("ram", "cores", "clock_mhz", "bandwidth_copy_gb_s", "power_idle_w")}
    assert list(units.values()) == ["bytes", "", "MHz", "GB/s", "W"]
    assert document["storage"] is None
    assert document["providers"][0] == {"name": "CPUExecutionProvider", "training": "yes", "note": ""}


# The document


def test_the_documents_table_is_the_table() -> None:
    (table,) = re.findall(r"```text\n(.*?)\n```", DOCUMENT, re.DOTALL)
    assert table == profile_table(PROFILES)


def test_the_documents_example_loads(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "kitchen-camera.toml").write_text(example, encoding="utf-8")
    profile = load_profile(str(tmp_path / "kitchen-camera.toml"))
    assert profile.floor is not None
    assert default_budget_bytes(profile, profile.floor.value) == 328_000_000


def test_the_document_explains_every_key() -> None:
    explained = set(re.findall(r"`([a-z_0-9]+)`", "".join(re.findall(r"^\| (`.*?) \|", DOCUMENT, re.MULTILINE))))
    assert explained - {"sourced", "measured", "estimate"} == set(READERS)


def test_the_document_names_the_floor_that_profiles_plan_with() -> None:
    floors = {profile.runs_python: profile.floor.text for profile in PROFILES if profile.floor}
    assert f"a floor of {floors[True]}" in DOCUMENT
    assert f"plan with {floors[False]} for" in DOCUMENT
