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
        # None where the type does not suit the model's heads.
        self.context = ll.llama_init_from_model(model, params)
        self.vocab = vocab
        self.batch = ll.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.losses, self.divergence, self.agreed = [], 0.0, 0

    def decode(self, tokens, start: int, is_wanted):
        """Runs tokens that begin at a position; logits are kept of the positions that are wanted."""
        b = self.batch
        b.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, start + i, 1, is_wanted(start + i)
            b.seq_id[i][0] = 0
        if ll.llama_decode(self.context, b):
            raise SystemExit("llama_decode failed")

    def row(self, index: int):
        return np.ctypeslib.as_array(ll.llama_get_logits_ith(self.context, index), (self.vocab,))

    def continuation(self, vocabulary, prompt: str, count: int) -> str:
        """What greedy decoding makes of a prompt."""
        tokens = tokens_of(vocabulary, prompt.encode(), True)
        if ll.llama_vocab_get_add_bos(vocabulary):
            tokens.insert(0, ll.llama_vocab_bos(vocabulary))
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        for start in range(0, len(tokens), BATCH_TOKENS):
            part = tokens[start : start + BATCH_TOKENS]
            self.decode(part, start, lambda position: position + 1 == len(tokens))
        made, index = [], len(part) - 1
        while len(made) < count:
            made.append(int(self.row(index).argmax()))
            self.decode(made[-1:], len(tokens) + len(made) - 1, lambda position: True)
            index = 0
        room = ctypes.create_string_buffer(64 * count)
        length = ll.llama_detokenize(vocabulary, (ll.llama_token * count)(*made), count, room, len(room), False, True)
        return room.raw[: max(length, 0)].decode(errors="replace")

    def log_probabilities(self, window):
        """Of every token of the second half of the window, before the last: [tokens, vocabulary]."""
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        half, rows = len(window) // 2, []
        for start in range(0, len(window) - 1, BATCH_TOKENS):
            part = window[start : min(start + BATCH_TOKENS, len(window) - 1)]
            self.decode(part, start, lambda position: position >= half)
            rows.extend(self.row(i).astype(np.float64) for i in range(len(part)) if start + i >= half)
        logits = np.stack(rows)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def tokens_of(vocabulary, text: bytes, parse_special: bool = False):
    room = len(text) + 8
    tokens = (ll.llama_token * room)()
    count = ll.llama_tokenize(vocabulary, text, len(text), tokens, room, False, parse_special)
    return list(tokens[:count])


def load(path: pathlib.Path):
    """A model and its vocabulary."""
    ll.llama_log_set(quiet, ctypes.c_void_p())
    ll.llama_backend_init()
    model = ll.llama_load_model_from_file(str(path).encode(), ll.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp does not load {path}")
    return model, ll.llama_model_get_vocab(model)


def compare(path: pathlib.Path, text: pathlib.Path, window: int, windows: int, threads: int):
    """A row for each type that llama.cpp takes for this model, f16 first, and how many tokens were scored."""
    model, vocabulary = load(path)
    tokens = tokens_of(vocabulary, text.read_bytes())
    window = min(window, ll.llama_model_n_ctx_train(model))
    size = ll.llama_vocab_n_tokens(vocabulary)
    lanes = {kind: Lane(model, size, window, kind, threads) for kind in TYPES}
    lanes = {kind: lane for kind, lane in lanes.items() if lane.context}
    count = min(len(tokens) // window, windows)
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
    scored, rows = len(lanes["f16"].losses), []
    for kind, lane in lanes.items():
        difference = np.array(lane.losses) - np.array(lanes["f16"].losses)
        ratio = math.exp(difference.mean())
        rows.append(
            {
                "level": kind,
                "bits_per_value": TYPES[kind][1],
                "perplexity": math.exp(np.mean(lane.losses)),
                "perplexity_ratio": ratio,
                "perplexity_ratio_error": ratio * difference.std(ddof=1) / math.sqrt(scored),
                "kl_mean": lane.divergence / scored,
                "top1_agreement": lane.agreed / scored,
            }
        )
    return rows, scored, f"the second halves of {count} windows of {window}"


def recall(path: pathlib.Path, tasks: list[dict], threads: int):
    """The share of tasks answered rightly, by type and greatest distance, as `neap eval recall` puts them together."""
    model, vocabulary = load(path)
    window = ll.llama_model_n_ctx_train(model)
    found: dict[str, dict[int, list[bool]]] = {}
    for kind in TYPES:
        lane = Lane(model, ll.llama_vocab_n_tokens(vocabulary), window, kind, threads)
        if not lane.context:
            continue
        for number, task in enumerate(tasks):
            distance = max(128, 1 << (task["distance_tokens"] - 1).bit_length())
            answer = lane.continuation(vocabulary, task["prompt"], len(tokens_of(vocabulary, task["answer"].encode())) + 1)
            right = answer.lstrip().startswith(task["answer"].strip())
            found.setdefault(kind, {}).setdefault(distance, []).append(right)
            print(f"{kind}: task {number + 1} of {len(tasks)}", file=sys.stderr, end="\r", flush=True)
    return {kind: {d: sum(oks) / len(oks) for d, oks in sorted(of.items())} for kind, of in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models" / "neap-tiny.gguf")
    parser.add_argument("--file", type=pathlib.Path, default=ROOT / "models" / "heldout.txt")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    rows, scored, what = compare(args.model, args.file, args.window, args.windows, args.threads)
    print(f"{scored} tokens scored, {what}")
    print(f"{'type':6} {'bits':>6} {'perplexity':>10} {'ratio':>19} {'KL':>9} {'top-1':>8}")
    for row in rows:
        print(
            f"{row['level']:6} {row['bits_per_value']:6.2f} {row['perplexity']:10.4f} "
            f"{row['perplexity_ratio']:9.5f} ± {row['perplexity_ratio_error']:.5f} "
            f"{row['kl_mean']:9.2e} {100 * row['top1_agreement']:7.2f}%"
        )


if __name__ == "__main__":
    main()
