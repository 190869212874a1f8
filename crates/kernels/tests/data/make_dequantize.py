#!/usr/bin/env python3
"""Writes dequantize.bin: random blocks of every weight format, and the values that the `gguf`
package (the format's reference in Python) reads from them.

    pip install gguf numpy && python3 make_dequantize.py

Layout, little-endian, one record per format: u32 ggml type, u32 bytes, u32 values, the bytes,
the values as f32.
"""

import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

BLOCKS = 2
# Where the f16 scales stand in a block.
HALVES = {
    "F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}

rng = np.random.default_rng(20240229)
out = bytearray()
for name in ["F32", "F16", "BF16", *list(HALVES)[1:]]:
    kind = GGMLQuantizationType[name]
    length, size = GGML_QUANT_SIZES[kind]
    blocks = BLOCKS if length > 1 else 64
    data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    for at in HALVES.get(name, []):
        halves = rng.normal(0, 0.02, blocks).astype(np.float16)
        data[:, at : at + 2] = halves.view(np.uint8).reshape(blocks, 2)
    if name == "MXFP4":
        data[:, 0] = rng.integers(0, 250, blocks)  # exponents; 255 is no number
        data[0, 0] = 1
    if name == "F32":
        data = rng.normal(0, 1, blocks).astype(np.float32).view(np.uint8).reshape(blocks, 4)
    if name == "BF16":
        words = rng.normal(0, 1, blocks).astype(np.float32).view(np.uint32) >> 16
        data = words.astype(np.uint16).view(np.uint8).reshape(blocks, 2)
    values = dequantize(data.reshape(-1) if name not in ("F32", "F16") else
                        data.reshape(-1).view({"F32": np.float32, "F16": np.float16}[name]), kind)
    values = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    assert values.size == blocks * length, name
    out += np.array([kind.value, data.size, values.size], dtype="<u4").tobytes()
    out += data.tobytes() + values.tobytes()

pathlib.Path(__file__).with_name("dequantize.bin").write_bytes(out)
