"""What inputs are made of, by form: libFuzzer's dictionaries, and the values that simple changes take."""

from __future__ import annotations

from typing import Any

# fmt: off
NPY = (
    b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"'descr'", b"'<f4'", b"'|u1'", b"'<U2'", b"'fortran_order'", b"False",
    b"True", b"'shape'", b"(2, 3)", b"'|O'", b"('<f4', (2,))", b"[('a', '<f4')]",
)
NPZ = (*NPY, b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"x.npy", b"y.npy")
ZIP = (
    b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"\x01\x00\x08\x00", b"up\x05\x00",
    b"manifest.json",
)
IDX = (b"\0\0\x08\x03", b"\0\0\x0d\x02", b"\0\0\x08\x01", b"\0\0\x08\xff")
PICKLE = (
    b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n", b"c_codecs\nencode\n",
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"\x82\x01", b"R", b"b", b"\x81", b"\x92", b"\x93", b"\x95", b"P0\n", b"Q",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"i",
    b"\x98", b"\x97", b"o", b"\x94", b"\x96\x00\x00\x00\x00\x01\x00\x00\x00", b"2\x86", b"labels", b"fine_labels",
    b"data",
)
MAT = (
    b"\x00\x01IM", b"\x01\x00MI", b"\x00\x02IM", b"\x0e\0\0\0", b"\x0f\0\0\0", b"\x06\0\0\0\x08\0\0\0", b"\x09\0\0\0",
    b"\x05\0\0\0\x10\0\0\0", b"\x01\0\x01\0X\0\0\0", b"\x01\0\x01\0y\0\0\0", b"\x02\0\0\0\x00\x0c\0\0",
    b"\x20\0\0\0\x20\0\0\0\x03\0\0\0", b"\xff\xff\xff\x7f", b"\x78\x9c",
)
UCR = (b"\t", b"nan", b"inf", b"1e39", b"1e-400", b"1.0000e+00")
UEA = (
    b"@data\n", b"@classLabel true a b\n", b"@timestamps true\n", b"@targetLabel", b"#", b":", b",", b"?", b"nan",
    b"1e39", b"@univariate false\n",
)
CSV = (*NPY, b"0,go,a,f\n", b'"', b"\r", b"99999999999999999999", b"-1", b"1_0")
TOML = (
    b'"""', b"'''", b"[[providers]]", b"[ram]", b"value", b"basis", b"sourced", b"estimate", b"measured", b'"1 GiB"',
    b"1979-05-27T07:32:00Z", b"inf", b"nan", b"0x", b"1e400", b"\\u0000", b"{ }", b"a.a.a.a.a.a.a.a",
)
JSON = (
    b"null", b"true", b"1e999", b"-0.0", b"NaN", b"9007199254740993", b'"float32"', b'"int64"', b'"\\ud800"',
    b'"\\u0000"', b'"../x"', b"[[[[[[[[", b'{"a":', b'"a":1,"a":2',
)
MANIFEST = (
    *JSON, b'"kind"', b'"affine"', b'"transpose"', b'"reshape"', b'"cast"', b'"axis"', b'"axes"', b'"shape"',
    b'"dtype"', b'"offset"', b'"scale"', b'"handover"', b'"arena"', b'"sha256"',
)
SAFETENSORS = (*JSON, b'"F32"', b'"BOOL"', b'"U8"', b'"data_offsets"', b'"__metadata__"')
RUN = (*JSON, b'"history"', b'"position"', b'"stage"', b'"best"', b'"rate_factors"', b'"guard"')
ONNX = tuple(
    b"Add Mul MatMul Gemm Conv Reshape Expand Tile Pad OneHot ConstantOfShape Range Loop If Scan Gather Cast Transpose "
    b"Slice Concat axis axes to value perm ai.onnx com.microsoft location external".split()
)
TRAINING = (
    *ONNX, b"ReluGrad", b"MaxPoolGrad", b"GatherGrad", b"GatherElementsGrad", b"SliceGrad", b"InPlaceAccumulatorV2",
    b"AdamWOptimizer", b"SGDOptimizerV2", b"lazy_reset_grad", b"params", b"_grad.accumulation.buffer", b"ai.onnx.ml",
    b"_grad.accumulation.out",
)
PEM = (
    b"-----BEGIN PUBLIC KEY-----", b"-----BEGIN PRIVATE KEY-----", b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"=",
    b"-----END PUBLIC KEY-----", b"-----END PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED", b"\r\n",
)

# --- for simple changes ---

BYTES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\n", b'"', b"0", b"9" * 20, b"-", b"1e400", b"\0" * 8, b"\xff" * 8, b"nan")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.5, -0.0, 0.0, 2**31, 2**53, 2**63, 2**64, 1e308, 1e-320, "", "a", "\0", "\ud800",
    "\u2028", "é", "x" * 200, "../x", "/etc/passwd", [], {}, [[]], {"a": 1}, float("nan"), float("inf"), [1, 2],
    "float32", "int64", "bool", "float64",
)
DTYPES = (
    "'<f4'", "'|u1'", "'<i8'", "'>f8'", "'<U1'", "'<U9999999'", "'|O'", "'|b1'", "'|V4'", "'|S3'", "'<M8[s]'",
    "'<c8'", "('<f4', (2,))", "('<f4', (0,))", "[('a', '<f4')]", "'f4,f4'", "''", "None", "'<U0'", "1", "'<f2'",
)
SHAPES = (
    "()", "(0,)", "(1, 0)", "(4294967296, 0)", "(1099511627776, 1099511627776, 0)", "(9223372036854775807,)", "(1,)",
    "(9223372036854775808, 0)", "(2,)", f"({'1, ' * 65})", "(2, 1, 3)", "(-1,)", "(True, 3)", "(2, 3)", "(6, 200)",
    f"({'9' * 400},)", "(3, 1, 32, 32)", "(6, 4611686018427387904)", "(4611686018427387904, 6)",
)
_WHOLE = (0, 1, 2, 3, 4, 6, 7, 8, 11, 13, 17, 64, 255, 65536, 2**31 - 1)
# By protobuf's C++ type: int32, int64, uint32, uint64, double, float, bool, enum, text or bytes.
FIELDS: dict[int, tuple[Any, ...]] = {
    1: (*_WHOLE, -1, -2), 2: (*_WHOLE, -1, -2, 2**31, 2**40, 2**63 - 1, -(2**63)), 3: _WHOLE, 4: (*_WHOLE, 2**40),
    5: (0.0, 1.5, 1e308), 6: (0.0, 1.5, -1.0, 3e38), 7: (False, True), 8: _WHOLE[:10],
    9: ("", "N", "a", "Add", "Loop", "If", "Expand", "Tile", "ConstantOfShape", "Pad", "Resize", "com.microsoft", "\0"),
}
# fmt: on
