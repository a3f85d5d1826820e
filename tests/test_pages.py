"""Pages of program code are given back, and what is needed again comes back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgeff.runtime.pages import file_mappings, return_code_pages

MAPS = """\
00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/python3
00651000-00652000 r--p 00051000 08:02 173521      /usr/bin/python3
00652000-00655000 rw-p 00052000 08:02 173521      /usr/bin/python3
00e03000-00e24000 rw-p 00000000 00:00 0           [heap]
7fffb2c0d000-7fffb2c2e000 rw-p 00000000 00:00 0   [stack]
7f0000000000-7f0000001000 r-xp 00000000 00:00 0   [vdso]
7f0000002000-7f0000003000 r-xp 00000000 00:00 0
7f0000004000-7f0000005000 r--p 00000000 08:02 99  /opt/with a space/lib.so (deleted)
7f0000006000-7f0000007000 ---p 00000000 08:02 99  /opt/lib.so
"""

CODE = """
import re
from pathlib import Path
import numpy
def of_files():
    return int(re.search(r"RssFile:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
from edgeff.runtime.pages import return_code_pages
before = of_files()
taken = return_code_pages()
after = of_files()
print(taken, before, after, float(numpy.linalg.svd(numpy.eye(3))[1].sum()))
"""


def test_only_what_is_read_only_and_of_a_file_is_given_back() -> None:
    found = [(hex(start), hex(end)) for start, end in file_mappings(MAPS)]
    assert found == [("0x400000", "0x452000"), ("0x651000", "0x652000"), ("0x7f0000004000", "0x7f0000005000")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux gives pages back")
def test_a_process_is_smaller_afterwards_and_works(device_python: Path) -> None:
    done = subprocess.run([str(device_python), "-c", CODE], capture_output=True, text=True, check=True)
    taken, before, after, total = done.stdout.split()
    assert float(total) == 3.0
    if taken == "True":  # an older kernel refuses
        assert int(after) < int(before)


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not return_code_pages()
