#!/usr/bin/env python3
"""Neap's policies and foyer's on one trace at the same sizes of RAM, side by side.

    cargo build --release && python3 bench/foyer/run.py TRACE.jsonl [SHARE...]

Shares are of the trace's distinct blocks. Needs cargo and crates.io for foyer.
"""

import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
NEAP = HERE.parent.parent / "target" / "release" / "neap"


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    trace, shares = sys.argv[1], sys.argv[2:] or ["0.01", "0.02", "0.05", "0.1", "0.2", "0.4"]
    sizes = ",".join(f"{float(share) * 100:g}%" for share in shares)
    neap = json.loads(subprocess.check_output(
        [NEAP, "bench", "trace", "--trace", trace, "--sizes", sizes, "--json",
         "--policy", "cost", "--policy", "s3-fifo", "--policy", "sieve", "--policy", "lru", "--policy", "fifo"]))[0]
    foyer = json.loads(subprocess.check_output(
        ["cargo", "run", "--release", "--quiet", "--manifest-path", HERE / "Cargo.toml", "--", trace, *shares]))
    block_bytes = neap["block_tokens"] * neap["bytes_per_token"]
    rows = {}
    for row in neap["results"]:
        rows.setdefault(row["ram_bytes"] // block_bytes, {})[row["policy"]] = row["saved_share"]
    for row in foyer:
        rows.setdefault(row["ram_blocks"], {})[row["policy"]] = row["saved_share"]
    names = list(dict.fromkeys(name for of_size in rows.values() for name in of_size))
    print("tokens saved, in per cent of all prompts'")
    print(f"{'blocks':>8}", *(f"{name:>14}" for name in names))
    for blocks, of_size in sorted(rows.items()):
        print(f"{blocks:8}", *(f"{of_size[name] * 100:14.2f}" if name in of_size else " " * 14 for name in names))


if __name__ == "__main__":
    main()
