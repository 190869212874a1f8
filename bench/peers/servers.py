#!/usr/bin/env python3
"""Neap's server beside llama.cpp's: the same weights, the same machine, the same clients (`neap bench serve`).

    python3 bench/peers/servers.py --model MODEL.gguf                         # every case, both sides; an hour and more
    python3 bench/peers/servers.py --model MODEL.gguf --case common --side neap
    python3 bench/peers/servers.py --model MODEL.gguf --scale 0.1             # a rehearsal: a tenth of the tokens

llama.cpp's server is built from the sources in the `llama-cpp-python` package that requirements.txt names, into the
cache folder (a quarter of an hour on two cores); --llama-server PATH takes another. Needs a C++ compiler, and a release
build of neap.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = pathlib.Path.home() / ".cache" / "neap-bench"
BLOCKS = CACHE / "blocks"


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def build_llama_server(python: str) -> pathlib.Path:
    """llama.cpp's server of the version that speeds are compared with."""
    wanted = re.search(r"^llama-cpp-python==(\S+)$", (HERE / "requirements.txt").read_text(), re.M)[1]
    folder = CACHE / f"llama-server-{wanted}"
    program = folder / "build" / "bin" / "llama-server"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    name = f"llama_cpp_python-{wanted}"
    if not (folder / name).exists():
        fetch = [python, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", folder]
        subprocess.run([*fetch, f"llama-cpp-python=={wanted}"], check=True, stdout=sys.stderr)
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    cmake = shutil.which("cmake", path=f"{pathlib.Path(python).parent}:{os.environ['PATH']}")
    if not cmake:
        sys.exit("building llama.cpp's server needs cmake: pip install cmake")
    log(f"building llama.cpp's server in {folder}")
    source = folder / name / "vendor" / "llama.cpp"
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_OPENSSL=OFF",
               "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_UI=OFF",
               "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_BUILD_APP=OFF"]
    subprocess.run([cmake, "-S", source, "-B", folder / "build", *options], check=True, stdout=sys.stderr)
    make = [cmake, "--build", folder / "build", "--target", "llama-server", "-j", str(os.cpu_count())]
    subprocess.run(make, check=True, stdout=sys.stderr)
    return program


class Server:
    """A server process on a port, ended at the end of its block."""

    def __init__(self, command, port: int):
        self.command, self.port = [str(word) for word in command], port

    def __enter__(self):
        log("  " + " ".join(self.command))
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 300
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).status == 200:
                    return self
            except OSError:
                time.sleep(0.2)
        self.process.kill()
        sys.exit(f"the server did not start: {' '.join(self.command)}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


def neap(args, room_tokens: int, parallel: int, extra=()):
    """Neap with room for so many tokens of f16 keys and values beside weights and scratch."""
    room = room_tokens * args.bytes_per_token + args.fixed_bytes
    return [args.neap, "serve", "--model", args.model, "--port", args.port, "--parallel", parallel, "--memory", room,
            "--threads", args.threads, "--idle-sink", "5", "--disk", BLOCKS, *extra]


def llama(args, room_tokens: int, extra):
    return [args.llama_server, "--model", args.model, "--port", args.port, "--threads", args.threads, "-c", room_tokens,
            "--no-warmup", *extra]


def cases(args):
    """Name, what the clients do, and the servers by name."""
    scaled = lambda tokens: max(16, int(tokens * args.scale))
    room = scaled(32768)
    lossy = ["--kv-quality", "small"]
    yield (
        "return", ["--conversations", 16, "--turns", 2, "--together", "--prompt-tokens", scaled(4000),
                   "--next-tokens", 32, "--max-tokens", 64, "--ignore-eos"],
        {
            "neap, exact": neap(args, room, 16),
            "neap, small": neap(args, room, 16, lossy),
            "llama.cpp, 16 slots unified": llama(args, room, ["-np", 16, "-kvu"]),
            "llama.cpp, 8 slots": llama(args, room, ["-np", 8, "-no-kvu"]),
            "llama.cpp, defaults": llama(args, room, []),
        },
    )
    seven = ["--conversations", 7, "--prefix-tokens", scaled(3000), "--prompt-tokens", 20, "--max-tokens", 32,
             "--ignore-eos"]
    servers = {
        "neap": neap(args, room, 8),
        "llama.cpp": llama(args, room, ["-np", 8, "-kvu"]),
    }
    yield "seven, seen once", [*seven, "--warm"], servers
    yield "seven, never seen", seven, servers
    yield (
        "common", ["--conversations", 16, "--turns", 3, "--prefix-tokens", scaled(1000), "--prefixes", 4,
                   "--prompt-tokens", 64, "--next-tokens", 32, "--max-tokens", 64, "--ignore-eos"],
        {
            "neap": neap(args, room, 16),
            "llama.cpp": llama(args, room, ["-np", 16, "-kvu"]),
        },
    )
    # Room for 4 conversations of f16 keys and values; 32 talk, one after the other, and all come back.
    kept = scaled(1000)
    yield (
        "kept ready", ["--conversations", 32, "--rate", args.rate, "--turns", 2, "--together", "--prompt-tokens", kept,
                       "--next-tokens", 16, "--max-tokens", 8, "--ignore-eos"],
        {
            "neap, exact with a disk": neap(args, 4 * (kept + 128), 4),
            "llama.cpp, without its cache": llama(args, 4 * (kept + 128), ["-np", 4, "--cache-ram", 0]),
        },
    )


def measure(args, load, command):
    # What a server before this one kept would be found again.
    shutil.rmtree(BLOCKS, ignore_errors=True)
    with Server(command, args.port) as server:
        bench = [args.neap, "bench", "serve", "--url", f"http://127.0.0.1:{args.port}", "--pid", server.process.pid,
                 "--settle", args.settle, "--timeout", args.timeout, "--json", *load]
        run = subprocess.run([str(word) for word in bench], capture_output=True, text=True)
        if run.returncode:
            return {"error": run.stderr.strip()}
        return json.loads(run.stdout)


def row(name, record) -> str:
    if "all" not in record:
        return f"  {name:32} {record.get('error')}"
    rss = record["rss"]
    mib = lambda key: rss[key] / 2**20
    turns = ", ".join(
        f"{t['requests'] - t['failed']}/{t['requests']} ttft p50 {t['ttft_ms']['p50'] / 1000:.1f} s "
        f"cached {t['cached_tokens']}/{t['prompt_tokens']} ready {t['ready']}"
        for t in record["turns"]
    )
    return (f"  {name:32} {record['wall_s']:7.1f} s {record['answer_tokens_per_s']:7.1f} tok/s  RSS {mib('before'):.0f} "
            f"-> {mib('peak'):.0f} -> {mib('after'):.0f} MiB  {turns}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--neap", type=pathlib.Path, default=ROOT / "target/release/neap")
    parser.add_argument("--llama-server", type=pathlib.Path)
    parser.add_argument("--python", default=sys.executable, help="for pip, to fetch the peer's sources")
    parser.add_argument("--case", help="only this one: return, seven, common or kept")
    parser.add_argument("--side", help="only servers whose name begins so: neap or llama.cpp")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all lengths, and of the room")
    parser.add_argument("--bytes-per-token", type=int, default=32768, help="f16 keys and values of one token")
    parser.add_argument("--fixed-bytes", type=int, default=800 << 20, help="weights and scratch of neap")
    parser.add_argument("--rate", type=float, default=0.2, help="conversations a second of the case `kept ready`")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--settle", type=int, default=30, help="seconds until memory is looked at once more")
    parser.add_argument("--timeout", type=int, default=1800)
    parser.add_argument("--record", type=pathlib.Path, help="file to write; a new one in bench/record if left out")
    args = parser.parse_args()
    if args.llama_server is None and (args.side or "llama").startswith("llama"):
        args.llama_server = build_llama_server(args.python)
    record = {
        "date": datetime.datetime.now().isoformat(timespec="minutes"),
        "machine": platform.platform(),
        "model": args.model.name,
        "scale": args.scale,
        "threads": args.threads,
        "results": [],
    }
    for case, load, servers in cases(args):
        if args.case and not case.startswith(args.case):
            continue
        print(case, flush=True)
        for name, command in servers.items():
            if args.side and not name.startswith(args.side):
                continue
            result = measure(args, load, command)
            print(row(name, result), flush=True)
            record["results"].append({"case": case, "server": name, "load": [str(word) for word in load], **result})
    default = ROOT / "bench/record" / f"servers-{datetime.date.today()}.json"
    path = args.record or default
    path.write_text(json.dumps(record, indent=1) + "\n")
    log(f"written to {path}")


main()
