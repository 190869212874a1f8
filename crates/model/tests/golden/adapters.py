#!/usr/bin/env python3
"""Make LoRA adapters with random weights for some of the models of architectures.py, by Hugging Face PEFT, and the
logits that PEFT gives with them.

    pip install torch transformers peft gguf numpy
    python adapters.py          # writes adapters/, adapters.json beside this script

Logits are computed in float64; tolerances as in architectures.py. `llama-biases` is written as a GGUF adapter too, with
the names and the order of rows that llama.cpp's convert_lora_to_gguf.py gives.
"""

import json
import pathlib
import shutil

import gguf
import numpy as np
import torch
import transformers as T
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from architectures import HERE, TOKENS, HalfCache, errors
from make import POSITIONS, significant, write_json

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = ATTENTION + ["gate_proj", "up_proj", "down_proj"]
CASES = {
    "llama-biases": dict(r=3, lora_alpha=6, target_modules=ALL),
    "mistral": dict(r=5, lora_alpha=5, target_modules=ATTENTION + ["lm_head"], use_rslora=True),
    "qwen3": dict(r=4, lora_alpha=8, target_modules=ALL, rank_pattern={"layers.1.mlp.down_proj": 7, r"layers\.0\..*q_proj": 2},
                  alpha_pattern={"up_proj": 3}),
    "phi3": dict(r=3, lora_alpha=4, target_modules=["qkv_proj", "gate_up_proj", "down_proj"]),
    "gpt2": dict(r=3, lora_alpha=4, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True),
    "gpt-neox": dict(r=3, lora_alpha=4, target_modules=["query_key_value", "dense_4h_to_h"]),
}
GGUF_NAMES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
              "up_proj": "ffn_up", "down_proj": "ffn_down"}


def logits(model, config, half=False):
    cache = HalfCache(config=config) if half else None
    with torch.no_grad():
        return model(torch.tensor([TOKENS]), past_key_values=cache, use_cache=half).logits[0].numpy()


def write_gguf(folder: pathlib.Path, config, alpha: float):
    writer = gguf.GGUFWriter(folder / "adapter.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, value in load_file(folder / "adapter_model.safetensors").items():
        layer, _, module, rest = name.split("layers.")[1].split(".", 3)
        array = value.float().numpy()
        if rest.startswith("lora_B") and module in heads:
            # Rotary pairs lie side by side in such files.
            n = heads[module]
            array = array.reshape(n, 2, array.shape[0] // n // 2, -1).swapaxes(1, 2).reshape(array.shape)
        end = "lora_a" if rest.startswith("lora_A") else "lora_b"
        kind = np.float32 if end == "lora_a" else np.float16
        writer.add_tensor(f"blk.{layer}.{GGUF_NAMES[module]}.weight.{end}", np.ascontiguousarray(array.astype(kind)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(name: str) -> dict:
    base = HERE / "architectures" / name
    model = T.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64, attn_implementation="eager").eval()
    plain = logits(model, model.config)
    config = model.config
    torch.manual_seed(len(name))
    model = get_peft_model(model, LoraConfig(**CASES[name], init_lora_weights=False)).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_" in key:
                value.data = value.data.double()
                value.normal_(0, value.shape[-1] ** -0.5 if "lora_A" in key else 0.15)
                value.copy_(value.bfloat16())
    exact = logits(model, config)
    relative, largest = errors(logits(model, config, half=True), exact)
    folder = HERE / "adapters" / name
    shutil.rmtree(folder, ignore_errors=True)
    # The output matrix is not the adapter's, though PEFT would save it too.
    model.bfloat16().save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    exact[POSITIONS].astype("<f4").tofile(folder / "logits.f32")
    if name == "llama-biases":
        write_gguf(folder, config, CASES[name]["lora_alpha"])
    return {
        "name": name,
        "moves": significant(errors(plain, exact)[0]),
        "tolerance": {"relative_l2": significant(2 * relative), "largest": significant(2 * largest)},
    }


if __name__ == "__main__":
    write_json(HERE / "adapters.json", {"models": [make(name) for name in CASES]})
