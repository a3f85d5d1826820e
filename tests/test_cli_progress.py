"""Progress of long work on stderr."""

from __future__ import annotations

import pytest

from edgeff.cli_progress import ProgressLine


def test_where_stderr_is_no_terminal_progress_is_a_line_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("edgeff.cli_progress.time.monotonic", lambda: now[0])
    with ProgressLine("train", 4) as line:
        for step in range(1, 5):
            now[0] += 4
            line.show(step, f"loss {step}")
        line.note("epoch 1")
    captured = capsys.readouterr()
    assert captured.err == "train 3/4  loss 3\nepoch 1\n"
    assert captured.out == ""


def test_in_a_terminal_progress_is_a_bar_that_is_renewed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with ProgressLine("train", 4) as line:
        line.show(1, "loss 2")
        line.show(4, "loss 1")
    first, last = f"train [{'#' * 6}{'-' * 18}] 1/4  loss 2", f"train [{'#' * 24}] 4/4  loss 1"
    assert capsys.readouterr().err == f"\r{first}\x1b[K\r{last}\x1b[K\n"
