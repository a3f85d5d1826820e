"""Who imports whom: two halves that never meet, and a device that never loads what only a workstation has."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("export", "runtime", "devices")
# Where a device begins; commands import the rest when they run.
ENTRIES = (
    "edgeff",
    "edgeff.cli",
    "edgeff.cli_show",
    "edgeff.cli_train",
    "edgeff.cli_device",
    "edgeff.cli_sign",
    "edgeff.cli_fsck",
)


def _modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    folders = [("edgeff", ROOT / "edgeff"), *((f"edgeff.{part}", ROOT / part) for part in PARTS)]
    found = {f"{package}.{path.stem}": path for package, folder in folders for path in sorted(folder.glob("*.py"))}
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


MODULES = _modules()


def part_of(module: str) -> str:
    """`export`, `runtime`, `devices` or `core`; for a module of somebody else's, its package."""
    package, _, rest = module.partition(".")
    part = rest.partition(".")[0]
    return package if package != "edgeff" else part if part in PARTS else "core"


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements below a node, those inside functions too; not those that only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from statements(child)


def named(statement: ast.Import | ast.ImportFrom) -> set[str]:
    """The modules that a statement loads."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names}
    package = statement.module or ""
    assert statement.level == 0, f"`{ast.unparse(statement)}` is relative"
    return {f"{package}.{alias.name}" if f"{package}.{alias.name}" in MODULES else package for alias in statement.names}


def imports(module: str) -> set[str]:
    """What a module imports, now or when one of its functions runs."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return {name for statement in statements(tree) for name in named(statement)}


IMPORTS = {module: imports(module) for module in MODULES}


def reached(*entries: str) -> dict[str, str]:
    """All that entries import, directly or through other modules of the package, each with the one that asks for it."""
    found = dict.fromkeys(entries, "")
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        for name in IMPORTS.get(module, set()) - found.keys():
            found[name] = module
            waiting.append(name)
    return found


DEVICE = reached(*ENTRIES, *(module for module in MODULES if part_of(module) in ("runtime", "devices")))


@pytest.mark.parametrize(
    ("part", "allowed"), [("export", {"core"}), ("runtime", {"core"}), ("devices", {"core"}), ("core", set())]
)
def test_a_part_imports_the_core_and_itself_and_no_other_part(part: str, allowed: set[str]) -> None:
    own = [module for module in MODULES if part_of(module) == part and not module.startswith("edgeff.cli_")]
    assert own
    crossing = {
        f"{module} imports {name}"
        for module in own
        for name in IMPORTS[module]
        if part_of(name) in {*PARTS, "core"} - {part, *allowed}
    }
    assert crossing == set()


def test_the_parts_of_the_core_that_devices_need_are_its_smallest() -> None:
    needed = {name for module in MODULES if part_of(module) == "devices" for name in IMPORTS[module]}
    assert {name for name in needed if part_of(name) == "core"} == {"edgeff.errors", "edgeff.units"}


def test_the_device_side_is_followed_into_its_commands() -> None:
    assert {"edgeff.runtime.adapt", "edgeff.inspect", "edgeff.readers", "numpy"} <= DEVICE.keys()
    assert "edgeff.model" not in DEVICE


def test_nothing_on_the_device_side_asks_for_what_only_a_workstation_has() -> None:
    others = {
        part_of(name): f"{asking} imports {name}"
        for name, asking in DEVICE.items()
        if name not in MODULES and part_of(name) not in sys.stdlib_module_names
    }
    # Where a signature is asked for, a device has `cryptography` too; it is imported then, and not before. So is
    # `flatbuffers`, which comes with onnxruntime-training, where that trains, and Pillow where images are decoded.
    assert set(others) == {"click", "numpy", "onnxruntime", "cryptography", "flatbuffers", "PIL"}, others
    assert [name for name in DEVICE if part_of(name) == "export"] == []


def test_cryptography_is_imported_by_signatures_alone() -> None:
    assert [module for module in MODULES if "cryptography" in map(part_of, IMPORTS[module])] == ["edgeff.signature"]


def test_pillow_is_imported_by_folders_of_images_alone() -> None:
    assert [module for module in MODULES if "PIL" in map(part_of, IMPORTS[module])] == ["edgeff.image_folder"]


def test_flatbuffers_is_imported_by_checkpoints_of_onnxruntime_training_alone() -> None:
    importing = [module for module in MODULES if "flatbuffers" in map(part_of, IMPORTS[module])]
    assert importing == ["edgeff.runtime.ort_checkpoint"]


def test_onnxruntime_is_imported_by_the_engine_alone_on_the_device_side() -> None:
    assert [module for module in DEVICE if "onnxruntime" in map(part_of, IMPORTS.get(module, ()))] == [
        "edgeff.runtime.engine"
    ]


FRESH = """
import sys
before = set(sys.modules)
for statement in sys.argv[1:]:
    for module in [module for module in sys.modules if module.partition(".")[0] == "edgeff"]:
        del sys.modules[module]  # so that every module is once the first to be imported
    exec(statement)
    found = {module for module in set(sys.modules) - before if getattr(sys.modules[module], "__file__", None)}
    foreign = {module.partition(".")[0] for module in found} - sys.stdlib_module_names - {"edgeff"}
    print(*foreign, *(module for module in found if module.startswith("edgeff.export")), file=sys.stderr)
"""


def loaded(*statements: str) -> set[str]:
    """Modules of other projects, and those of the export half, that a fresh process holds after some statements."""
    command = [sys.executable, "-P", "-c", FRESH, *statements]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(statements)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [
        (["edgeff", "edgeff.errors", "edgeff.units", "edgeff.table"], set()),
        (["edgeff.runtime", "edgeff.runtime.settings"], set()),
        ([module for module in MODULES if part_of(module) == "devices"], set()),
        (["edgeff.cli"], {"click"}),
        ([module for module in sorted(DEVICE) if module in MODULES], {"click", "numpy"}),
    ],
    ids=["package", "runtime", "devices", "cli", "whole device side"],
)
def test_importing_a_module_loads_no_more_than_it_needs(modules: list[str], allowed: set[str]) -> None:
    assert loaded(*(f"import {module}" for module in modules)) <= allowed


def test_the_probe_of_a_fresh_process_sees_torch_and_the_export_half() -> None:
    assert {"torch", "onnx", "numpy", "edgeff.export"} <= loaded("import edgeff.export")


def test_asking_for_help_loads_click_alone() -> None:
    assert loaded("from edgeff.cli import main; main(['--help'], standalone_mode=False)") == {"click"}
