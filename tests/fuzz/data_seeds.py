"""Good inputs of the targets that read data sets and device profiles."""

from __future__ import annotations

import gzip
import io
import lzma
import pickle
import struct

import numpy as np
from fuzz.base import joined
from mat_files import header, matrix, svhn_bytes

_CLASSES = np.array(["ä", "b"])
_X = np.arange(2 * 3, dtype=np.float32).reshape(2, 3)
_Y = np.array([0, 1], np.uint8)


def _npy(array: np.ndarray) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


def _dtypes() -> list[np.ndarray]:
    return [_X.astype(code) for code in ("|b1", "|i1", ">i2", "<i8", "<f2", ">f8")]


def npz() -> list[bytes]:
    found = []
    for save in (np.savez, np.savez_compressed):
        target = io.BytesIO()
        save(target, x=_X, y=_Y, classes=_CLASSES, groups=[1, 2], sequence=[1, 1], span=[[0, 4], [2, 6]])
        found.append(b"0" + target.getvalue())
    arrays = joined(_npy(_X), _npy(_Y), _npy(_CLASSES), _npy(np.array([[0, 4], [2, 6]])))
    return [*found, b"1" + arrays, b"1" + joined(_npy(_X.astype(np.int16)), _npy(_Y))]


def npy() -> list[bytes]:
    modes = [mode + joined(_npy(_X), _npy(_Y), b"a\nb\n") for mode in (b"0", b"1", b"2")]
    raw = [b"3" + joined(gzip.compress(_npy(_X)), _npy(_Y)), b"4" + joined(lzma.compress(_npy(_X)), _npy(_Y))]
    wide = io.BytesIO()
    np.lib.format.write_array(wide, _X, version=(2, 0))
    return [
        *modes,
        *raw,
        b"0" + joined(wide.getvalue(), _npy(_Y)),
        *(b"0" + joined(_npy(x), _npy(_Y)) for x in _dtypes()),
    ]


def _idx(array: np.ndarray) -> bytes:
    code = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}[array.dtype.str[1:]]
    big = array.astype(array.dtype.newbyteorder(">"))
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + big.tobytes()


def idx() -> list[bytes]:
    images = np.arange(2 * 2 * 2, dtype=np.uint8).reshape(2, 2, 2)
    modes = [mode + joined(_idx(images), _idx(_Y)) for mode in (b"0", b"1", b"2")]
    raw = [b"3" + joined(gzip.compress(_idx(images)), _idx(_Y)), b"4" + joined(lzma.compress(_idx(images)), _idx(_Y))]
    kinds = [b"0" + joined(_idx(images.astype(code)), _idx(_Y)) for code in ("i1", "<i2", "<i4", "<f4", "<f8")]
    return [*modes, *raw, *kinds]


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, (count, 3072), np.uint8)


def cifar_binary() -> list[bytes]:
    ten = b"".join(bytes([label]) + row.tobytes() for label, row in enumerate(_images(2)))
    return [ten, b"\x01\x02" + _images(1).tobytes()]


def cifar_pickle() -> list[bytes]:
    batch = {"data": _images(1), "labels": [3], "filenames": ["a.png"], "batch_label": "testing"}
    fine = {"data": _images(1), "fine_labels": [30], "coarse_labels": [1]}
    return [_python2(), *(pickle.dumps(batch, protocol) for protocol in (2, 3, 4, 5)), pickle.dumps(fine, 2)]


def _python2() -> bytes:
    """A batch as Python 2 wrote the official files."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + text(b"b")
        + b"\x87R(K\x01K\x01M\x00\x0c\x86"
    )
    array += dtype + b"K\x00tb\x89T" + struct.pack("<I", 3072) + _images(1).tobytes() + b"tb"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"](K\x03eu."


def cifar_residuals() -> list[bytes]:
    coded = _npy(_images(1).reshape(3, 1, 32, 32))
    return [b"2" + joined(coded, _npy(_Y[:1])), b"4" + joined(lzma.compress(coded, preset=0), _npy(_Y[:1]))]


def mat() -> list[bytes]:
    images, labels = _images(1).reshape(1, 3, 32, 32), np.array([10], np.uint8)
    whole = [b"0" + svhn_bytes(images, labels, order, pack=pack) for order in "<>" for pack in (True, False)]
    x, wide = matrix("X", images.transpose(2, 3, 1, 0)), np.array([[10.0]])
    return [*whole, b"1" + joined(header(), x, matrix("y", wide)), b"1" + joined(header(), matrix("y", wide), x)]


def ucr() -> list[bytes]:
    train, test = b"1\t0.5\t-1e3\t2\n2\t1\t2\t3\n", b"2.0000e+00\t7\t8\n"
    raw = [b"3" + gzip.compress(train), b"4" + lzma.compress(train)]
    return [
        b"0" + train,
        *(mode + joined(train, test) for mode in (b"1", b"2")),
        b"0walking\t1\n\nsitting\t2\r\n",
        *raw,
    ]


def uea() -> list[bytes]:
    head = b"#c\n@problemName P\n@timeStamps false\n@univariate false\n@classLabel true a b\n@data\n"
    train, test = head + b"1,2,3:4,5,6:a\n7,8:9,1:b\n", head + b"1,2,3,4:5,6,7,8:b\n"
    return [b"0" + train, b"1" + joined(train, test), b"2" + joined(train, test), b"0@data\n1,2:1.0\n3:2.0\n"]


def hapt() -> list[bytes]:
    samples = 200
    labels = np.repeat(np.array([1, 2], np.int8), [150, 50])
    signals = _npy((np.arange(6 * samples) % 7).astype("<i2").reshape(6, samples))
    table = b"experiment,user,start,length\n1,1,0,150\n2,2,10,190\n"
    return [b"2" + joined(table, _npy(labels), signals), b"4" + joined(table, _packed(_npy(labels)), _packed(signals))]


def _packed(data: bytes) -> bytes:
    return lzma.compress(data, preset=0)


def speech() -> list[bytes]:
    index = b"row,label,speaker,file\n0,_silence_,,s0\n1,go,0000000a,g\n2,no,ffffffff,n\n"
    features = _npy(np.arange(3 * 4 * 2, dtype=np.uint8).reshape(3, 4, 2))
    return [b"2" + joined(index, features), b"4" + joined(index, _packed(features))]


def device() -> list[bytes]:
    figure = '{ value = "%s", basis = "sourced", source = "data sheet" }'
    board = f"""id = "small"
name = "a small board"
class = "sbc"
architecture = "aarch64"
onnxruntime_supported = true
cpu = "4x Cortex-A53"
ram = {figure % "512 MiB"}
app_ram = {figure % "250 MB"}
providers = [{{ name = "CPUExecutionProvider", training = "yes" }}]
"""
    more = """cores = { value = 4, basis = "measured", source = "it" }
power_idle_w = { value = 1.5, basis = "estimate", source = "it" }
isa = ["neon"]
notes = ["a note"]
[[accelerators]]
name = "NPU"
training = "no"
basis = "sourced"
source = "it"
"""
    mcu = board.replace('"sbc"', '"mcu"').replace("supported = true", "supported = false").partition("app_ram")[0]
    return [board.encode(), (board + more).encode(), (mcu + 'other_runtimes = ["a"]\n').encode()]
