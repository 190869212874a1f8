"""Measures llama.cpp through its C interface; started by run.py, one process for each setting of flash attention.

Reads one JSON case a line, answers one JSON result a line:
    {"kind": "prefill" | "decode", "tokens": 512, "depth": 0, "batch": 1, "repeat": 3}
    {"tokens_per_s": [..], "rss_bytes": ..}

A case is run once to warm up, then `repeat` times. Contexts of a depth are really computed, and cut back to the depth
after each run. With --computed N only the first N tokens of one are: the rest are copies of their keys and values,
moved to their positions, since quantized ones would take an hour to compute at 16,384. Attention takes as long. Keys and values are f16 unless --kv says
otherwise, for which flash attention must be on; tokens are random; batches are the defaults, 2048 tokens logical and 512 physical. Sequences of a batch have caches of their own
(`kv_unified` off), which is the faster way here.
"""

import argparse
import ctypes
import json
import os
import sys
import time

import llama_cpp as ll
import numpy as np

BATCH_TOKENS = 2048
KV_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}  # GGML_TYPE_F16, GGML_TYPE_Q4_0, GGML_TYPE_Q8_0


@ll.llama_log_callback
def quiet(level, text, data):
    if level == 4:  # errors
        sys.stderr.write(text.decode(errors="replace"))


def rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Worker:
    def __init__(self, path: str, threads: int, flash: bool, kv: str, computed: int | None):
        ll.llama_log_set(quiet, ctypes.c_void_p())
        ll.llama_backend_init()
        self.model = ll.llama_load_model_from_file(path.encode(), ll.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.threads, self.flash, self.kv = threads, flash, KV_TYPES[kv]
        self.computed = computed
        self.rng = np.random.default_rng(1)
        self.context, self.group = None, None
        self.batch = ll.llama_batch_init(BATCH_TOKENS, 0, 1)

    def prepare(self, depth: int, batch: int, tokens: int) -> None:
        """A context with `batch` sequences of `depth` tokens; kept for the cases of the same group."""
        if self.group and self.group[:2] == (depth, batch) and self.group[2] >= tokens:
            return
        if self.context:
            ll.llama_free(self.context)
        room = max(tokens, 2048 if batch == 1 else 64)
        params = ll.llama_context_default_params()
        # Without a unified cache every sequence gets an equal share, rounded to 256 cells.
        copies = batch == 1 and self.computed is not None and depth > self.computed
        params.n_ctx = -(-(depth + room) // 256) * 256 * batch
        params.n_batch, params.n_seq_max = BATCH_TOKENS, 2 if copies else batch
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = 1 if self.flash else 0
        params.type_k = params.type_v = self.kv
        params.kv_unified, params.no_perf = copies, True
        self.context = ll.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("llama.cpp cannot make a context")
        self.group = (depth, batch, room)
        if copies:
            self.fill_by_copies(depth)
            return
        for sequence in range(batch):
            self.prefill(sequence, 0, depth)

    def fill_by_copies(self, depth: int) -> None:
        """Computes the first tokens of sequence 0, and puts copies behind them by way of sequence 1."""
        memory = ll.llama_get_memory(self.context)
        self.prefill(0, 0, self.computed)
        size = ll.llama_state_seq_get_size(self.context, 0)
        state = (ctypes.c_ubyte * size)()
        if ll.llama_state_seq_get_data(self.context, state, size, 0) != size:
            raise SystemExit("llama.cpp cannot save a sequence")
        for first in range(self.computed, depth, self.computed):
            if not ll.llama_state_seq_set_data(self.context, state, size, 1):
                raise SystemExit("llama.cpp cannot load a sequence")
            ll.llama_memory_seq_add(memory, 1, 0, -1, first)
            ll.llama_memory_seq_rm(memory, 1, depth, -1)
            ll.llama_memory_seq_cp(memory, 1, 0, -1, -1)
            ll.llama_memory_seq_rm(memory, 1, -1, -1)

    def decode_batch(self, entries) -> None:
        """One llama_decode of (token, position, sequence, wants logits)."""
        b = self.batch
        b.n_tokens = len(entries)
        for i, (token, position, sequence, logits) in enumerate(entries):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, position, 1, logits
            b.seq_id[i][0] = sequence
        code = ll.llama_decode(self.context, b)
        if code:
            raise SystemExit(f"llama_decode failed with {code}")

    def random(self, count: int):
        return [int(token) for token in self.rng.integers(3, self.vocab, count)]

    def prefill(self, sequence: int, first: int, tokens: int) -> None:
        for start in range(0, tokens, BATCH_TOKENS):
            part = self.random(min(BATCH_TOKENS, tokens - start))
            entries = [
                (token, first + start + i, sequence, start + i + 1 == tokens) for i, token in enumerate(part)
            ]
            self.decode_batch(entries)
        ll.llama_synchronize(self.context)

    def decode(self, batch: int, first: int, tokens: int) -> None:
        for position in range(first, first + tokens):
            entries = [(token, position, sequence, True) for sequence, token in enumerate(self.random(batch))]
            self.decode_batch(entries)
            ll.llama_synchronize(self.context)

    def measure(self, case) -> dict:
        depth, batch, tokens = case["depth"], case["batch"], case["tokens"]
        self.prepare(depth, batch, tokens)
        speeds = []
        for repeat in range(case["repeat"] + 1):
            start = time.perf_counter()
            if case["kind"] == "prefill":
                self.prefill(0, depth, tokens)
            else:
                self.decode(batch, depth, tokens)
            seconds = time.perf_counter() - start
            if repeat:
                speeds.append(tokens * batch / seconds)
            for sequence in range(batch):
                ll.llama_memory_seq_rm(ll.llama_get_memory(self.context), sequence, depth, -1)
        return {"tokens_per_s": speeds, "rss_bytes": rss_bytes()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--flash", choices=("on", "off"), required=True)
    parser.add_argument("--kv", choices=sorted(KV_TYPES), default="f16")
    parser.add_argument("--computed", type=int)
    args = parser.parse_args()
    worker = Worker(args.model, args.threads, args.flash == "on", args.kv, args.computed)
    print(json.dumps({"version": ll.__version__, "system": ll.llama_print_system_info().decode()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.measure(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
