#!/usr/bin/env python3
"""What llama.cpp's quantized keys and values lose: the columns of `neap eval kv`, on the same windows of a text.

    python3 bench/peers/kv_quality.py                                # the shipped model and its held-out text
    python3 bench/peers/kv_quality.py --model FILE.gguf --file TEXT --window 2048

Run it with the Python of the environment that run.py makes. Each type is compared with llama.cpp's own f16, with flash
attention on, as quantized values need it. The second half of each window is scored.
"""

import argparse
import ctypes
import math
import pathlib
import sys

import llama_cpp as ll
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# GGML's number and the bits a value of each type, its scales counted.
TYPES = {"f16": (1, 16.0), "q8_0": (8, 8.5), "q5_1": (7, 6.0), "q4_0": (2, 4.5)}
BATCH_TOKENS = 512


@ll.llama_log_callback
def quiet(level, text, data):
    if level == 4:  # errors
        sys.stderr.write(text.decode(errors="replace"))


class Lane:
    """One context: a type of keys and values."""

    def __init__(self, model, vocab: int, window: int, kind: str, threads: int):
        params = ll.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = -(-window // 256) * 256, BATCH_TOKENS, BATCH_TOKENS
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1
        params.type_k = params.type_v = TYPES[kind][0]
        self.context = ll.llama_init_from_model(model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp makes no context with {kind} keys and values")
        self.vocab = vocab
        self.batch = ll.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.losses, self.divergence, self.agreed = [], 0.0, 0

    def log_probabilities(self, window):
        """Of every token of the second half of the window, before the last: [tokens, vocabulary]."""
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        half, rows = len(window) // 2, []
        for start in range(0, len(window) - 1, BATCH_TOKENS):
            part = window[start : min(start + BATCH_TOKENS, len(window) - 1)]
            b = self.batch
            b.n_tokens = len(part)
            for i, token in enumerate(part):
                b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, start + i, 1, start + i >= half
                b.seq_id[i][0] = 0
            if ll.llama_decode(self.context, b):
                raise SystemExit("llama_decode failed")
            for i in range(len(part)):
                if start + i >= half:
                    row = ll.llama_get_logits_ith(self.context, i)
                    rows.append(np.ctypeslib.as_array(row, (self.vocab,)).astype(np.float64))
        logits = np.stack(rows)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def tokens_of(vocabulary, text: bytes):
    room = len(text) + 8
    tokens = (ll.llama_token * room)()
    count = ll.llama_tokenize(vocabulary, text, len(text), tokens, room, False, False)
    return list(tokens[:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models" / "neap-tiny.gguf")
    parser.add_argument("--file", type=pathlib.Path, default=ROOT / "models" / "heldout.txt")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    ll.llama_log_set(quiet, ctypes.c_void_p())
    ll.llama_backend_init()
    model = ll.llama_load_model_from_file(str(args.model).encode(), ll.llama_model_default_params())
    vocabulary = ll.llama_model_get_vocab(model)
    tokens = tokens_of(vocabulary, args.file.read_bytes())
    window = min(args.window, ll.llama_model_n_ctx_train(model))
    lanes = {kind: Lane(model, ll.llama_vocab_n_tokens(vocabulary), window, kind, args.threads) for kind in TYPES}
    count = min(len(tokens) // window, args.windows)
    for number in range(count):
        part = tokens[number * window : (number + 1) * window]
        if ll.llama_vocab_get_add_bos(vocabulary):
            part[0] = ll.llama_vocab_bos(vocabulary)
        targets = part[window // 2 + 1 :]
        exact = None
        for kind, lane in lanes.items():
            rows = lane.log_probabilities(part)
            exact = rows if kind == "f16" else exact
            lane.losses.extend(-rows[np.arange(len(targets)), targets])
            lane.divergence += float((np.exp(exact) * (exact - rows)).sum())
            lane.agreed += int((exact.argmax(axis=1) == rows.argmax(axis=1)).sum())
        print(f"window {number + 1} of {count}", file=sys.stderr, end="\r", flush=True)
    scored = len(lanes["f16"].losses)
    print(f"{scored} tokens scored, the second halves of {count} windows of {window}")
    print(f"{'type':6} {'bits':>6} {'perplexity':>10} {'ratio':>19} {'KL':>9} {'top-1':>8}")
    for kind, lane in lanes.items():
        difference = np.array(lane.losses) - np.array(lanes["f16"].losses)
        ratio = math.exp(difference.mean())
        error = ratio * difference.std(ddof=1) / math.sqrt(scored)
        print(
            f"{kind:6} {TYPES[kind][1]:6.2f} {math.exp(np.mean(lane.losses)):10.4f} {ratio:9.5f} ± {error:.5f} "
            f"{lane.divergence / scored:9.2e} {100 * lane.agreed / scored:7.2f}%"
        )


if __name__ == "__main__":
    main()
