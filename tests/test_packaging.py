"""What reaches site-packages: one package with every source file of it, and the extras that each machine needs."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from edgeff import __version__
from edgeff.recipe import recipe_names
from edgeff.zoo_index import zoo_models

ROOT = Path(__file__).resolve().parent.parent
SUBPACKAGES = ("export", "runtime", "devices", "recipes", "zoo")
PROFILES = len(list((ROOT / "devices" / "profiles").glob("*.toml")))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built through the sdist as a release is, from a copy: a build writes into the tree it builds."""
    for module in ("build", "setuptools"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"`{module}` is not installed: the `dev` extra has it")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("edgeff", *SUBPACKAGES, "tests"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what an installation puts into site-packages: a pure wheel is unpacked and nothing else."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def metadata(installed: Path) -> Message:
    (file,) = installed.glob("*.dist-info/METADATA")
    return Parser().parsestr(file.read_text(encoding="utf-8"))


def source_files(folder: Path) -> set[Path]:
    """Files below a folder, from it on; links to folders are not followed."""
    return {
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts
    }


def test_the_links_in_the_package_lead_to_the_folders_at_the_top() -> None:
    for name in SUBPACKAGES:
        assert (ROOT / "edgeff" / name).resolve() == ROOT / name


def test_the_wheel_holds_every_source_file_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name) for name in archive.namelist() if ".dist-info/" not in name}
    core = {path for path in source_files(ROOT / "edgeff") if path.parts[0] not in SUBPACKAGES}
    expected = {Path("edgeff") / path for path in core}
    for name in SUBPACKAGES:
        expected |= {Path("edgeff") / name / path for path in source_files(ROOT / name)}
    assert names == expected
    assert {"py.typed", "__init__.py"} <= {path.name for path in names}
    assert sum(path.suffix == ".toml" for path in names) == PROFILES + len(recipe_names()) + 1  # the zoo's index
    assert {path.stem for path in names if path.suffix == ".zip"} == set(zoo_models())


def test_nothing_but_edgeff_can_be_imported_from_an_installation(installed: Path) -> None:
    assert {path.name for path in installed.iterdir()} == {"edgeff", f"edgeff-{__version__}.dist-info"}
    code = (
        "import importlib.util as u; import edgeff, edgeff.devices, edgeff.runtime.plan; "
        "print(edgeff.__file__); print(len(edgeff.devices.load_all())); "
        "print([name for name in ('export', 'runtime', 'devices', 'tests') if u.find_spec(name)])"
    )
    # The installation comes first: the development environment's own edgeff is behind it.
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd="/",
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    file, profiles, others = done.stdout.splitlines()
    assert Path(file).parent == installed / "edgeff"
    assert int(profiles) == PROFILES
    assert others == "[]"


def test_the_wheel_says_of_itself_what_the_project_and_the_package_say(installed: Path) -> None:
    told = metadata(installed)
    assert told["Name"] == "edgeff"
    assert told["Version"] == PROJECT["version"] == __version__
    assert told["Requires-Python"] == PROJECT["requires-python"]
    assert told["License-Expression"] == "Apache-2.0"
    assert set(told.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    (entries,) = installed.glob("*.dist-info/entry_points.txt")
    assert entries.read_text().split() == ["[console_scripts]", "edgeff", "=", "edgeff.cli:main"]
    assert (installed / f"edgeff-{__version__}.dist-info" / "licenses" / "LICENSE").is_file()


def required(installed: Path, extra: str = "") -> set[str]:
    """Names of the distributions that an installation with an extra brings along here."""
    from packaging.requirements import Requirement  # comes with `build`

    wanted = [Requirement(line) for line in metadata(installed).get_all("Requires-Dist", [])]
    return {one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": extra})}


def test_a_device_gets_onnxruntime_and_neither_torch_nor_onnx(installed: Path) -> None:
    device = required(installed, "device")
    assert {"numpy", "click", "onnxruntime"} <= device <= {"numpy", "click", "onnxruntime", "safetensors"}
    assert {"torch", "onnx"} <= required(installed, "workstation")
    # Not in the base: there are two onnxruntimes, and they install into one folder.
    assert not {"torch", "onnx", "onnxruntime", "onnxruntime-training-cpu"} & required(installed)
