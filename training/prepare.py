"""Generate everything that is trained on and evaluated with, from one seed.

    prepare.py tokenizer --plays input.txt --out DIR     # the vocabulary
    prepare.py rows --out DIR --length 256 --rows 30000  # token rows of one training phase
    prepare.py heldout --out DIR --models ../models      # held-out text and recall tasks
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np

import chats
import stories
import tasks
import vocabulary

CONTEXT = 2048
WEIGHTS = {0: 10, 1: 40, 2: 2}  # tenths, by the state of the marks
MIXES = {  # shares of the documents
    "copy": {"recall": 0.40, "echo": 0.60},  # first: little but copying, from which recall grows
    "main": {"recall": 0.46, "story": 0.26, "chat": 0.21, "play": 0.07},
}


def split_plays(path):
    """Shakespeare as (training text, held-out text): the last twentieth is held out."""
    text = Path(path).read_text()
    cut = text.index("\n\n", int(len(text) * 0.95)) + 2
    return text[:cut], text[cut:]


def play_lines(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


def unmark(text):
    """(clean text, weight of each character)."""
    clean, weights, state = [], [], 0
    for char in text:
        if char in tasks.MARKS:
            state = tasks.MARKS[char]
        else:
            clean.append(char)
            weights.append(WEIGHTS[state])
    return "".join(clean), weights


class Maker:
    """Makes documents of each sort for rows of one length."""

    def __init__(self, seed, plays, length):
        self.rng = random.Random(seed)
        self.plays = plays
        self.speeches = [s for s in plays.split("\n\n") if s.strip()]
        self.filler = tasks.Filler(play_lines(plays))
        self.words = int(length / 1.45)
        self.length = length

    def text(self, kind):
        rng = self.rng
        if kind == "recall":
            return tasks.recall_document(rng, self.filler, int(self.words * rng.uniform(0.3, 1.0)))
        if kind == "echo":
            return tasks.echo(rng, self.filler)
        if kind == "story":
            return stories.story(rng)
        if kind == "chat":
            return chats.chat(rng, int(min(self.words, 900) * rng.uniform(0.25, 1.0)))
        start = rng.randrange(len(self.speeches) - 40)
        return "\n\n".join(self.speeches[start : start + rng.randint(4, max(6, self.length // 30))])

    def documents(self, tokenizer, kinds):
        """Token ids and weights of one document for each kind."""
        texts, weights = zip(*(unmark(self.text(kind)) for kind in kinds))
        out = []
        for encoding, weight in zip(tokenizer.encode_batch(list(texts)), weights):
            # A token weighs what its last character weighs.
            w = [weight[end - 1] for _, end in encoding.offsets]
            out.append(([vocabulary.BOS] + encoding.ids + [vocabulary.EOS], [0] + w + [10]))
        return out


def positions(rng, length, skip):
    """0.. length, or the same with gaps, so that short rows also teach long distances."""
    out = np.arange(length)
    if rng.random() >= skip:
        return out
    slack = rng.randint(0, CONTEXT - length)
    cuts = [0] + sorted(rng.sample(range(1, length), rng.randint(1, 3)))
    shares = np.array([rng.random() for _ in cuts])
    shares = np.floor(shares / shares.sum() * slack).astype(int)
    for cut, share in zip(cuts, shares):
        out[cut:] += share
    return out


def make_rows(tokenizer, maker, rows, length, skip, mix):
    rng = maker.rng
    size = length + 1
    tokens = np.zeros((rows, size), np.uint16)
    weights = np.zeros((rows, size), np.uint8)
    place = np.zeros((rows, size), np.uint16)
    names, shares = list(mix), list(mix.values())
    queues = {name: [] for name in names}

    def draw(kind):
        if not queues[kind]:
            queues[kind] = maker.documents(tokenizer, [kind] * 256)
        return queues[kind].pop()

    for row in range(rows):
        filled = 0
        while filled < size:
            kind = rng.choices(names, shares)[0]
            ids, w = draw(kind)
            if kind == "recall" and len(ids) > size - filled:
                if filled == 0:
                    continue  # never cut a recall document: its questions come last
                ids, w = draw(rng.choice([k for k in names if k != "recall"]))
            if filled == 0 and rng.random() < 0.1:
                ids, w = ids[1:], w[1:]  # some texts come without a start token
            n = min(len(ids), size - filled)
            tokens[row, filled : filled + n] = ids[:n]
            weights[row, filled : filled + n] = w[:n]
            filled += n
        place[row] = positions(rng, size, skip)
    return tokens, weights, place


def command_tokenizer(args):
    plays, _ = split_plays(args.plays)
    maker = Maker(args.seed, plays, 512)
    texts = [unmark(maker.text(kind))[0] for kind in ("recall", "story", "chat") for _ in range(2500)]
    for special in vocabulary.SPECIALS:
        texts = [text.replace(special, "") for text in texts]
    tokenizer = vocabulary.train(texts + maker.speeches)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out / "tokenizer.json"))
    sample = [unmark(maker.text("story"))[0] for _ in range(200)]
    words = sum(len(t.split()) for t in sample)
    print("vocabulary", tokenizer.get_vocab_size(), "tokens per word in stories",
          sum(len(e.ids) for e in tokenizer.encode_batch(sample)) / words)


def command_rows(args):
    plays, _ = split_plays(args.plays)
    tokenizer = vocabulary.load(args.out / "tokenizer.json")
    maker = Maker(args.seed * 1000003 + args.length, plays, args.length)
    tokens, weights, place = make_rows(tokenizer, maker, args.rows, args.length, args.skip, MIXES[args.mix])
    np.savez(args.out / f"rows-{args.mix}-{args.length}.npz", tokens=tokens, weights=weights, positions=place)
    print(args.length, tokens.shape, "answer share", float((weights == 40).mean()))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["tokenizer", "rows", "heldout"])
    parser.add_argument("--plays", default="data/tinyshakespeare.txt")
    parser.add_argument("--out", type=Path, default=Path("build"))
    parser.add_argument("--models", type=Path, default=Path("../models"))
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rows", type=int, default=30000)
    parser.add_argument("--mix", choices=list(MIXES), default="main")
    parser.add_argument("--skip", type=float, default=0.5, help="share of rows with gaps in their positions")
    args = parser.parse_args()
    if args.command == "heldout":
        import heldout

        heldout.write(args)
    else:
        {"tokenizer": command_tokenizer, "rows": command_rows}[args.command](args)


if __name__ == "__main__":
    main()
