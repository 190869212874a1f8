#!/usr/bin/env python3
"""Make a GGUF file of a given shape and weight type with random weights, for speed measurements.

Speed does not depend on the values of the weights, only on their layout, as long as nothing overflows.
So blocks are filled with random bytes, and only their scales are chosen (standard deviation about 0.02).
The vocabulary is synthetic: control tokens, the 256 bytes, single characters, then numbered words.

    python make_model.py --shape 1b --type q4_0        # writes ~/.cache/neap-bench/llama-1b-q4_0.gguf
    python make_model.py --list
"""

import argparse
import dataclasses
import pathlib
import sys
import time

import gguf
import numpy as np

Q = gguf.GGMLQuantizationType
CACHE = pathlib.Path.home() / ".cache" / "neap-bench"
WEIGHT_STD = 0.02


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    context: int = 32768

    def parameters(self) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        heads = 1 if self.tied else 2
        return self.layers * layer + heads * self.vocab * self.hidden + self.hidden


SHAPES = {
    # 1.039 B parameters: the layers of Llama 3.2 1B with a 32,000-token vocabulary and tied embeddings.
    "1b": Shape(16, 2048, 8192, 32, 8, 64, 32000, True),
    # 1.236 B parameters: Llama 3.2 1B itself, with its 128,256 tokens.
    "1b-128k": Shape(16, 2048, 8192, 32, 8, 64, 128256, True),
    # 0.10 B parameters: for trying the scripts quickly.
    "100m": Shape(12, 768, 2048, 12, 4, 64, 32000, True),
    # 7.24 B parameters: Mistral 7B.
    "7b": Shape(32, 4096, 14336, 32, 8, 128, 32000, False),
}

TYPES = ("f16", "bf16", "q8_0", "q4_0", "q4_k", "q5_k", "q6_k", "q4_k_m")


def more_bits(layer: int, layers: int) -> bool:
    """The layers whose value and down projections llama.cpp's Q4_K_M mix keeps at 6 bits."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensor_type(name: str, mix: str, layer: int, layers: int):
    """The type that `llama-quantize` gives a tensor in a file of this mix, for tied embeddings."""
    is_head = name in ("token_embd.weight", "output.weight")
    if mix in ("f16", "bf16", "q8_0"):
        return Q[mix.upper()]
    if is_head:
        return Q.Q6_K
    if mix == "q4_k_m":
        six = ("attn_v" in name or "ffn_down" in name) and more_bits(layer, layers)
        return Q.Q6_K if six else Q.Q4_K
    return Q[mix.upper()]


def scaled_halves(rng, count: int, value: float) -> np.ndarray:
    """`count` f16 numbers around `value`, as bytes."""
    return (value * rng.uniform(0.75, 1.25, count)).astype(np.float16).view(np.uint8).reshape(count, 2)


def random_blocks(rng, kind, rows: int, cols: int) -> np.ndarray:
    """Rows of random weights of a type, as bytes [rows, row bytes] (f16: as values)."""
    if kind == Q.F16:
        return (rng.standard_normal((rows, cols), np.float32) * WEIGHT_STD).astype(np.float16)
    if kind == Q.BF16:
        values = rng.standard_normal((rows, cols), np.float32) * np.float32(WEIGHT_STD)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    count = rows * cols // block_len
    blocks = np.frombuffer(rng.bytes(count * block_bytes), np.uint8).reshape(count, block_bytes).copy()
    if kind == Q.Q4_0:  # scale, 16 bytes of nibbles around 8
        blocks[:, :2] = scaled_halves(rng, count, WEIGHT_STD / 4.6)
    elif kind == Q.Q8_0:  # scale, 32 signed bytes
        blocks[:, :2] = scaled_halves(rng, count, WEIGHT_STD / 74.0)
    elif kind == Q.Q4_K:  # scale, scale of minimums, 6-bit scales and minimums, nibbles
        blocks[:, :2] = scaled_halves(rng, count, WEIGHT_STD / 320.0)
        blocks[:, 2:4] = scaled_halves(rng, count, WEIGHT_STD / 320.0 * 7.5)
    elif kind == Q.Q5_K:
        blocks[:, :2] = scaled_halves(rng, count, WEIGHT_STD / 640.0)
        blocks[:, 2:4] = scaled_halves(rng, count, WEIGHT_STD / 640.0 * 15.5)
    elif kind == Q.Q6_K:  # low bits, high bits, 16 signed scales, scale
        blocks[:, 208:210] = scaled_halves(rng, count, WEIGHT_STD / 1400.0)
    else:
        raise ValueError(f"no random blocks for {kind.name}")
    return blocks.reshape(rows, cols // block_len * block_bytes)


def vocabulary(size: int):
    """Tokens, scores and types of a synthetic SentencePiece vocabulary."""
    kinds = gguf.TokenType
    tokens = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{byte:02X}>".encode() for byte in range(256)]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256
    tokens += ["\u2581".encode()] + [bytes([c]) for c in range(33, 127)]
    tokens += [f"\u2581w{number}".encode() for number in range(size - len(tokens))]
    types += [kinds.NORMAL] * (size - len(types))
    scores = [0.0] * 259 + [-float(rank) for rank in range(size - 259)]
    return tokens, scores, [int(kind) for kind in types]


def write_metadata(writer, shape: Shape, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    tokens, scores, types = vocabulary(shape.vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def tensors(shape: Shape):
    """Name, layer, rows and columns of each matrix, then the norms (rows = 0), in file order."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "token_embd.weight", 0, shape.vocab, shape.hidden
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", layer, 0, shape.hidden
        yield block + "attn_q.weight", layer, q, shape.hidden
        yield block + "attn_k.weight", layer, kv, shape.hidden
        yield block + "attn_v.weight", layer, kv, shape.hidden
        yield block + "attn_output.weight", layer, shape.hidden, q
        yield block + "ffn_norm.weight", layer, 0, shape.hidden
        yield block + "ffn_gate.weight", layer, shape.ffn, shape.hidden
        yield block + "ffn_up.weight", layer, shape.ffn, shape.hidden
        yield block + "ffn_down.weight", layer, shape.hidden, shape.ffn
    yield "output_norm.weight", 0, 0, shape.hidden
    if not shape.tied:
        yield "output.weight", 0, shape.vocab, shape.hidden


def make(path: pathlib.Path, shape: Shape, mix: str, seed: int) -> None:
    rng = np.random.Generator(np.random.SFC64(seed))
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama", use_temp_file=False)
    write_metadata(writer, shape, path.stem)
    for name, layer, rows, cols in tensors(shape):
        if rows == 0:
            writer.add_tensor(name, np.ones(cols, np.float32))
            continue
        kind = tensor_type(name, mix, layer, shape.layers)
        writer.add_tensor(name, random_blocks(rng, kind, rows, cols), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)


def ensure(shape_name: str, mix: str, folder: pathlib.Path = CACHE, seed: int = 1) -> pathlib.Path:
    """The file of this shape and type, made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"llama-{shape_name}-{mix}.gguf"
    if not path.exists():
        start = time.monotonic()
        make(path, SHAPES[shape_name], mix, seed)
        print(f"made {path}: {path.stat().st_size / 2**20:.0f} MiB, "
              f"{SHAPES[shape_name].parameters() / 1e9:.3f} B parameters, {time.monotonic() - start:.0f} s",
              file=sys.stderr)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--type", choices=TYPES, action="append", help="may be given several times; default q4_0")
    parser.add_argument("--dir", type=pathlib.Path, default=CACHE, help="folder for the files (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print the shapes and stop")
    args = parser.parse_args()
    if args.list:
        for name, shape in SHAPES.items():
            print(f"{name:8} {shape.parameters() / 1e9:6.3f} B  {shape}")
        return
    for mix in args.type or ["q4_0"]:
        print(ensure(args.shape, mix, args.dir, args.seed))


if __name__ == "__main__":
    main()
