"""Three ways to read weights out of an artifact, by the peak of resident memory each adds. Linux only.

Every way sums every tensor, one after another, in a process of its own.

Run `.venv-device/bin/python benchmarks/read_weights.py`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_READ = {
    "all bytes, then `safetensors.numpy.load`": """
        from safetensors.numpy import load
        return sum(float(tensor.sum()) for tensor in load(Path(path).read_bytes()).values())""",
    "`safetensors.safe_open`, which maps the file": """
        with safe_open(path, framework="np") as file:
            return sum(float(file.get_tensor(name).sum()) for name in file.keys())""",
    "`edgeff.tensor_file`, seek and read": """
        with open(path, "rb") as stream:
            stored = read_index(stream, Path(path).stat().st_size, "weights").values()
            return sum(float(read_tensor(stream, tensor).sum()) for tensor in stored)""",
}
_PROGRAM = """
from pathlib import Path
import sys
import numpy
from safetensors import safe_open
from edgeff.tensor_file import read_index, read_tensor


def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def read(path):
{body}


floor = status("VmRSS:")
read(sys.argv[1])
print(status("VmHWM:") - floor)
"""


def main() -> None:
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({f"layer{i}": draw.normal(size=(1024, 1024)).astype(np.float32) for i in range(20)}, path)
        print(f"{path.stat().st_size / 2**20:.0f} MiB of weights in 20 tensors")
        for way, body in _READ.items():
            words = [sys.executable, "-c", _PROGRAM.format(body=body), str(path)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            print(f"  {way}: {int(done.stdout) / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
