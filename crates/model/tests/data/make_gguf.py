"""Writes the GGUF files of this folder with ggml's own Python package (`pip install gguf==0.19.0`).

    python make_gguf.py

They are read by crates/model/tests/files/foreign.rs, which repeats the contents.
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quants

HERE = Path(__file__).parent


def ramp(rows: int, cols: int) -> np.ndarray:
    return (np.arange(rows * cols, dtype=np.float32).reshape(rows, cols) - 100) / 64


def all_types() -> None:
    w = GGUFWriter(HERE / "all_types.gguf", "llama")
    w.add_custom_alignment(64)
    w.add_uint8("t.u8", 200)
    w.add_int8("t.i8", -100)
    w.add_uint16("t.u16", 60_000)
    w.add_int16("t.i16", -30_000)
    w.add_uint32("t.u32", 4_000_000_000)
    w.add_int32("t.i32", -2_000_000_000)
    w.add_float32("t.f32", 0.1)
    w.add_bool("t.bool", True)
    w.add_string("t.string", "grüße 東京")
    w.add_uint64("t.u64", 1 << 63)
    w.add_int64("t.i64", -(1 << 62))
    w.add_float64("t.f64", 0.1)
    w.add_array("t.strings", ["", "a", "東京", "\n"])
    w.add_array("t.ints", [1, -2, 3])
    w.add_array("t.floats", [0.5, -1.5])
    w.add_array("t.bools", [True, False, True])
    w.add_key_value("t.nested", [[1, 2], [3]], GGUFValueType.ARRAY, GGUFValueType.ARRAY)
    data = ramp(3, 64)
    w.add_tensor("f32", data)
    w.add_tensor("f16", data.astype(np.float16))
    for name, kind in [("q8_0", GGMLQuantizationType.Q8_0), ("q4_0", GGMLQuantizationType.Q4_0), ("bf16", GGMLQuantizationType.BF16)]:
        w.add_tensor(name, quants.quantize(data, kind), raw_dtype=kind)
    w.add_tensor("three", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    w.add_tensor("one", np.arange(5, dtype=np.float32))
    finish(w)


def split() -> None:
    w = GGUFWriter(HERE / "split.gguf", "llama", split_max_tensors=2)
    w.add_context_length(7)
    for i in range(5):
        w.add_tensor(f"t{i}", np.full((2, 4), i, dtype=np.float32))
    finish(w)


def finish(w: GGUFWriter) -> None:
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


all_types()
split()
