#!/usr/bin/env python3
"""Every way to hold keys and values in one table: Neap's levels, general coders on the same blocks, llama.cpp's types.

    cargo build --release
    python3 bench/peers/kv_table.py                        # the shipped model and its held-out text
    python3 bench/peers/kv_table.py --model FILE.gguf --file TEXT --window 512 --context 512 --no-recall

Run it with the Python of the environment that run.py makes (`pip install -r bench/peers/requirements.txt`). Quality, bits
and speed of Neap's rows are those of `neap eval kv`, whose blocks of the first window the general coders get one by one,
on one thread; llama.cpp's rows are those of kv_quality.py. Speeds are of 16-bit bytes when encoding, and of the bytes
that come when decoding. `--json` adds a record.
"""

import argparse
import json
import lzma
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

import kv_quality
import numpy as np
import zstandard
from pcodec import ChunkConfig, standalone

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
REPEATS = 3


def zstd(level):
    encoder, decoder = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    return encoder.compress, decoder.decompress


def planes_apart(pair):
    """High bytes behind low ones."""
    encode, decode = pair

    def joined(data):
        return np.frombuffer(decode(data), np.uint8).reshape(2, -1).T.tobytes()

    return lambda block: encode(np.frombuffer(block, np.uint8).reshape(-1, 2).T.tobytes()), joined


def pco(kind):
    def encode(block):
        return standalone.simple_compress(np.frombuffer(block, kind), ChunkConfig(compression_level=8))

    return encode, lambda data: standalone.simple_decompress(data).tobytes()


def pco_of_nibbles():
    encode, decode = pco(np.uint16)

    def apart(block):
        codes = np.frombuffer(block, np.uint8)
        return encode(np.concatenate([codes & 15, codes >> 4]).astype(np.uint16).tobytes())

    def joined(data):
        low, high = np.frombuffer(decode(data), np.uint16).astype(np.uint8).reshape(2, -1)
        return (low | high << 4).tobytes()

    return apart, joined


def xz():
    return (lambda block: lzma.compress(block, preset=6)), lzma.decompress


# Name, the dumped blocks it is given, and its two functions.
CODERS = [
    ("zstd 3", "hot", zstd(3)),
    ("zstd 3, planes", "hot", planes_apart(zstd(3))),
    ("zstd 19, planes", "hot", planes_apart(zstd(19))),
    ("xz 6, planes", "hot", planes_apart(xz())),
    ("pco 8", "hot", pco(np.float16)),
    ("zstd 3 of int4", "int4", zstd(3)),
    ("zstd 3 of packed int4's codes", "packed-int4", zstd(3)),
    ("zstd 19 of packed int4's codes", "packed-int4", zstd(19)),
    ("pco 8 of packed int4's codes", "packed-int4", pco_of_nibbles()),
]


def blocks_of(folder, name, count):
    data = (folder / name).read_bytes()
    size = len(data) // count
    return [data[i * size : (i + 1) * size] for i in range(count)]


def measure(name, blocks, hot_bytes, pair):
    """Bits a value, and the speeds of the fastest of several times over all blocks."""
    encode, decode = pair
    encode_s = decode_s = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        coded = [encode(block) for block in blocks]
        encode_s = min(encode_s, time.perf_counter() - start)
        start = time.perf_counter()
        back = [decode(data) for data in coded]
        decode_s = min(decode_s, time.perf_counter() - start)
    if back != blocks:
        raise SystemExit(f"{name} does not give the blocks back")
    return {
        "level": name,
        "bits_per_value": 8 * sum(map(len, coded)) / (hot_bytes // 2),
        "encode_gb_per_s": hot_bytes / 1e9 / encode_s,
        "decode_gb_per_s": sum(map(len, blocks)) / 1e9 / decode_s,
    }


def neap_rows(args, folder):
    command = [str(args.neap), "eval", "kv", "--json", "--dump", str(folder)]
    command += ["--window", str(args.window), "--windows", str(args.windows), "--threads", str(args.threads)]
    command += ["--file", str(args.file), *(["--no-recall"] if args.no_recall else [])]
    command += ["--model", str(args.model)] if args.model else []
    command += ["--context", str(args.context)] if args.context else []
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    for row in report["levels"]:
        row["recall"] = {int(d): score["share"] for d, score in row.pop("recall_by_distance_tokens").items()}
    return report


def coder_rows(report, folder):
    hot_bytes = (folder / "hot").stat().st_size
    count = hot_bytes // report["block_bytes"]
    exact = {"perplexity_ratio": 1.0, "kl_mean": 0.0, "top1_agreement": 1.0}
    by_name = {row["level"]: row for row in report["levels"]}
    for name, source, pair in CODERS:
        # Nothing is lost beyond what the blocks themselves have lost.
        quality = exact if source == "hot" else by_name[source.replace("-", " ")]
        kept = {key: quality.get(key) for key in ("perplexity_ratio", "kl_mean", "top1_agreement")}
        kept["recall"] = by_name["hot" if source == "hot" else source.replace("-", " ")]["recall"]
        yield {**kept, **measure(name, blocks_of(folder, source, count), hot_bytes, pair)}


def llama_rows(args):
    path = args.model or ROOT / "models" / "neap-tiny.gguf"
    rows, _, _ = kv_quality.compare(path, args.file, args.window, args.windows, args.threads)
    recall = {}
    if not args.no_recall:
        tasks = [json.loads(line) for line in (ROOT / "models" / "recall.jsonl").read_text().splitlines()]
        recall = kv_quality.recall(path, tasks, args.threads)
    for row in rows:
        yield {**row, "level": f"llama.cpp {row['level']}", "recall": recall.get(row["level"], {})}


def cell(value, form):
    return "" if value is None else form.format(value)


def line(row, distances):
    ratio, error = row.get("perplexity_ratio"), row.get("perplexity_ratio_error")
    cells = [
        row["level"],
        cell(row["bits_per_value"], "{:.2f}"),
        "1" if error is None and ratio in (None, 1.0) else cell(ratio, "{:.5f}") + cell(error, " ± {:.5f}"),
        cell(row.get("kl_mean") or 0, "{:.1e}") if row.get("kl_mean") else "0",
        cell(row.get("top1_agreement") or 1.0, "{:.2%}"),
        *(cell(row.get("recall", {}).get(d), "{:.1%}") for d in distances),
        cell(row.get("encode_gb_per_s"), "{:.2f}"),
        cell(row.get("decode_gb_per_s"), "{:.2f}"),
        cell(row.get("attention_speedup"), "{:.2f}"),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neap", type=pathlib.Path, default=ROOT / "target" / "release" / "neap")
    parser.add_argument("--model", type=pathlib.Path, help="a GGUF file; the shipped model if left out")
    parser.add_argument("--file", type=pathlib.Path, default=ROOT / "models" / "heldout.txt")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--context", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-recall", action="store_true", help="for models that do not know the shipped tasks")
    parser.add_argument("--no-llama", action="store_true", help="without llama.cpp's types")
    parser.add_argument("--json", type=pathlib.Path, help="write a record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = neap_rows(args, pathlib.Path(folder))
        exact = report["levels"][0]["recall"]
        for row in report["levels"]:
            row["recall"] = row["recall"] or exact
        rows = [*report["levels"], *coder_rows(report, pathlib.Path(folder))]
    rows += [] if args.no_llama else llama_rows(args)
    distances = sorted({d for row in rows for d in row.get("recall", {})})
    print(f"{report['scored_tokens']} tokens scored, {report['windows']} windows of {report['window_tokens']}\n")
    heads = ["codec", "bits", "perplexity ratio", "KL", "top-1", *(f"recall {d:,}" for d in distances)]
    heads += ["encode GB/s", "decode GB/s", "attention ×"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in rows:
        print(line(row, distances), flush=True)
    if args.json:
        versions = {"zstandard": zstandard.__version__, "python": platform.python_version()}
        record = {"machine": platform.platform(), "command": sys.argv, "versions": versions}
        args.json.write_text(json.dumps({**record, **report, "levels": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
