#!/usr/bin/env python3
"""Make tiny models whose matrices are packed in 4 bits as GPTQ and AWQ pack them, and what they unpack to.

    pip install torch transformers safetensors
    python packed.py    # writes packed/ beside this script

Layouts are those of AutoGPTQ and AutoAWQ ("gemm"); weight = scale * (code - zero). Codes, zeros and scales are random.
`expected.safetensors` holds two matrices of layer 0 as they are, in F32, and `logits.f32` the logits that Hugging Face
transformers gives in float64 for the unpacked model.
"""

import json
import shutil

import numpy as np
import torch
import transformers as T
from safetensors.torch import load_file, save_file

from architectures import BASE, HERE, TOKENS, logits, plain
from make import POSITIONS, tokenizer_json, write_json

GROUP = 32
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
CASES = {
    # Zeros are all 8; groups are runs of inputs.
    "gptq": dict(quant_method="gptq", bits=4, group_size=GROUP, sym=True, desc_act=False),
    # Inputs lie in groups by their weight.
    "gptq-act-order": dict(quant_method="gptq", bits=4, group_size=GROUP, sym=False, desc_act=True,
                           checkpoint_format="gptq_v2"),
    "awq": dict(quant_method="awq", bits=4, group_size=GROUP, zero_point=True, version="gemm"),
}
EXPECTED = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"]


def words(codes: np.ndarray, order) -> torch.Tensor:
    """Eight codes of the last dimension in a word, code order[i] in bits 4i to 4i + 3."""
    eights = codes.reshape(*codes.shape[:-1], -1, 8).astype(np.uint32)
    packed = sum(eights[..., place] << np.uint32(4 * i) for i, place in enumerate(order))
    return torch.from_numpy(packed.astype(np.uint32).view(np.int32).copy())


def pack(rng, case: dict, inputs: int, outputs: int):
    """The packed tensors by suffix, and the matrix [outputs, inputs] in float64."""
    groups = inputs // GROUP
    codes = rng.integers(0, 16, (inputs, outputs))
    zeros = np.full((groups, outputs), 8) if case.get("sym") else rng.integers(6, 11, (groups, outputs))
    scales = (rng.uniform(0.5, 1.5, (groups, outputs)) * 0.22 / np.sqrt(inputs)).astype(np.float16)
    group_of = np.arange(inputs) // GROUP
    if case.get("desc_act"):
        rng.shuffle(group_of)
    matrix = scales.astype(np.float64)[group_of] * (codes - zeros[group_of])
    straight = range(8)
    if case["quant_method"] == "awq":
        tensors = {"qweight": words(codes, AWQ_ORDER), "qzeros": words(zeros, AWQ_ORDER)}
    else:
        less = 0 if case.get("checkpoint_format") == "gptq_v2" else 1
        tensors = {"qweight": words(codes.T, straight).T.contiguous(), "qzeros": words(zeros - less, straight),
                   "g_idx": torch.from_numpy(group_of.astype(np.int32))}
    return tensors | {"scales": torch.from_numpy(scales)}, matrix.T


def make(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(11)
    rng = np.random.default_rng(11)
    config = T.LlamaConfig(**BASE, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=plain())
    model = T.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for value in model.parameters():
        value.data.normal_(0, 0.1) if value.dim() == 2 else value.data.uniform_(0.5, 1.5)
        value.data.copy_(value.data.half())
    folder = HERE / "packed" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    model, expected = model.double(), {}
    for key, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or key == "lm_head":
            continue
        packed, matrix = pack(rng, case, module.in_features, module.out_features)
        del tensors[f"{key}.weight"]
        tensors |= {f"{key}.{suffix}": tensor for suffix, tensor in packed.items()}
        module.weight.data = torch.from_numpy(matrix.copy())
        if key in EXPECTED:
            expected[key] = torch.from_numpy(np.ascontiguousarray(matrix, np.float32))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(expected, folder / "expected.safetensors")
    (folder / "logits.f32").write_bytes(logits(model, TOKENS)[POSITIONS].astype("<f4").tobytes())
    for other in folder.glob("generation_config.json"):
        other.unlink()
    written = json.loads((folder / "config.json").read_text())
    if name == "gptq":  # as older folders have it
        write_json(folder / "quantize_config.json", {k: v for k, v in case.items() if k != "quant_method"})
    else:
        written["quantization_config"] = case
    write_json(folder / "config.json", written)
    tokenizer = tokenizer_json()
    tokenizer["model"]["vocab"] |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    write_json(folder / "tokenizer.json", tokenizer)


if __name__ == "__main__":
    for name in CASES:
        make(name)
