"""Signed artifacts: the file of a signature, keys, and the commands that ask for one."""

import base64
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from click.testing import Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from test_artifact import MANIFEST, written
from test_errors import refused, without
from tiny_run import TinyRun, edgeff

from edgeff.artifact import open_artifact
from edgeff.errors import SignatureError
from edgeff.signature import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    Signature,
    from_bytes,
    message_of,
    new_key,
    public_key_of,
    sign,
    signature_path,
    to_text,
)
from edgeff.signature_files import public_path, trusted_keys, write_new_key, write_signature

Run = Callable[..., CompletedProcess[str]]
SHA = "ab" * 32
PRIVATE, PUBLIC = new_key()
KEY = public_key_of(PUBLIC, "me.pub.pem")
OTHER_PRIVATE, OTHER_PUBLIC = new_key()
OTHER = public_key_of(OTHER_PUBLIC, "other.pub.pem")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "me.pem"
    path.write_bytes(PRIVATE)
    (tmp_path / "me.pub.pem").write_bytes(PUBLIC)
    (tmp_path / "other.pub.pem").write_bytes(OTHER_PUBLIC)
    return path


def refusal(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(SignatureError) as caught:
        call(*arguments)
    assert caught.value.hint
    assert str(caught.value).isprintable()
    return str(caught.value)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_signature_is_a_small_json_file() -> None:
    made = Signature(SHA, bytes(32), bytes(range(64)))
    assert to_text(made) == (
        "{\n"
        '  "format": "edgeff-signature",\n'
        '  "version": 1,\n'
        f'  "manifest_sha256": "{SHA}",\n'
        '  "public_key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",\n'
        f'  "signature": "{base64.b64encode(bytes(range(64))).decode()}"\n'
        "}\n"
    )


@given(
    st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES),
    st.binary(min_size=SIGNATURE_BYTES, max_size=SIGNATURE_BYTES),
)
def test_what_is_written_is_read_the_same(public_key: bytes, signature: bytes) -> None:
    made = Signature(SHA, public_key, signature)
    assert from_bytes(to_text(made).encode(), "demo.sig") == made


def changed(**fields: object) -> bytes:
    root = json.loads(to_text(Signature(SHA, bytes(32), bytes(64)))) | fields
    return json.dumps({name: value for name, value in root.items() if value is not None}).encode()


MALFORMED = {
    "empty": (b"", r"`demo.sig` is not JSON: Expecting value: line 1 column 1 \(char 0\)"),
    "not UTF-8": (b"\xff", r"`demo.sig` is not UTF-8: invalid start byte"),
    "too large": (b" " * 4097, r"`demo.sig` has more than 4096 bytes"),
    "a list": (b"[]", r"`demo.sig` must be an object, got a list of 0"),
    "a key twice": (b'{"format": 1, "format": 1}', r"key `demo.sig.format` is given twice"),
    "an unknown key": (changed(more=1), r"unknown key `demo.sig.more`"),
    "no signature": (changed(signature=None), r"missing key `demo.sig.signature`"),
    "another format": (changed(format="x"), r'`demo.sig.format` must be one of `edgeff-signature`, got `"x"`'),
    "another version": (changed(version=2), r"`demo.sig.version` must be a whole number, 1 to 1, got `2`"),
    "no digest": (changed(manifest_sha256="AB" * 32), r"`demo.sig.manifest_sha256` must be a sha256 .*"),
    "a short key": (changed(public_key="AAAA"), r'`demo.sig.public_key` must be 32 bytes in base64, got `"AAAA"`'),
    "no base64": (changed(public_key="ä" * 43 + "="), r"`demo.sig.public_key` must be 32 bytes in base64, got .*"),
    "stray bits": (changed(public_key="A" * 42 + "B="), r"`demo.sig.public_key` must be 32 bytes in base64, got .*"),
    "a long signature": (
        changed(signature=base64.b64encode(bytes(65)).decode()),
        r"`demo.sig.signature` must be 64 bytes in base64, got .*",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_s1_s2_a_malformed_signature_is_refused(case: str) -> None:
    data, message = MALFORMED[case]
    assert re.fullmatch(message, refusal(from_bytes, data, "demo.sig"))


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_signature_is_of_the_manifests_sha256_behind_words_that_say_so() -> None:
    made = sign(SHA, PRIVATE, "me.pem")
    assert (made.manifest_sha256, made.public_key) == (SHA, KEY)
    message = b"edgeff artifact signature 1\n" + bytes([0xAB] * 32)
    assert message_of(SHA) == message
    Ed25519PublicKey.from_public_bytes(KEY).verify(made.signature, message)


def pem(key: object, password: bytes = b"") -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)  # type: ignore[attr-defined, no-any-return]


def test_keys_that_cannot_sign_are_refused() -> None:
    assert refusal(sign, SHA, b"hello", "k.pem") == "`k.pem` is no private key in PEM"
    assert refusal(sign, SHA, PUBLIC, "k.pem") == "`k.pem` is no private key in PEM"
    assert refusal(sign, SHA, b"x" * 20_000, "k.pem") == "`k.pem` has more than 16384 bytes"
    curve = ec.generate_private_key(ec.SECP256R1())
    assert refusal(sign, SHA, pem(curve), "k.pem") == "`k.pem` is no Ed25519 key"
    locked = pem(Ed25519PrivateKey.generate(), b"secret")
    assert refusal(sign, SHA, locked, "k.pem") == "the key `k.pem` has a password"


def test_keys_that_cannot_be_trusted_are_refused() -> None:
    assert refusal(public_key_of, PRIVATE, "k.pem") == "`k.pem` is no public key in PEM"
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    data = curve.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert refusal(public_key_of, data, "k.pem") == "`k.pem` is no Ed25519 key"


def test_a_new_key_is_for_its_owner_alone_and_never_written_over(tmp_path: Path) -> None:
    private = tmp_path / "me.pem"
    public = write_new_key(private)
    assert public == tmp_path / "me.pub.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    made = sign(SHA, private.read_bytes(), "me.pem")
    assert trusted_keys([public]) == (made.public_key,)
    before = private.read_bytes()
    assert refusal(write_new_key, private) == f"`{private}` exists already"
    private.unlink()
    assert refusal(write_new_key, private) == f"`{public}` exists already"
    assert not private.exists()
    assert before != new_key()[0]


def test_a_key_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(write_new_key, tmp_path / "none" / "me.pem").startswith("cannot write `")
    real, opened = os.open, []

    def fail(path: Path, *arguments: int) -> int:
        opened.append(path)
        if Path(path).name == "me.pem":
            raise OSError(28, "No space left on device")
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", fail)
    assert refusal(write_new_key, tmp_path / "me.pem").endswith("me.pem`: no space left on device")
    monkeypatch.undo()
    assert opened
    assert list(tmp_path.iterdir()) == []


def test_a_public_key_lies_beside_its_private_one() -> None:
    assert public_path(Path("a/me.key")) == Path("a/me.key.pub.pem")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl is installed")
def test_keys_of_openssl_are_taken_and_ours_are_taken_by_openssl(tmp_path: Path) -> None:
    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)

    private, public = tmp_path / "o.pem", tmp_path / "o.pub.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    made = sign(SHA, private.read_bytes(), "o.pem")
    assert trusted_keys([public]) == (made.public_key,)
    (tmp_path / "message").write_bytes(message_of(SHA))
    (tmp_path / "signature").write_bytes(made.signature)
    verify = ("-verify", "-rawin", "-in", tmp_path / "message", "-sigfile", tmp_path / "signature")
    openssl("pkeyutl", *verify, "-pubin", "-inkey", public)


# --- artifacts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo", "demo.zip"])
def test_a_signed_artifact_opens_where_its_key_is_required(tmp_path: Path, key: Path, name: str) -> None:
    artifact = written(tmp_path, name)
    path, made = write_signature(artifact, open_artifact(artifact).manifest_sha256, key)
    assert path == tmp_path / f"{name}.sig"
    assert from_bytes(path.read_bytes(), "s") == made
    assert open_artifact(artifact, [OTHER, KEY]).manifest.name == "tiny"
    assert open_artifact(artifact).manifest.name == "tiny"


def test_the_signature_is_found_whatever_the_path_looks_like(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = written(tmp_path)
    write_signature(artifact, open_artifact(artifact).manifest_sha256, key)
    monkeypatch.chdir(artifact)
    for path in (Path("."), Path("../demo"), Path("blocks/..")):
        assert signature_path(path) == tmp_path / "demo.sig"
        assert open_artifact(path, [KEY]).manifest.name == "tiny"


def test_s1_an_artifact_without_a_signature_is_refused_where_one_is_required(tmp_path: Path) -> None:
    artifact = written(tmp_path)
    expected = f"`{artifact}` is not signed: there is no `{artifact}.sig`"
    assert refusal(open_artifact, artifact, [KEY]) == expected
    Path(f"{artifact}.sig").mkdir()
    assert refusal(open_artifact, artifact, [KEY]) == expected


def test_s4_a_signature_by_another_key_is_refused_and_the_key_told(tmp_path: Path, key: Path) -> None:
    artifact = written(tmp_path)
    write_signature(artifact, open_artifact(artifact).manifest_sha256, key)
    shown = base64.b64encode(KEY).decode()
    assert refusal(open_artifact, artifact, [OTHER]) == (
        f"`demo.sig` is by the key {shown}, which is none of those required"
    )


def test_s3_a_signature_of_another_artifact_is_refused(tmp_path: Path, key: Path) -> None:
    one, other = written(tmp_path), written(tmp_path, "other", replace(MANIFEST, name="other"))
    shas = [open_artifact(path).manifest_sha256 for path in (one, other)]
    path, _ = write_signature(other, shas[1], key)
    path.rename(tmp_path / "demo.sig")
    assert refusal(open_artifact, one, [KEY]) == (
        f"`demo.sig` signs another artifact: manifest sha256 {shas[1]}, got {shas[0]}"
    )


def test_s5_a_signature_that_only_claims_its_key_is_refused(tmp_path: Path) -> None:
    artifact = written(tmp_path)
    made = sign(open_artifact(artifact).manifest_sha256, OTHER_PRIVATE, "other.pem")
    (tmp_path / "demo.sig").write_text(to_text(replace(made, public_key=KEY)))
    assert refusal(open_artifact, artifact, [KEY]) == "`demo.sig` holds a signature that is not by its key"


def test_s5_a_signature_of_the_bare_hash_is_refused(tmp_path: Path) -> None:
    """What is signed says that it is an artifact: a signature that was made for something else does not serve."""
    artifact = written(tmp_path)
    sha = open_artifact(artifact).manifest_sha256
    bare = Ed25519PrivateKey.generate()
    made = Signature(sha, bare.public_key().public_bytes_raw(), bare.sign(bytes.fromhex(sha)))
    (tmp_path / "demo.sig").write_text(to_text(made))
    assert refusal(open_artifact, artifact, [made.public_key]) == (
        "`demo.sig` holds a signature that is not by its key"
    )


def test_s5_a_signature_is_asked_for_before_the_manifest_is_read(tmp_path: Path) -> None:
    artifact = written(tmp_path)
    (artifact / "manifest.json").write_text("{]")
    assert "is not signed" in refusal(open_artifact, artifact, [KEY])


@given(st.data())
def test_whatever_byte_of_a_signature_is_changed_it_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "signed"
    if not folder.exists():
        folder.mkdir()
        made = sign(open_artifact(written(folder)).manifest_sha256, PRIVATE, "me.pem")
        (folder / "good").write_text(to_text(made))
    changed = bytearray((folder / "good").read_bytes())
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "demo.sig").write_bytes(changed)
    try:
        open_artifact(folder / "demo", [KEY])
    except SignatureError:
        return
    assert json.loads(changed) == json.loads((folder / "good").read_bytes())  # only white space


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def artifact(tiny: TinyRun, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.artifact, tmp_path / "demo"))


def done(*arguments: object) -> Result:
    result = edgeff(*arguments)
    assert result.exit_code == 0, result.output
    return result


def test_signing_says_what_was_signed_and_by_which_key(artifact: Path, key: Path) -> None:
    sha = open_artifact(artifact).manifest_sha256
    shown = base64.b64encode(KEY).decode()
    result = done("sign", artifact, "--key", key)
    assert result.stdout == f"{artifact}.sig: `har-cnn`, manifest sha256 {sha}, by the key {shown}\n"
    assert result.stderr == ""
    message, hint = refused(edgeff("sign", artifact, "--key", key))
    assert message == f"`{artifact}.sig` exists already"
    assert hint == "remove it to sign the artifact anew"
    Path(f"{artifact}.sig").unlink()
    found = json.loads(done("sign", artifact, "--key", key, "--json").stdout)
    assert found == {"signature": f"{artifact}.sig", "manifest_sha256": sha, "public_key": shown}


def test_a_key_is_made_by_a_command(tmp_path: Path) -> None:
    result = done("sign", "--new-key", tmp_path / "me.pem")
    assert result.stdout == (
        f"{tmp_path}/me.pem: private key, keep it secret\n"
        f"{tmp_path}/me.pub.pem: public key, for `--require-signature`\n"
    )
    message, _ = refused(edgeff("sign", "--new-key", tmp_path / "me.pem"))
    assert message == f"`{tmp_path}/me.pem` exists already"
    found = json.loads(done("sign", "--new-key", tmp_path / "you.pem", "--json").stdout)
    assert found == {"private_key": f"{tmp_path}/you.pem", "public_key": f"{tmp_path}/you.pub.pem"}


def test_a_key_without_a_name_is_refused() -> None:
    assert refused(edgeff("sign", "--new-key", "."))[0] == "`.` is no name for a file"


@pytest.mark.parametrize(
    "arguments", [(), ("a",), ("--key", "k"), ("a", "--new-key", "k"), ("--key", "k", "--new-key", "k")]
)
def test_other_uses_are_told_what_to_give(arguments: tuple[str, ...]) -> None:
    result = edgeff("sign", *arguments)
    assert result.exit_code == 2
    assert "Error: give either ARTIFACT and --key, or --new-key" in result.stderr


def test_a_damaged_artifact_is_not_signed(artifact: Path, key: Path) -> None:
    (artifact / "weights.safetensors").write_bytes(b"")
    message, _ = refused(edgeff("sign", artifact, "--key", key))
    assert message.startswith("`weights.safetensors` in ")
    assert not Path(f"{artifact}.sig").exists()


def commands(tiny: TinyRun, artifact: Path, out: Path) -> dict[str, tuple[object, ...]]:
    return {
        "inspect": (artifact,),
        "report": (artifact, "--device", "pi-zero-2w"),
        "evaluate": (artifact, "--data", tiny.own),
        "finalize": (artifact, "--out", out / "model.onnx"),
        "train-on-device": (artifact, "--data", tiny.own, "--out", out / "run", "--epochs", 1),
    }


@pytest.mark.parametrize("name", ["inspect", "report", "evaluate", "finalize", "train-on-device"])
def test_a_command_takes_a_signed_artifact_and_no_other(
    tiny: TinyRun, artifact: Path, key: Path, tmp_path: Path, name: str
) -> None:
    required = ("--require-signature", tmp_path / "me.pub.pem")
    arguments = commands(tiny, artifact, tmp_path)[name]
    message, hint = refused(edgeff(name, *arguments, *required))
    assert message == f"`{artifact}` is not signed: there is no `{artifact}.sig`"
    assert hint == "get the signature from whoever made the artifact, or sign it by `edgeff sign`"
    assert not (tmp_path / "run").exists()
    done("sign", artifact, "--key", key)
    message, _ = refused(edgeff(name, *arguments, "--require-signature", tmp_path / "other.pub.pem"))
    assert message.endswith("which is none of those required")
    assert done(name, *arguments, "--require-signature", tmp_path / "other.pub.pem", *required).exit_code == 0


def test_a_signature_is_required_by_the_environment_too(
    artifact: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = os.pathsep.join([str(tmp_path / "other.pub.pem"), str(tmp_path / "me.pub.pem")])
    monkeypatch.setenv("EDGEFF_REQUIRE_SIGNATURE", both)
    assert "is not signed" in refused(edgeff("inspect", artifact))[0]
    done("sign", artifact, "--key", key)
    done("inspect", artifact)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read `{}`: no such file or directory"), (PRIVATE, "`{}` is no public key in PEM")],
)
def test_a_key_that_cannot_be_used_is_named(
    artifact: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "wrong.pem"
    if content is not None:
        path.write_bytes(content)
    told, _ = refused(edgeff("inspect", artifact, "--require-signature", path))
    assert told == message.format(path)


def test_a_device_without_cryptography_is_told_which_extra_has_it(
    artifact: Path, key: Path, tmp_path: Path, run_device: Run
) -> None:
    environment = without(tmp_path, "cryptography")
    arguments = ("-m", "edgeff", "inspect", str(artifact))
    assert run_device(*arguments, env=environment).returncode == 0
    required = ("--require-signature", str(tmp_path / "me.pub.pem"))
    for command in ((*arguments, *required), ("-m", "edgeff", "sign", str(artifact), "--key", str(key))):
        message, hint = refused(run_device(*command, env=environment))
        assert message == "this command needs `cryptography`, which is not installed"
        assert hint == 'run `pip install "edgeff[signing]"`'
