#!/usr/bin/env python3
"""Make a tiny model of each architecture with Hugging Face transformers, and the logits that it gives for them.

    pip install torch transformers numpy
    python architectures.py              # writes architectures/, architectures.json beside this script
    python architectures.py gemma2 phi3  # only these

Weights are random, in BF16; logits are computed in float64. The expected error is what rounding keys and values to f16
alone does to them, measured with the same implementation; the tolerance is twice that.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers as T
T.utils.logging.disable_progress_bar()
from transformers.cache_utils import DynamicCache

from make import GREEDY, POSITIONS, VOCAB, significant, tokenizer_json, write_json

HERE = pathlib.Path(__file__).parent
TOKENS = json.loads((HERE / "manifest.json").read_text())["tokens"]
BASE = dict(vocab_size=VOCAB, max_position_embeddings=128, bos_token_id=256, eos_token_id=257, pad_token_id=None)
# Odd sizes; windows shorter than the prompt.
SIZES = dict(hidden_size=36, intermediate_size=52, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2)
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
LONG = dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.1, 1.2], long_factor=[1.0, 1.5, 4.0],
            partial_rotary_factor=0.75)


def plain(**options):
    return dict(rope_type="default", rope_theta=10000.0, **options)


CASES = {
    "mistral": lambda: T.MistralConfig(**BASE, **SIZES, head_dim=8, sliding_window=9, tie_word_embeddings=False),
    "llama-biases": lambda: T.LlamaConfig(**BASE, **SIZES, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3),
    "llama-dynamic": lambda: T.LlamaConfig(**BASE, **SIZES, rope_parameters=plain() | dict(rope_type="dynamic", factor=4.0)),
    "mixtral": lambda: T.MixtralConfig(**BASE, **{**SMALL, "intermediate_size": 28}, num_local_experts=5, num_experts_per_tok=2),
    "qwen2-moe": lambda: T.Qwen2MoeConfig(
        **BASE, **{**SMALL, "intermediate_size": 44}, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=20,
        shared_expert_intermediate_size=28),
    "qwen3": lambda: T.Qwen3Config(**BASE, **SIZES, head_dim=10, tie_word_embeddings=True),
    "qwen3-moe": lambda: T.Qwen3MoeConfig(
        **BASE, **{**SMALL, "intermediate_size": 44}, head_dim=12, num_experts=6, num_experts_per_tok=3,
        moe_intermediate_size=20, norm_topk_prob=True),
    "gemma2": lambda: T.Gemma2Config(
        **BASE, **{**SIZES, "num_hidden_layers": 3}, head_dim=10, query_pre_attn_scalar=10, sliding_window=9,
        attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
    "gemma3": lambda: T.Gemma3TextConfig(
        **BASE, **{**SMALL, "num_hidden_layers": 7, "intermediate_size": 40, "num_attention_heads": 2,
                   "num_key_value_heads": 1}, head_dim=16, query_pre_attn_scalar=16, sliding_window=9,
        rope_parameters={"full_attention": dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                         "sliding_attention": dict(rope_type="default", rope_theta=10000.0)}),
    "phi3": lambda: T.Phi3Config(**BASE, **{**SIZES, "hidden_size": 48}, original_max_position_embeddings=24,
                                 rope_parameters=LONG),
    "granite": lambda: T.GraniteConfig(
        **BASE, **SIZES, attention_multiplier=0.2, embedding_multiplier=3.0, residual_multiplier=0.7, logits_scaling=2.0),
    "olmo2": lambda: T.Olmo2Config(**BASE, **SIZES),
    "olmoe": lambda: T.OlmoeConfig(**BASE, **{**SMALL, "intermediate_size": 28}, num_experts=5, num_experts_per_tok=2),
    "stablelm": lambda: T.StableLmConfig(
        **BASE, **{**SIZES, "hidden_size": 48}, use_qkv_bias=True, rope_parameters=plain(partial_rotary_factor=0.5)),
    "smollm3": lambda: T.SmolLM3Config(**BASE, **{**SMALL, "num_hidden_layers": 5, "intermediate_size": 40}, no_rope_layer_interval=4),
    "gpt2": lambda: T.GPT2Config(vocab_size=VOCAB, n_embd=36, n_layer=2, n_head=3, n_positions=64, n_inner=60,
                                 bos_token_id=256, eos_token_id=257),
    "gpt-neox": lambda: T.GPTNeoXConfig(
        **{k: v for k, v in BASE.items()}, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=60,
        rope_parameters=plain(partial_rotary_factor=0.5)),
}


class HalfCache(DynamicCache):
    """Keys and values as Neap holds them."""

    def update(self, keys, values, *args, **kwargs):
        return super().update(keys.half().to(keys.dtype), values.half().to(values.dtype), *args, **kwargs)


def build(name: str, seed: int):
    torch.manual_seed(seed)
    config = CASES[name]()
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = T.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    less_one = name.startswith("gemma")
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("bias"):
                value.uniform_(-0.5, 0.5)
            elif value.dim() == 1:
                value.uniform_(-0.5, 0.5) if less_one else value.uniform_(0.5, 1.5)
            elif "embed" in key or "wte" in key or "wpe" in key:
                value.normal_(0, 0.1)
            else:
                value.normal_(0, (value.shape[0] if name == "gpt2" else value.shape[-1]) ** -0.5)
            value.copy_(value.bfloat16())
    return model.double()


def logits(model, tokens, half=False):
    cache = HalfCache(config=model.config) if half else None
    with torch.no_grad():
        return model(torch.tensor([tokens]), past_key_values=cache, use_cache=half).logits[0].numpy()


def errors(actual, expected):
    deviation = np.sqrt(np.mean(expected**2, axis=-1))
    difference = actual - expected
    relative = np.sqrt(np.mean(difference**2, axis=-1)) / deviation
    return float(relative.max()), float((np.abs(difference).max(axis=-1) / deviation).max())


def greedy(model, tokens, least_lead):
    chosen = []
    for _ in range(GREEDY):
        last = logits(model, tokens + chosen)[-1]
        second, first = np.sort(last)[-2:]
        if first - second < least_lead * np.sqrt(np.mean(last**2)):
            return None
        chosen.append(int(np.argmax(last)))
    return chosen


def make(name: str) -> dict:
    for seed in range(200):
        model = build(name, seed)
        exact = logits(model, TOKENS)
        relative, largest = errors(logits(model, TOKENS, half=True), exact)
        if relative > 4e-3:
            continue  # an expert or a cap on the edge
        chosen = greedy(model, TOKENS, 8 * relative)
        if chosen and len(set(chosen)) >= 2:
            break
    else:
        raise SystemExit(f"{name}: no seed with clear choices")
    folder = HERE / "architectures" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.bfloat16().save_pretrained(folder)
    for other in folder.glob("generation_config.json"):
        other.unlink()
    tokenizer = tokenizer_json()
    # The `tokenizers` library gives added tokens their ids only if the vocabulary holds them.
    tokenizer["model"]["vocab"] |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>",
                                                  "tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "logits.f32").write_bytes(exact[POSITIONS].astype("<f4").tobytes())
    return {
        "name": name, "seed": seed, "greedy": chosen,
        "expected_error": {"relative_l2": significant(relative), "largest": significant(largest)},
        "tolerance": {"relative_l2": significant(2 * relative), "largest": significant(2 * largest)},
    }


def main() -> None:
    wanted = sys.argv[1:] or list(CASES)
    path = HERE / "architectures.json"
    known = {entry["name"]: entry for entry in json.loads(path.read_text())["models"]} if path.exists() else {}
    for name in wanted:
        known[name] = make(name)
        print(json.dumps(known[name]), flush=True)
        write_json(path, {"models": [known[name] for name in CASES if name in known]})


if __name__ == "__main__":
    main()
