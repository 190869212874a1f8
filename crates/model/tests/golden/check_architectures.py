#!/usr/bin/env python3
"""Convert the models of architectures.py with `neap convert` and check that llama.cpp reads the files the same way.

    pip install llama-cpp-python
    python check_architectures.py path/to/neap    # writes its errors to peers.json

llama.cpp keeps keys and values in f16, as Neap does, and computes with BF16 weights.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np

HERE = pathlib.Path(__file__).parent
PROMPT = json.loads((HERE / "manifest.json").read_text())
# What llama.cpp computes otherwise than the models' authors, so that only the shape of the file is checked.
DIFFERS = {
    "llama-biases": "two tokens are nearer to each other than llama.cpp's rounding of activations to BF16",
    "olmoe": "llama.cpp takes for granted that there are as many KV heads as heads",
    "mistral": "the window, which llama.cpp does not read for this architecture",
    "gpt-neox": "GELU by its tanh form instead of the error function",
}


def errors(actual, expected):
    deviation = np.sqrt(np.mean(expected**2, axis=-1))
    difference = actual - expected
    return float((np.sqrt(np.mean(difference**2, axis=-1)) / deviation).max())


def check(neap, entry, folder):
    name = entry["name"]
    file = folder / f"{name}.gguf"
    done = subprocess.run([neap, "convert", HERE / "architectures" / name, file], capture_output=True, text=True)
    if done.returncode:
        return {"refused": done.stderr.strip().splitlines()[-1]}
    model = llama_cpp.Llama(str(file), n_ctx=128, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)
    model.eval(PROMPT["tokens"])
    logits = np.array(model.scores[PROMPT["positions"]], np.float64)
    expected = np.fromfile(HERE / "architectures" / name / "logits.f32", "<f4").reshape(len(PROMPT["positions"]), -1)
    chosen = []
    for _ in entry["greedy"]:
        chosen.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval(chosen[-1:])
    return {"relative_l2": float(f"{errors(logits, expected.astype(np.float64)):.2g}"),
            "greedy": "same" if chosen == entry["greedy"] else "differs",
            **({"because": DIFFERS[name]} if name in DIFFERS else {})}


def main() -> None:
    record = {"version": llama_cpp.__version__}
    with tempfile.TemporaryDirectory() as folder:
        for entry in json.loads((HERE / "architectures.json").read_text())["models"]:
            try:
                record[entry["name"]] = check(sys.argv[1], entry, pathlib.Path(folder))
            except ValueError:  # a file that llama.cpp refuses
                record[entry["name"]] = {"failed": "not loaded", "because": DIFFERS.get(entry["name"], "not known")}
            print(entry["name"], record[entry["name"]], flush=True)
    path = HERE / "peers.json"
    peers = json.loads(path.read_text())
    peers["llama.cpp, converted"] = record
    path.write_text(json.dumps(peers, indent=1) + "\n")


if __name__ == "__main__":
    main()
