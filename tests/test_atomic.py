import errno
import os

import pytest

from edgeff.atomic import atomic_file, write_atomically
from edgeff.errors import RunError


def failing(code, text):
    def fail(*arguments, **options):
        raise OSError(code, text)

    return fail


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "checkpoint"
    path.write_bytes(b"old")
    return path


def test_a_new_file_is_written_whole_and_alone(tmp_path):
    write_atomically(tmp_path / "new", b"data")
    assert (tmp_path / "new").read_bytes() == b"data"
    assert names(tmp_path) == ["new"]


def test_an_old_file_is_replaced(target):
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["checkpoint"]


def test_a_stream_takes_its_name_only_at_the_end(target):
    with atomic_file(target) as stream:
        stream.write(b"ne")
        stream.flush()
        assert target.read_bytes() == b"old"
        stream.write(b"w")
    assert target.read_bytes() == b"new"


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_end(target, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(handle):
        events.append(f"fsync of {os.fstat(handle).st_size} bytes" if not is_folder(handle) else "fsync of the folder")
        fsync(handle)

    def record_replace(source, destination):
        events.append(f"rename {source.name} to {destination.name}")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    write_atomically(target, b"12345")
    assert events == ["fsync of 5 bytes", "rename .checkpoint.tmp to checkpoint", "fsync of the folder"]


def is_folder(handle):
    return os.path.isdir(f"/proc/self/fd/{handle}") or (os.fstat(handle).st_mode & 0o170000) == 0o040000


@pytest.mark.parametrize(
    ("code", "text", "hint"),
    [
        (errno.ENOSPC, "No space left on device", "free some space, or write to another disk"),
        (errno.EDQUOT, "Disk quota exceeded", "free some space, or write to another disk"),
        (errno.EROFS, "Read-only file system", "the file system is read-only; write to another folder"),
        (errno.EIO, "Input/output error", "the disk or card may be failing; what was there before is untouched"),
        (errno.EBUSY, "Device or resource busy", ""),
    ],
)
def test_a_disk_that_refuses_leaves_the_old_file_alone_and_is_named(target, monkeypatch, code, text, hint):
    monkeypatch.setattr(os, "fsync", failing(code, text))
    with pytest.raises(RunError) as caught:
        write_atomically(target, b"new")
    assert str(caught.value) == f"cannot write `{target}`: {text[0].lower()}{text[1:]}"
    assert caught.value.hint == hint
    assert target.read_bytes() == b"old"
    assert names(target.parent) == ["checkpoint"]


def test_a_rename_that_fails_leaves_the_old_file_and_no_temporary_one(target, monkeypatch):
    monkeypatch.setattr(os, "replace", failing(errno.EACCES, "Permission denied"))
    with pytest.raises(RunError, match="permission denied") as caught:
        write_atomically(target, b"new")
    assert caught.value.hint == "you may not write there; choose another folder or change its rights"
    assert target.read_bytes() == b"old"
    assert names(target.parent) == ["checkpoint"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "gone" / "checkpoint"
    with pytest.raises(RunError) as caught:
        write_atomically(path, b"new")
    assert str(caught.value) == f"cannot write `{path}`: no such file or directory"
    assert caught.value.hint == "make the folder first"


def test_an_error_of_the_writer_passes_through_and_leaves_no_temporary_file(target):
    def write_half():
        with atomic_file(target) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert target.read_bytes() == b"old"
    assert names(target.parent) == ["checkpoint"]


def test_what_a_power_cut_left_is_written_over(target):
    target.with_name(".checkpoint.tmp").write_bytes(b"a longer half-written file")
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["checkpoint"]


@pytest.mark.parametrize(("code", "passes"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_sync_folders_is_no_error(target, monkeypatch, code, passes):
    fsync = os.fsync

    def only_files(handle):
        if is_folder(handle):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    if passes:
        write_atomically(target, b"new")
    else:
        with pytest.raises(RunError):
            write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
