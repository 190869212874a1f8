#!/usr/bin/env python3
"""Writes seqeval.json: tags, and what seqeval says of them.

    python3 -m venv venv && venv/bin/pip install seqeval==1.2.2
    venv/bin/python crates/cli/tests/data/make_seqeval_goldens.py

The tags are random, from a seed: well-formed ones, and such as no scheme allows.
"""

import json
import pathlib
import random
import warnings

from seqeval.metrics import accuracy_score, classification_report, f1_score

random.seed(1)
TYPES = ["PER", "LOC", "creative-work", "a-very-long-type-of-entity"]


def tag(marks, types):
    mark = random.choice(marks)
    return mark if mark == "O" else f"{mark}-{random.choice(types)}"


def sentence(length, marks, types):
    return [tag(marks, types) for _ in range(length)]


def disturbed(gold, marks, types, share):
    return [tag(marks, types) if random.random() < share else t for t in gold]


def main():
    warnings.simplefilter("ignore")
    goldens = []
    for number in range(160):
        types = TYPES[: 1 + number % len(TYPES)]
        marks = ["OBIES", "OBI", "OOOBI", "OOES"][number // 4 % 4]
        lengths = [random.randint(1, 12) for _ in range(random.randint(1, 4))]
        gold = [sentence(n, marks, types) for n in lengths]
        predicted = [disturbed(s, marks, types, [0.0, 0.2, 1.0][number % 3]) for s in gold]
        if not any(t != "O" for s in gold + predicted for t in s):
            continue
        f1 = {kind: f1_score(gold, predicted, average=kind) for kind in ("micro", "macro", "weighted")}
        goldens.append(
            {
                "gold": gold,
                "predicted": predicted,
                "accuracy": accuracy_score(gold, predicted),
                "report": classification_report(gold, predicted),
                **{f"{kind}_f1": float(value) for kind, value in f1.items()},
            }
        )
    path = pathlib.Path(__file__).with_name("seqeval.json")
    path.write_text("[\n" + ",\n".join(json.dumps(golden) for golden in goldens) + "\n]\n")


if __name__ == "__main__":
    main()
