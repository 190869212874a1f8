#!/usr/bin/env python3
"""`neap memory set` on a busy server: to half of what is charged, and back.

    python3 bench/shrink/run.py [--model FILE.gguf]

Starts `neap serve` with the model inside or another, keeps clients asking until cached blocks fill the budget, then sets
the budget to half of what is charged and measures how long it takes until no more than that is charged; then sets it
back. Prints the times, what was resident before and after, and whether any answer failed. Fails if one did, or
if a shrink took a second or longer.
"""

import argparse
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench"))
from clients import Clients, wait_for  # noqa: E402: it lies in the folder above

MIB = 1 << 20


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neap", default=ROOT / "target" / "release" / "neap")
    parser.add_argument("--model", help="the model inside, if left out")
    parser.add_argument("--memory", default="24MiB")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--disk", help="a folder for the disk level")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--words", type=int, default=300, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--fill", type=float, default=60, help="seconds that the cache has to fill at most, before each shrink")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8096)
    return parser.parse_args()


def main():
    args = arguments()
    base = f"http://127.0.0.1:{args.port}"
    command = [args.neap, "serve", "--port", args.port, "--context", args.context, "--memory", args.memory]
    command += ["--model", args.model] if args.model else []
    command += ["--disk", args.disk] if args.disk else []
    server = subprocess.Popen([str(word) for word in command])
    memory = lambda: json.load(urllib.request.urlopen(f"{base}/memory", timeout=60))

    def set_budget(limit):
        said = subprocess.run([str(args.neap), "memory", "set", f"{limit // 1024}KiB", "--url", base],
                              capture_output=True, text=True)
        if said.returncode != 0:
            raise RuntimeError(said.stderr)

    shrinks, clients = [], None
    try:
        wait_for(base)
        full = memory()["budget"]["limit_bytes"]
        clients = Clients(base, args.clients, args.words, args.tokens)
        for _ in range(args.rounds):
            begin = time.time()
            before = memory()
            while before["budget"]["charged_bytes"] < full * 0.9 and time.time() - begin < args.fill:
                time.sleep(0.2)
                before = memory()
            half = before["budget"]["charged_bytes"] // 2
            start = time.time()
            set_budget(half)
            while (now := memory())["budget"]["charged_bytes"] > half:
                if time.time() - start > 60:
                    raise TimeoutError(f"{now['budget']} a minute after the shrink")
                time.sleep(0.01)
            seconds = time.time() - start
            shrinks.append(seconds)
            time.sleep(1)
            after = memory()
            print(f"{before['budget']['charged_bytes'] // MIB} MiB charged, {before['rss_bytes'] // MIB} resident; half of "
                  f"it after {seconds:.3f} s, {after['rss_bytes'] // MIB} resident a second later; "
                  f"{before['engine']['running']} were running", flush=True)
            set_budget(full)
        clients.end()
        print(f"{len(shrinks)} shrinks: {max(shrinks):.3f} s at most, {statistics.median(shrinks):.3f} s median; "
              f"{clients.answers} answers, {len(clients.failures)} failures")
        for why in clients.failures[:3]:
            print("failure:", why)
        return bool(clients.failures) or max(shrinks) >= 1
    finally:
        if clients:
            clients.stop = True
        server.send_signal(signal.SIGTERM)
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
