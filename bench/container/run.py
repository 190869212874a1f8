#!/usr/bin/env python3
"""A server and a greedy neighbour in one memory-limited container.

    sudo python3 bench/container/run.py --model FILE.gguf --limit 1000 --neighbour 350

Makes a control group (version 2 if its memory controller can be used, else version 1) with a limit, runs `neap serve`
in it without `--memory`, keeps clients asking, and starts a process in the same group that takes memory in steps and
leaves again. Prints once a second what the server holds, and at the end whether any answer failed or the group ran out
of memory. Linux, as root.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench"))
from clients import Clients, wait_for  # noqa: E402: it lies in the folder above

MIB = 1 << 20
HOG = """
import sys, time
held = []
steps, mib, pause, stay = (float(word) for word in sys.argv[1:])
for _ in range(int(steps)):
    held.append(bytearray(b"x") * int(mib * (1 << 20)))
    time.sleep(pause)
time.sleep(stay)
"""


class Group:
    """A control group with a memory limit, of either version."""

    def __init__(self, limit_bytes):
        v2 = pathlib.Path("/sys/fs/cgroup")
        self.is_v2 = "memory" in self.read(v2 / "cgroup.controllers").split()
        if self.is_v2:
            (v2 / "cgroup.subtree_control").write_text("+memory")
            self.folder = v2 / "neap-bench"
        else:
            self.folder = pathlib.Path("/sys/fs/cgroup/memory/neap-bench")
        self.folder.mkdir(exist_ok=True)
        (self.folder / ("memory.max" if self.is_v2 else "memory.limit_in_bytes")).write_text(str(limit_bytes))

    @staticmethod
    def read(path):
        try:
            return path.read_text()
        except OSError:
            return ""

    def enter(self):
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def oom_kills(self):
        text = self.read(self.folder / ("memory.events" if self.is_v2 else "memory.oom_control"))
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))

    def used_mib(self):
        name = "memory.current" if self.is_v2 else "memory.usage_in_bytes"
        return int(self.read(self.folder / name) or 0) // MIB

    def remove(self):
        for _ in range(50):
            try:
                self.folder.rmdir()
                return
            except OSError:
                time.sleep(0.1)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neap", default=ROOT / "target" / "release" / "neap")
    parser.add_argument("--model", required=True)
    parser.add_argument("--limit", type=int, default=1000, help="of the container, in MiB")
    parser.add_argument("--neighbour", type=int, default=350, help="MiB that the other process takes")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--words", type=int, default=100, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--port", type=int, default=8097)
    parser.add_argument("--calm", type=float, default=15, help="seconds before the neighbour comes, and after it")
    return parser.parse_args()


def main():
    args = arguments()
    group = Group(args.limit * MIB)
    base = f"http://127.0.0.1:{args.port}"
    command = [args.neap, "serve", "--model", args.model, "--port", args.port, "--context", 4096]
    server = subprocess.Popen([str(word) for word in command], preexec_fn=group.enter)
    memory = lambda: json.load(urllib.request.urlopen(f"{base}/memory", timeout=60))
    try:
        wait_for(base)
        clients = Clients(base, args.clients, args.words, args.tokens)
        steps = 7
        print("   s  budget  charged  server RSS  container  neighbour  answers  failures", flush=True)
        start, hog, least_rss, most_used = time.time(), None, 1 << 60, 0
        spent = lambda: time.time() - start
        while True:
            if hog is None and spent() > args.calm:
                words = [sys.executable, "-c", HOG, str(steps), str(args.neighbour / steps), "1", "10"]
                hog = subprocess.Popen(words, preexec_fn=group.enter)
                left = None
            if hog is not None and hog.poll() is not None and left is None:
                left = spent()
            if hog is not None and left is not None and spent() > left + args.calm:
                break
            if server.poll() is not None:
                break
            now = memory()
            rss = now["rss_bytes"] // MIB
            least_rss, most_used = min(least_rss, rss), max(most_used, group.used_mib())
            state = "-" if hog is None else "there" if hog.poll() is None else f"left ({hog.returncode})"
            print(f"{spent():4.0f} {now['budget']['limit_bytes'] // MIB:7} {now['budget']['charged_bytes'] // MIB:8} "
                  f"{rss:11} {group.used_mib():10} {state:>10} {clients.answers:8} {len(clients.failures):9}", flush=True)
            time.sleep(1)
        clients.end()
        print(f"answers {clients.answers}, failures {len(clients.failures)}, OOM kills {group.oom_kills()}, "
              f"server {'ended' if server.poll() is not None else 'alive'}, neighbour's exit {hog and hog.returncode}, "
              f"server's RSS at least {least_rss} MiB, container at most {most_used} of {args.limit} MiB")
        for why in clients.failures[:3]:
            print("failure:", why)
        for change in memory()["limit_changes"][:8]:
            print(f"{change['since_start_ms'] / 1000:7.1f} s: {change['before_bytes'] // MIB} to "
                  f"{change['after_bytes'] // MIB} MiB, {change['reason']}")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
        group.remove()


if __name__ == "__main__":
    main()
