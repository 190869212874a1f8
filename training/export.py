"""Write a checkpoint as a GGUF file (F16, or Q8_0 with --q8) that llama.cpp and Neap load.

    export.py --checkpoint build/phase3.npz --tokenizer build/tokenizer.json --out ../models/neap-tiny.gguf
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

import train
import vocabulary

CONTROL, NORMAL = 3, 1


def add_tokenizer(writer, path):
    data = json.loads(Path(path).read_text())
    vocabulary_ids = data["model"]["vocab"]
    tokens = sorted(vocabulary_ids, key=vocabulary_ids.get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if t in vocabulary.SPECIALS else NORMAL for t in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocabulary.BOS)
    writer.add_eos_token_id(vocabulary.EOS)
    writer.add_eot_token_id(vocabulary.IM_END)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(vocabulary.CHAT_TEMPLATE)


def add_metadata(writer, config):
    writer.add_name("Neap tiny")
    writer.add_description("Small stories, chats and long-range recall; trained by Neap's training/ from seed")
    writer.add_license("MIT OR Apache-2.0")
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    writer.add_vocab_size(config.vocab_size)


def interleave_heads(rows, heads):
    """Rows of halves (x0.. , y0..) of each head to pairs x0 y0 x1 y1 .., the file's RoPE layout."""
    out, cols = rows.shape
    return rows.reshape(heads, 2, out // heads // 2, cols).swapaxes(1, 2).reshape(out, cols)


def tensors(config, params):
    """(name, `[out, in]` array) of every tensor; vectors stay vectors."""
    yield "token_embd.weight", params["embedding"]
    yield "output_norm.weight", params["norm"]
    for i, layer in enumerate(params["layers"]):
        yield f"blk.{i}.attn_norm.weight", layer["attn_norm"]
        yield f"blk.{i}.attn_q.weight", interleave_heads(layer["wq"].T, config.heads)
        yield f"blk.{i}.attn_k.weight", interleave_heads(layer["wk"].T, config.kv_heads)
        yield f"blk.{i}.attn_v.weight", layer["wv"].T
        yield f"blk.{i}.attn_output.weight", layer["wo"].T
        yield f"blk.{i}.ffn_norm.weight", layer["ffn_norm"]
        yield f"blk.{i}.ffn_gate.weight", layer["gate"].T
        yield f"blk.{i}.ffn_up.weight", layer["up"].T
        yield f"blk.{i}.ffn_down.weight", layer["down"].T


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--q8", action="store_true")
    args = parser.parse_args()
    config, params, _ = train.load(args.checkpoint)
    writer = gguf.GGUFWriter(str(args.out), "llama")
    add_metadata(writer, config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if args.q8 else gguf.LlamaFileType.MOSTLY_F16)
    add_tokenizer(writer, args.tokenizer)
    for name, array in tensors(config, params):
        array = np.ascontiguousarray(np.asarray(array, np.float32))
        assert np.isfinite(array).all(), name
        if array.ndim == 1:
            writer.add_tensor(name, array)
        elif args.q8:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(args.out, args.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
