"""Perplexity on held-out text and recall by distance and kind of a checkpoint; greedy samples.

    evaluate.py --checkpoint build/phase3.npz --tokenizer build/tokenizer.json --models ../models
    evaluate.py ... --plays input.txt --more 5     # five times as many recall tasks, made afresh
"""

import argparse
import functools
import json
import math
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import heldout
import model
import prepare
import train
import vocabulary


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params, tokens):
    positions = jnp.arange(tokens.shape[1])[None, :]
    return model.forward(config, params, tokens, positions, 256)


def padded(ids, config):
    """Ids in a row of one of a few lengths, so that little is compiled."""
    size = next(n for n in (64, 256, 768, 1280, config.context) if n >= len(ids))
    return np.array([ids + [0] * (size - len(ids))], np.int32)


def wilson(right, n, z=1.96):
    """The 95 % interval of a share."""
    share, center = right / n, right / n + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (center - half) / (1 + z * z / n), (center + half) / (1 + z * z / n)


def perplexity(config, params, tokenizer, text, window):
    """Windows side by side, each from a start token; every token of the text is predicted once."""
    ids = tokenizer.encode(text).ids
    total, count = 0.0, 0
    for start in range(0, len(ids), window - 1):
        part = [vocabulary.BOS] + ids[start : start + window - 1]
        log_p = jax.nn.log_softmax(logits_of(config, params, padded(part, config))[0])
        picked = np.asarray(log_p)[np.arange(len(part) - 1), part[1:]]
        total -= picked.sum()
        count += len(part) - 1
    return math.exp(total / count), count


def recalled(config, params, tokenizer, task):
    """Whether greedy decoding after the prompt begins with the answer (checked in one pass)."""
    prompt = [vocabulary.BOS] + tokenizer.encode(task["prompt"]).ids
    whole = prompt + tokenizer.encode(task["answer"]).ids
    best = np.asarray(jnp.argmax(logits_of(config, params, padded(whole, config))[0], axis=-1))
    return all(best[i - 1] == whole[i] for i in range(len(prompt), len(whole)))


def report_recall(config, params, tokenizer, rows):
    results = [(row, recalled(config, params, tokenizer, row)) for row in rows]
    nearest = lambda d: min(heldout.TASKS, key=lambda b: abs(b - d))
    for title, key in (("distance", lambda r: nearest(r["distance_tokens"])), ("kind", lambda r: r["kind"])):
        groups = {}
        for row, ok in results:
            groups.setdefault(key(row), []).append(ok)
        for name, oks in sorted(groups.items(), key=lambda item: str(item[0]).rjust(9)):
            low, high = wilson(sum(oks), len(oks))
            print(f"recall {title} {name}: {sum(oks)}/{len(oks)} = {sum(oks) / len(oks):.3f} [{low:.2f}, {high:.2f}]", flush=True)
    print(f"recall all: {sum(ok for _, ok in results)}/{len(results)}")


def generate(config, params, tokenizer, prompt, count, temperature=0.0, seed=1):
    ids = [vocabulary.BOS] + tokenizer.encode(prompt).ids
    start, rng = len(ids), np.random.default_rng(seed)
    while len(ids) - start < count:
        row = np.asarray(logits_of(config, params, padded(ids, config))[0, len(ids) - 1], np.float64)
        if temperature > 0:
            p = np.exp((row - row.max()) / temperature)
            pick = int(rng.choice(len(p), p=p / p.sum()))
        else:
            pick = int(row.argmax())
        ids.append(pick)
        if pick in (vocabulary.EOS, vocabulary.IM_END):
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=False)


def samples(config, params, tokenizer):
    print("greedy:", generate(config, params, tokenizer, "Once upon a time", 250))
    for seed in (1, 2):
        print("sampled 0.8:", generate(config, params, tokenizer, "Once upon a time", 200, 0.8, seed))
    history = ""
    for text in ("Hello!", "My name is Lucy. ", "What is 3 plus 4?", "The code of the red box is 7315.", "Tell me a story about a fox.",
                 "What is my name?", "What is the code of the red box?", "How do you spell garden?", "Repeat these words: river lamp tiger", "Goodbye!"):
        history += f"<|im_start|>user\n{text.strip()}<|im_end|>\n<|im_start|>assistant\n"
        reply = generate(config, params, tokenizer, history, 220)
        history += reply + "\n"
        print("user:", text, "\nassistant:", reply)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--plays", type=Path)
    parser.add_argument("--more", type=int, default=0)
    parser.add_argument("--parts", default="samples,perplexity,recall")
    args = parser.parse_args()
    config, params, _ = train.load(args.checkpoint)
    tokenizer = vocabulary.load(args.tokenizer)
    if "samples" in args.parts:
        samples(config, params, tokenizer)
    if "perplexity" in args.parts:
        told, plays = (args.models / "heldout.txt").read_text().split("\n***\n")
        for name, text in (("stories", told), ("Shakespeare", plays)):
            for window in (256, 2048):
                value, n = perplexity(config, params, tokenizer, text, window)
                print(f"perplexity {name}, window {window}: {value:.3f} over {n} tokens", flush=True)
    if "recall" in args.parts:
        if args.more:
            _, held = prepare.split_plays(args.plays)
            counts = {d: n * args.more for d, n in heldout.TASKS.items()}
            rows = heldout.make_tasks(random.Random(4711), held, tokenizer, counts)
        else:
            rows = [json.loads(line) for line in (args.models / "recall.jsonl").read_text().splitlines()]
        report_recall(config, params, tokenizer, rows)


if __name__ == "__main__":
    main()
