#!/usr/bin/env python3
"""Starts `neap serve` and uses it as others do: see README.md."""
import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def started(arguments):
    """A server on a free port, and its address."""
    server = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        print(line, end="", file=sys.stderr)
        if " on http://" in line:
            break
    else:
        sys.exit("the server did not start")
    threading.Thread(target=lambda: [print(l, end="", file=sys.stderr) for l in server.stderr], daemon=True).start()
    return server, line.rsplit(" on ", 1)[1].strip()


def schemathesis(python, url, examples):
    program = pathlib.Path(python).parent / "schemathesis"
    # Deleting and reading again is done by the other clients; here only that nothing makes the server fail.
    return [str(program), "run", f"{url}openapi.json", "--checks", "not_a_server_error,content_type_conformance",
            "--max-examples", str(examples), "--request-timeout", "60", "--continue-on-failure", "--seed", "1"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--neap", default=ROOT / "target/release/neap", help="the program")
    parser.add_argument("--python", default=sys.executable, help="a Python that has requirements.txt")
    parser.add_argument("--embedding-model", help="a model for /v1/embeddings; left out, the client expects 404")
    parser.add_argument("--only", help="python, npm, page or schemathesis")
    parser.add_argument("--examples", type=int, default=50, help="requests of schemathesis for each path")
    parser.add_argument("--screenshots", default="/tmp/neap-screenshots", help="folder for pictures of the page")
    given = parser.parse_args()
    serve = [str(given.neap), "serve", "--port", "0", "--memory", "256MiB", "--log", "error"]
    if given.embedding_model:
        serve += ["--embedding-model", given.embedding_model]
    server, url = started(serve)
    node = shutil.which("node")
    steps = {
        "python": [given.python, str(HERE / "openai_client.py"), f"{url}v1"],
        "npm": [node, str(HERE / "openai_client.mjs"), f"{url}v1"],
        "page": [node, str(HERE / "page.mjs"), url, given.screenshots],
        "schemathesis": schemathesis(given.python, url, given.examples),
    }
    failed = []
    try:
        for name, command in steps.items():
            if given.only not in (None, name):
                continue
            begin = time.monotonic()
            print(f"==> {name}", flush=True)
            if command[0] is None or subprocess.run(command, env={**os.environ, "FORCE_COLOR": "0"}).returncode != 0:
                failed.append(name)
            print(f"==> {name}: {'failed' if name in failed else 'passed'} in {time.monotonic() - begin:.0f} s")
    finally:
        server.terminate()
        code = server.wait(60)
    if failed or code != 0:
        sys.exit(f"failed: {', '.join(failed) or f'the server ended with {code}'}")


main()
