"""The command line: what each command is called, and how errors reach a person.

A command's module is imported when the command runs, so that `edgeff --help` is quick on a small device.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import click

from edgeff import __version__
from edgeff.errors import EdgeffError

# Command -> module that has it (as a function of the same name, dashes as underscores), and its line in the help.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "pretrain": ("edgeff.cli_pretrain", "Pretrain a network layer by layer in PyTorch"),
    "export": ("edgeff.cli_export", "Compile a pretrained network into an artifact"),
    "check-locality": ("edgeff.cli_locality", "Show that no block of a network learns from a later one"),
    "sign": ("edgeff.cli_sign", "Sign an artifact, or make a key to sign with"),
    "inspect": ("edgeff.cli_show", "Show what is in an artifact"),
    "report": ("edgeff.cli_show", "Show what training takes, and which devices have it"),
    "devices": ("edgeff.cli_show", "Show the device catalogue, or detect this machine"),
    "train-on-device": ("edgeff.cli_train", "Train an artifact on this machine, inside a budget"),
    "evaluate": ("edgeff.cli_device", "Test an artifact or a run on labelled data"),
    "finalize": ("edgeff.cli_device", "Write a plain inference model"),
    "zoo": ("edgeff.cli_zoo", "List pretrained networks, or copy one"),
    "study": ("edgeff.cli_study", "Run an experiment: comparisons, ablations, adaptation"),
    "fsck": ("edgeff.cli_fsck", "Tell what is in a run folder, and what can be gone on with"),
    "bench": ("edgeff.cli_bench", "Run a benchmark of a checkout of edgeff"),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order in which a person meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        return getattr(module, cmd_name.replace("-", "_"))  # type: ignore[no-any-return]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error that the user can mend becomes one line and a hint."""
        try:
            return super().invoke(ctx)
        except EdgeffError as error:
            hint = error.hint or f"see `edgeff {ctx.invoked_subcommand} --help`"
            click.echo(f"Error: {error}\n\nhint: {hint}", err=True)
            sys.exit(error.exit_code)
        except (MemoryError, RuntimeError) as error:
            if not _lacks_memory(error):
                raise
            hint = "end other programs, or give smaller sizes (`--micro-batch`, a smaller artifact or data set)"
            click.echo(f"Error: the system has not enough memory for this\n\nhint: {hint}", err=True)
            sys.exit(1)
        except OSError as error:
            if error.filename is None:
                raise
            name = str(error.filename)
            shown = name if len(name) < _LONG_NAME else f"{name[:_LONG_NAME]}..."
            click.echo(f"Error: `{shown}`: {error.strerror}\n\nhint: check the path and its rights", err=True)
            sys.exit(1)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in _EXTRAS:
                raise
            hint = f'run `pip install "edgeff[{_EXTRAS[missing]}]"`'
            click.echo(f"Error: this command needs `{missing}`, which is not installed\n\nhint: {hint}", err=True)
            sys.exit(1)


def _lacks_memory(error: Exception) -> bool:
    """Whether there was not enough memory; torch says so by a `RuntimeError`, of a GPU and of the CPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


# Letters of a path that is shown whole.
_LONG_NAME = 200
_EXTRAS = {"torch": "workstation", "onnx": "workstation", "onnxruntime": "device", "cryptography": "signing"}


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeff")
def main() -> None:
    """Train neural networks on small devices, layer by layer, inside a memory budget."""
