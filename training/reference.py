"""Write token ids of several texts and greedy continuations of a checkpoint, for other engines to match.

    reference.py --checkpoint build/phase3.npz --tokenizer build/tokenizer.json --models ../models --out reference.json
"""

import argparse
import json
from pathlib import Path

import numpy as np

import evaluate
import train
import vocabulary

TEXTS = [
    "Once upon a time", " Once  upon   a time.\n\n\tNew line ", "The code of the blue box is 4821.", "12345 67 8,9.0",
    "It's Tom's, isn't it? We'll see; they've won. I'd say I'm sure.", "", " ", "\n", "Grüße, naïve café!", "日本語 und русский",
    "emoji 🙂🙂 x", "ALL CAPS and miXed-Case_words", "a\u0301 combining", "...!?;:--\"quoted\"",
    "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n", "x <|eos|> y<|bos|>",
]
PROMPTS = ["Once upon a time", "The code of the blue box is 4821. The sun was warm. What is the code of the blue box? It is",
           "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("checkpoint", "tokenizer", "models", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--count", type=int, default=48)
    args = parser.parse_args()
    config, params, _ = train.load(args.checkpoint)
    tokenizer = vocabulary.load(args.tokenizer)
    texts = TEXTS + (args.models / "heldout.txt").read_text().split("\n\n")[:5]
    encode = lambda text: [vocabulary.BOS] + tokenizer.encode(text).ids
    greedy = []
    for prompt in PROMPTS:
        ids = encode(prompt)
        start = len(ids)
        for _ in range(args.count):
            row = evaluate.logits_of(config, params, evaluate.padded(ids, config))[0, len(ids) - 1]
            ids.append(int(np.asarray(row).argmax()))
        greedy.append({"prompt_ids": ids[:start], "ids": ids[start:]})
    out = {"texts": [{"text": t, "ids": encode(t)} for t in texts], "greedy": greedy}
    args.out.write_text(json.dumps(out))


if __name__ == "__main__":
    main()
