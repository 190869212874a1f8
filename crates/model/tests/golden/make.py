#!/usr/bin/env python3
"""Make the tiny models and their golden logits. Needs numpy and gguf; see README.md.

    python make.py              # writes models/, logits/ and manifest.json beside this script
    python make.py f32 qwen2    # only these
"""

import dataclasses
import json
import pathlib
import shutil
import struct
import sys

import gguf
import numpy as np

from formats import Q, is_quantized, pack, unpack
from reference import AS_NEAP, Config, Model, errors, llama3_divisors

HERE = pathlib.Path(__file__).parent
VOCAB = 267  # odd, so that no tile of rows comes out even
TOKENS = 40
# Both sides of the edge between the first two blocks of 32 tokens, and the ends.
POSITIONS = [0, 1, 15, 31, 32, 39]
GREEDY = 8
LLAMA3 = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 256}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model to make: its config, the type of each matrix by the end of its name, and where it is written."""

    name: str
    config: Config
    kind: object
    kinds: dict = dataclasses.field(default_factory=dict)
    architecture: str = "llama"
    container: str = "gguf"  # or "hf"
    shards: int = 1


def config(**sizes) -> Config:
    return Config(vocab=VOCAB, **sizes)


SMALL = dict(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=48)
# Rows of 256 for the K formats; the 64 columns of `o` and `down` are no multiple of it and stay Q8_0.
K_SIZES = dict(hidden=256, layers=2, heads=4, kv_heads=1, head_dim=16, ffn=64)
K_KINDS = {"o": Q.Q8_0, "down": Q.Q8_0}

CASES = [
    Case("f32", config(hidden=45, layers=2, heads=3, kv_heads=1, head_dim=20, ffn=73), Q.F32),
    Case("f16", config(hidden=54, layers=2, heads=6, kv_heads=3, head_dim=16, ffn=88, tied=False), Q.F16),
    Case("bf16", config(hidden=51, layers=2, heads=3, kv_heads=3, head_dim=40, ffn=60, rope_base=5e5), Q.BF16),
    Case("q8_0", config(hidden=96, layers=2, heads=6, kv_heads=2, head_dim=16, ffn=160), Q.Q8_0),
    Case("q4_0", config(hidden=96, layers=3, heads=6, kv_heads=2, head_dim=16, ffn=160, tied=False), Q.Q4_0),
    Case("q4_k", config(**K_SIZES), Q.Q4_K, K_KINDS),
    Case("q5_k", config(**{**K_SIZES, "heads": 2}), Q.Q5_K, K_KINDS),
    Case("q6_k", config(**{**K_SIZES, "ffn": 32, "heads": 1, "head_dim": 32}), Q.Q6_K, K_KINDS),
    Case(
        "mixed",  # two super-blocks in a row, and every quantized type that no other model has
        config(hidden=512, layers=1, heads=2, kv_heads=1, head_dim=16, ffn=32),
        Q.Q4_1,
        {"q": Q.Q2_K, "k": Q.Q3_K, "v": Q.IQ4_XS, "o": Q.MXFP4, "gate": Q.Q5_0, "up": Q.Q5_1, "down": Q.IQ4_NL},
    ),
    Case("rope-linear", config(**SMALL, rope_scaling={"type": "linear", "factor": 4.0}), Q.F16),
    Case("rope-llama3", config(**SMALL, rope_scaling=LLAMA3), Q.F16),
    Case("rope-yarn", config(**SMALL, rope_scaling={"type": "yarn", "factor": 4.0, "original_context": 128}), Q.F16),
    Case("qwen2", config(**{**SMALL, "hidden": 64}, rope_layout="halves", qkv_bias=True), Q.F16, architecture="qwen2"),
    Case("qwen3", config(**SMALL, rope_layout="halves", qk_norm=True), Q.F16, architecture="qwen3"),
    Case(
        "hf-bf16",  # two shards with an index, untied, Llama 3 scaling
        config(**{**SMALL, "hidden": 36, "heads": 6, "kv_heads": 3}, rope_layout="halves", tied=False, rope_scaling=LLAMA3),
        Q.BF16,
        container="hf",
        shards=2,
    ),
    Case("hf-f32", config(hidden=24, layers=2, heads=3, kv_heads=1, head_dim=16, ffn=44, rope_layout="halves"), Q.F32, container="hf"),
]


def matrices(c: Config):
    """Short name, rows and columns of each matrix."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    yield "embed", c.vocab, c.hidden
    for layer in range(c.layers):
        yield f"{layer}.q", q, c.hidden
        yield f"{layer}.k", kv, c.hidden
        yield f"{layer}.v", kv, c.hidden
        yield f"{layer}.o", c.hidden, q
        yield f"{layer}.gate", c.ffn, c.hidden
        yield f"{layer}.up", c.ffn, c.hidden
        yield f"{layer}.down", c.hidden, c.ffn
    if not c.tied:
        yield "head", c.vocab, c.hidden


def vectors(c: Config):
    """Short name and length of each norm and bias."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    for layer in range(c.layers):
        yield f"{layer}.attn_norm", c.hidden
        yield f"{layer}.ffn_norm", c.hidden
        if c.qkv_bias:
            yield from ((f"{layer}.q.bias", q), (f"{layer}.k.bias", kv), (f"{layer}.v.bias", kv))
        if c.qk_norm:
            yield from ((f"{layer}.q_norm", c.head_dim), (f"{layer}.k_norm", c.head_dim))
    yield "norm", c.hidden


def draw(case: Case, seed: int):
    """Random tensors as they are stored: short name -> (data, type)."""
    rng = np.random.default_rng([seed, *case.name.encode()])
    stored = {}
    for name, rows, cols in matrices(case.config):
        part = name.split(".")[-1]
        kind = case.kinds.get(part, case.kind)
        # Each product keeps the variance, so attention is neither flat nor all on one token; embeddings are smaller
        # than what is added to them, so that a tied head does not just repeat the token.
        deviation = 0.1 if part == "embed" else cols**-0.5
        stored[name] = (pack(rng.standard_normal((rows, cols)) * deviation, kind), kind)
    for name, length in vectors(case.config):
        low, high = (-0.5, 0.5) if name.endswith("bias") else (0.5, 1.5)
        stored[name] = (rng.uniform(low, high, length).astype(np.float32), Q.F32)
    return stored


def reference(case: Case, stored) -> Model:
    weights = {name: unpack(data, kind) for name, (data, kind) in stored.items()}
    quantized = {name for name, (_, kind) in stored.items() if is_quantized(kind)}
    return Model(case.config, weights, quantized)


def pieces():
    """A SentencePiece vocabulary: control tokens, bytes, and a few pieces that merge."""
    kinds = gguf.TokenType
    words = ["\u2581", "t", "h", "e", "\u2581t", "he", "\u2581the", "a"]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + words
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256 + [kinds.NORMAL] * len(words)
    scores = [0.0] * 259 + [-1.0 - rank for rank in range(len(words))]
    assert len(tokens) == VOCAB
    return [token.encode() for token in tokens], scores, [int(kind) for kind in types]


def write_gguf(case: Case, stored, path: pathlib.Path) -> None:
    c = case.config
    writer = gguf.GGUFWriter(path, case.architecture)
    writer.add_name(f"golden {case.name}")
    writer.add_context_length(c.context)
    writer.add_embedding_length(c.hidden)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.ffn)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_layer_norm_rms_eps(c.rms_eps)
    writer.add_vocab_size(c.vocab)
    tokens, scores, types = pieces()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    scaling = c.rope_scaling or {"type": "none"}
    if scaling["type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(c).astype(np.float32))
    elif scaling["type"] != "none":
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
        if "original_context" in scaling:
            writer.add_rope_scaling_orig_ctx_len(scaling["original_context"])
    for name, (data, kind) in stored.items():
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GGUF_NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
              "down": "ffn_down", "attn_norm": "attn_norm", "ffn_norm": "ffn_norm", "q_norm": "attn_q_norm",
              "k_norm": "attn_k_norm"}
HF_NAMES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
            "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj", "attn_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm", "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}


def gguf_name(name: str) -> str:
    top = {"embed": "token_embd.weight", "head": "output.weight", "norm": "output_norm.weight"}
    if name in top:
        return top[name]
    layer, part, *bias = name.split(".")
    return f"blk.{layer}.{GGUF_NAMES[part]}.{'bias' if bias else 'weight'}"


def hf_name(name: str) -> str:
    top = {"embed": "model.embed_tokens.weight", "head": "lm_head.weight", "norm": "model.norm.weight"}
    if name in top:
        return top[name]
    layer, part, *bias = name.split(".")
    return f"model.layers.{layer}.{HF_NAMES[part]}.{'bias' if bias else 'weight'}"


def write_safetensors(path: pathlib.Path, tensors: dict) -> int:
    """Eight bytes of header length, a JSON header, then the data. Returns the bytes of data."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (array, kind) in tensors.items():
        raw = array.tobytes()
        shape = list(array.shape)
        if kind == Q.BF16:
            shape[-1] //= 2  # the array holds bytes
        header[name] = {"dtype": kind.name, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return len(data)


def hf_config(c: Config, kind) -> dict:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c.vocab, "hidden_size": c.hidden,
        "intermediate_size": c.ffn, "num_hidden_layers": c.layers, "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim, "hidden_act": "silu", "rms_norm_eps": c.rms_eps,
        "max_position_embeddings": c.context, "rope_theta": c.rope_base, "tie_word_embeddings": c.tied,
        "attention_bias": False, "mlp_bias": False, "bos_token_id": 256, "eos_token_id": 257,
        "torch_dtype": {"BF16": "bfloat16", "F32": "float32"}[kind.name],
    }
    if c.rope_scaling:
        s = c.rope_scaling
        config["rope_scaling"] = {
            "rope_type": s["type"], "factor": s["factor"], "low_freq_factor": s["low_freq_factor"],
            "high_freq_factor": s["high_freq_factor"], "original_max_position_embeddings": s["original_context"],
        }
    return config


def byte_characters():
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + rank) for rank, byte in enumerate(others)}


def tokenizer_json() -> dict:
    """A byte-level BPE tokenizer of VOCAB tokens: bytes, two special tokens, nine merges."""
    characters = byte_characters()
    vocab = {characters[byte]: byte for byte in range(256)}
    space = characters[32]
    merges = [["h", "e"], [space, "t"], [space + "t", "he"], ["i", "n"], ["a", "n"], ["an", "d"], [space, "and"],
              ["e", "r"], [space, "a"]]
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    for rank, (left, right) in enumerate(merges):
        vocab[left + right] = 258 + rank
    assert len(vocab) + len(special) == VOCAB
    added = [{"id": 256 + rank, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for rank, text in enumerate(special)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": merges},
    }


def write_json(path: pathlib.Path, value) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_hf(case: Case, stored, path: pathlib.Path) -> None:
    path.mkdir(parents=True)
    write_json(path / "config.json", hf_config(case.config, case.kind))
    write_json(path / "tokenizer.json", tokenizer_json())
    write_json(path / "tokenizer_config.json", {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>",
                                                "tokenizer_class": "PreTrainedTokenizerFast"})
    tensors = {hf_name(name): tensor for name, tensor in stored.items()}
    if case.shards == 1:
        write_safetensors(path / "model.safetensors", tensors)
        return
    names, weight_map, total = list(tensors), {}, 0
    for shard in range(case.shards):
        file = f"model-{shard + 1:05}-of-{case.shards:05}.safetensors"
        mine = names[shard * len(names) // case.shards:(shard + 1) * len(names) // case.shards]
        total += write_safetensors(path / file, {name: tensors[name] for name in mine})
        weight_map |= {name: file for name in mine}
    write_json(path / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def significant(x: float) -> float:
    """Rounded up to two digits, so that the manifest reads well and a tolerance never gets smaller."""
    step = 10.0 ** (np.floor(np.log10(x)) - 1)
    return float(f"{np.ceil(x / step) * step:.2g}")


def find(case: Case, tokens):
    """A seed whose greedy choices are clear and various: each first choice leads by three times the expected error."""
    for seed in range(5000):
        stored = draw(case, seed)
        model = reference(case, stored)
        exact = model.forward(tokens)
        relative, largest = errors(model.forward(tokens, AS_NEAP), exact)
        greedy = model.greedy(tokens, GREEDY, least_lead=3 * relative)
        if greedy and len(set(greedy)) >= 3:
            return seed, stored, exact, relative, largest, greedy
    raise SystemExit(f"{case.name}: no seed with clear choices")


def make(case: Case, tokens) -> dict:
    seed, stored, exact, relative, largest, greedy = find(case, tokens)
    file = f"models/{case.name}" + (".gguf" if case.container == "gguf" else "")
    (write_gguf if case.container == "gguf" else write_hf)(case, stored, HERE / file)
    logits = f"logits/{case.name}.f32"
    (HERE / logits).write_bytes(exact[POSITIONS].astype("<f4").tobytes())
    return {
        "name": case.name, "format": "mixed" if case.name == "mixed" else case.kind.name, "file": file,
        "logits": logits, "vocab": VOCAB, "seed": seed, "greedy": greedy,
        "expected_error": {"relative_l2": significant(relative), "largest": significant(largest)},
        # Twice what the intended roundings alone give; f32 sums and other orders of summing stay far below that.
        "tolerance": {"relative_l2": significant(2 * relative), "largest": significant(2 * largest)},
    }


def main() -> None:
    wanted = sys.argv[1:] or [case.name for case in CASES]
    path = HERE / "manifest.json"
    known = {entry["name"]: entry for entry in json.loads(path.read_text())["models"]} if path.exists() else {}
    tokens = [1] + [int(token) for token in np.random.default_rng(7).integers(0, VOCAB, TOKENS - 1)]
    for folder in ("models", "logits"):
        (HERE / folder).mkdir(exist_ok=True)
    for case in (case for case in CASES if case.name in wanted):
        shutil.rmtree(HERE / "models" / case.name, ignore_errors=True)
        known[case.name] = make(case, tokens)
        print(json.dumps(known[case.name]), flush=True)
    entries = [known[case.name] for case in CASES if case.name in known]
    write_json(path, {"tokens": tokens, "positions": POSITIONS, "models": entries})


if __name__ == "__main__":
    main()
