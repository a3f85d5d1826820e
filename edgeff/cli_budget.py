"""What a person says of budgets on the command line, read and made into a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeff.errors import BudgetError, DeviceError
from edgeff.manifest import Manifest
from edgeff.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from edgeff.runtime.control import Control
    from edgeff.runtime.plan_parts import Plan, Request

# Digits and unit; Python would not even read thousands of digits as a number.
_LONGEST_BUDGET = 40
_MOST_BYTES = 2**63 - 1


def read_block_budgets(given: tuple[str, ...]) -> dict[str, int]:
    """`NAME=BYTES` of each."""
    found = {}
    for text in given:
        name, separator, amount = text.partition("=")
        if not separator or not name:
            raise click.UsageError(f"--block-budget takes NAME=BYTES, got `{text}`")
        if name in found:
            raise click.UsageError(f"--block-budget names `{name}` twice")
        found[name] = parse_budget(amount, option=f"--block-budget {name}=")
    return found


def free_bytes(out: Path) -> int:
    """What files of features may take: half of what is free where the run is to be, its own such files left out."""
    import shutil

    folder = next(one for one in (out.absolute(), *out.absolute().parents) if one.exists())
    own = sum(path.stat().st_size for path in out.glob("features.*") if path.is_file()) if out.is_dir() else 0
    return (shutil.disk_usage(folder).free + own) // 2


def asked_over_floor(control: Control, floor_bytes: int) -> Callable[[], int | None]:
    """New budgets over the floor."""

    def ask() -> int | None:
        budget = control.budget()
        return None if budget is None else over_floor(budget, floor_bytes)

    return ask


def over_floor(total: int, floor_bytes: int) -> int:
    """What the budget of a whole process leaves to training.

    Raises:
        BudgetError: Nothing.
    """
    if total <= floor_bytes:
        raise BudgetError(
            f"the process takes {format_bytes(floor_bytes)} before it trains, the budget for all of it is "
            f"{format_bytes(total)}",
            hint="give more, or leave out `--total` where the budget is for training alone",
        )
    return total - floor_bytes


def parse_budget(text: str, option: str = "--budget ") -> int:
    """Read an option's budget.

    Raises:
        EdgeffError: It is no number of bytes.
        BudgetError: It is none, or more than any machine has.
    """
    hint = f"write for example `{option}32MiB`"
    budget = parse_bytes(text) if len(text) <= _LONGEST_BUDGET else _MOST_BYTES + 1
    if budget < 1:
        raise BudgetError("a budget of 0 bytes holds nothing", hint=hint)
    if budget > _MOST_BYTES:
        raise BudgetError(f"a budget of `{text[:_LONGEST_BUDGET]}` is more than any machine has", hint=hint)
    return budget


def plan_run(manifest: Manifest, request: Request, floor_bytes: int, *, allow_freezing: bool) -> Plan:
    """The plan of a run; `floor_bytes` of the process are in the user's budget too, 0 without `--total`.

    Raises:
        BudgetError: Nothing fits.
    """
    from edgeff.runtime.freezing import plan_freezing
    from edgeff.runtime.plan import plan, smallest_budget

    try:
        return plan_freezing(manifest, request) if allow_freezing else plan(manifest, request)
    except BudgetError as error:
        needed, budget = smallest_budget(manifest, request), request.budget_bytes
        if not floor_bytes or budget is None or needed <= budget:
            raise
        # The floor differs from run to run: a MiB more, so that the advice holds.
        hint = f"give it `--budget {-(-(needed + floor_bytes) // 2**20) + 1}MiB --total`"
        raise BudgetError(f"beside {format_bytes(floor_bytes)} of the process itself {error}", hint=hint) from error


@contextmanager
def hints_for_total(floor_bytes: int) -> Iterator[None]:
    """Let what a run says of budgets serve where they are given for the whole process; the floor is 0 elsewhere."""
    try:
        yield
    except BudgetError as error:
        if not floor_bytes:
            raise
        more = f"these bytes stand over the floor: with `--total` {format_bytes(floor_bytes)} come on top"
        raise BudgetError(str(error), hint=f"{error.hint}; {more}" if error.hint else more) from error


def profile_providers(device_name: str | None) -> list[tuple[str, str]]:
    """Onnxruntime's names of a device's providers, best first, each with whether it trains; none for no known device.

    Raises:
        DeviceError: Unknown device.
    """
    from edgeff.devices import detect, load_all, load_profile, match_profile

    profile = match_profile(detect(), load_all())[0] if device_name is None else load_profile(device_name)
    return [] if profile is None else [(one.name, one.training) for one in profile.providers]


def budget_over_floor(asked: int | None, device_name: str | None, floor_bytes: int) -> int:
    """Bytes over the floor: the smaller of what was asked for and what the device has.

    Raises:
        DeviceError: Unknown device, or one that onnxruntime does not run on.
    """
    from edgeff.devices import (
        default_budget_bytes,
        detect,
        fill_in,
        load_all,
        load_profile,
        machine_budget_bytes,
        match_profile,
        require_supported,
        require_trainable,
    )

    if device_name is not None:
        profile = load_profile(device_name)
        require_trainable(profile)
        if profile.as_found:
            machine = detect()
            filled = fill_in(profile, machine)
            has = machine_budget_bytes(filled, machine, floor_bytes, resident_bytes=floor_bytes)
        else:
            has = default_budget_bytes(profile, floor_bytes)
        if asked is not None and asked > has:
            raise BudgetError(
                f"a budget of {format_bytes(asked)} exceeds that of `{profile.id}`: {format_bytes(has)} over the floor",
                hint=f"give at most `--budget {has // 2**20}MiB`, or leave it out",
            )
        return has if asked is None else asked
    if asked is not None:
        return asked
    machine = detect()
    require_supported(machine)
    matched, _ = match_profile(machine, load_all())
    if matched is None:
        raise DeviceError(
            "this machine matches no profile", hint="give `--budget`, or `--device` with a profile of yours"
        )
    return machine_budget_bytes(matched, machine, floor_bytes, resident_bytes=floor_bytes)
