"""Signing on the command line: the command `sign`, and the option by which others ask for a signature."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _trusted(context: click.Context, parameter: click.Parameter, paths: tuple[Path, ...]) -> tuple[bytes, ...]:
    """The keys of the option. Read with the options, so that what reading them takes is there before any training."""
    del context, parameter
    if not paths:
        return ()
    from edgeff.signature_files import trusted_keys

    return trusted_keys(paths)


def require_signature_option(command: _Command) -> _Command:
    """Give a command the option `--require-signature`, as the argument `trusted`: public keys for `open_artifact`."""
    return click.option(
        "--require-signature",
        "trusted",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="PUBLIC.pem",
        envvar="EDGEFF_REQUIRE_SIGNATURE",
        callback=_trusted,
        help="Refuse an artifact that this key has not signed; repeatable. Also by EDGEFF_REQUIRE_SIGNATURE.",
    )(command)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path), required=False)
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="PRIVATE.pem",
    help="Private Ed25519 key in PEM, as `--new-key` or `openssl genpkey -algorithm ed25519` writes it.",
)
@click.option(
    "--new-key",
    type=click.Path(path_type=Path),
    metavar="FILE.pem",
    help="Make a key instead: FILE.pem, to be kept secret, and FILE.pub.pem, for the devices.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sign(artifact: Path | None, key: Path | None, new_key: Path | None, as_json: bool) -> None:
    """Sign ARTIFACT after verifying it: writes ARTIFACT.sig beside it."""
    if new_key is not None and artifact is None and key is None:
        _make_key(new_key, as_json)
    elif artifact is not None and key is not None and new_key is None:
        _sign(artifact, key, as_json)
    else:
        raise click.UsageError("give either ARTIFACT and --key, or --new-key")


def _make_key(private: Path, as_json: bool) -> None:
    from edgeff.signature_files import write_new_key

    public = write_new_key(private)
    if as_json:
        click.echo(json.dumps({"private_key": str(private), "public_key": str(public)}, indent=2))
        return
    click.echo(f"{private}: private key, keep it secret\n{public}: public key, for `--require-signature`")


def _sign(artifact: Path, key: Path, as_json: bool) -> None:
    from edgeff.artifact import open_artifact
    from edgeff.signature_files import write_signature

    opened = open_artifact(artifact)
    path, made = write_signature(artifact, opened.manifest_sha256, key)
    public_key = base64.b64encode(made.public_key).decode()
    if as_json:
        found = {"signature": str(path), "manifest_sha256": made.manifest_sha256, "public_key": public_key}
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"{path}: `{opened.manifest.name}`, manifest sha256 {made.manifest_sha256}, by the key {public_key}")
