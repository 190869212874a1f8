"""Compare a GGUF file under llama.cpp (llama-cpp-python) with the checkpoint under JAX.

    python check_llama_cpp.py --gguf FILE tokens.json     # in an environment with llama-cpp-python

`tokens.json` comes from `reference.py`: texts with their token ids, and greedy continuations.
"""

import argparse
import json
from pathlib import Path

import llama_cpp


def greedy(model, ids, count):
    model.reset()
    model.eval(ids)
    out = []
    for _ in range(count):
        scores = model.scores[model.n_tokens - 1]
        out.append(int(scores.argmax()))
        model.eval([out[-1]])
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("reference", type=Path)
    args = parser.parse_args()
    model = llama_cpp.Llama(args.gguf, n_ctx=2048, n_threads=2, logits_all=True, verbose=False)
    reference = json.loads(args.reference.read_text())
    wrong = 0
    for entry in reference["texts"]:
        ids = model.tokenize(entry["text"].encode(), add_bos=True, special=True)
        wrong += ids != entry["ids"]
        if ids != entry["ids"]:
            print("tokens differ:", repr(entry["text"][:60]), ids[:20], entry["ids"][:20])
    print(len(reference["texts"]) - wrong, "of", len(reference["texts"]), "texts tokenize the same")
    for entry in reference["greedy"]:
        out = greedy(model, entry["prompt_ids"], len(entry["ids"]))
        same = next((i for i, (a, b) in enumerate(zip(out, entry["ids"])) if a != b), len(out))
        print(f"greedy: {same} of {len(out)} tokens the same after {len(entry['prompt_ids'])} of prompt")


if __name__ == "__main__":
    main()
