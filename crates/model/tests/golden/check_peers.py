#!/usr/bin/env python3
"""Check the golden logits against other implementations, and write their errors to peers.json.

    python check_peers.py transformers    # needs torch and transformers; must agree to 1e-6
    python check_peers.py llama.cpp       # needs llama-cpp-python; its error is recorded beside Neap's tolerance

Transformers gets the unpacked weights in float64, with queries and keys reordered from the layout of GGUF files.
llama.cpp reads the files as they are, with keys and values in f16 as in Neap.
"""

import json
import sys

import numpy as np

from make import CASES, HERE, draw, hf_name, reference
from formats import unpack
from reference import errors

MANIFEST = json.loads((HERE / "manifest.json").read_text())
TOKENS = MANIFEST["tokens"]


def golden(entry) -> np.ndarray:
    return np.fromfile(HERE / entry["logits"], "<f4").reshape(-1, entry["vocab"]).astype(np.float64)


def halves_order(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of neighbouring pairs reordered so that a pair lies half a head apart."""
    pairs = weight.reshape(-1, head_dim // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def transformers_model(case, entry):
    import torch
    import transformers

    if case.container == "hf":
        return transformers.AutoModelForCausalLM.from_pretrained(HERE / entry["file"], dtype=torch.float64)
    c = case.config
    scaling = dict(c.rope_scaling or {})
    rope = {"rope_type": scaling.pop("type", "default"), "rope_theta": c.rope_base, **scaling}
    if "original_context" in rope:
        rope["original_max_position_embeddings"] = rope.pop("original_context")
    kind = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config}
    config = kind[case.architecture](
        vocab_size=c.vocab, hidden_size=c.hidden, intermediate_size=c.ffn, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_dim, rms_norm_eps=c.rms_eps,
        max_position_embeddings=c.context, rope_parameters=rope, tie_word_embeddings=c.tied,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).double()
    state = {}
    for name, (data, stored_kind) in draw(case, entry["seed"]).items():
        value = unpack(data, stored_kind)
        is_query_or_key = name.split(".")[1:2] in (["q"], ["k"])
        if c.rope_layout == "interleaved" and is_query_or_key:
            value = halves_order(value, c.head_dim)
        state[hf_name(name)] = torch.from_numpy(np.ascontiguousarray(value))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if c.tied else set()), (missing, unexpected)
    model.tie_weights()
    return model


def check_transformers(case, entry):
    import torch

    with torch.no_grad():
        logits = transformers_model(case, entry).eval()(torch.tensor([TOKENS])).logits[0].numpy()
    error, _ = errors(logits[MANIFEST["positions"]], golden(entry))
    # The golden file holds f32; inverse frequencies are f32 in transformers.
    assert error < 2e-6, f"{case.name}: transformers differs by {error}"
    return {"relative_l2": float(f"{error:.2g}")}


def check_llama_cpp(case, entry):
    import llama_cpp

    if case.container != "gguf":
        return None
    record = {}
    for label, flash in (("flash", True), ("plain", False)):
        model = llama_cpp.Llama(
            str(HERE / entry["file"]), n_ctx=512, n_threads=1, n_threads_batch=1, logits_all=True, flash_attn=flash,
            verbose=False,
        )
        model.eval(TOKENS)
        logits = np.array(model.scores[MANIFEST["positions"]], np.float64)
        relative, largest = errors(logits, golden(entry))
        record[label] = {"relative_l2": float(f"{relative:.2g}"), "largest": float(f"{largest:.2g}")}
        chosen = []
        for _ in entry["greedy"]:
            chosen.append(int(np.argmax(model.scores[model.n_tokens - 1])))
            model.eval(chosen[-1:])
        record[label]["greedy"] = "same" if chosen == entry["greedy"] else "differs"
    record["version"] = llama_cpp.__version__
    return record


def main() -> None:
    peer = sys.argv[1]
    check = {"transformers": check_transformers, "llama.cpp": check_llama_cpp}[peer]
    path = HERE / "peers.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    cases = {case.name: case for case in CASES}
    result = {}
    for entry in MANIFEST["models"]:
        assert np.allclose(
            reference(cases[entry["name"]], draw(cases[entry["name"]], entry["seed"])).forward(TOKENS)[MANIFEST["positions"]],
            golden(entry), rtol=1e-5, atol=1e-6,
        ), f"{entry['name']}: the golden file is not what make.py makes"
        outcome = check(cases[entry["name"]], entry)
        if outcome:
            result[entry["name"]] = outcome
            print(entry["name"], outcome, "tolerance", entry["tolerance"], flush=True)
    record[peer] = result
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
