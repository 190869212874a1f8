"""Clients that keep a server busy, for the measurements beside this file."""

import json
import threading
import time
import urllib.request


def wait_for(base, seconds=60):
    """Waits until the server at `base` answers."""
    for _ in range(seconds * 10):
        try:
            urllib.request.urlopen(f"{base}/health", timeout=5)
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"no server answers at {base}")


class Clients:
    """So many clients that ask one after the other until told to stop."""

    def __init__(self, base, number, prompt_words, tokens):
        self.base, self.words, self.tokens = base, prompt_words, tokens
        self.answers, self.failures, self.stop = 0, [], False
        self.threads = [threading.Thread(target=self.ask_on, args=(i,)) for i in range(number)]
        for thread in self.threads:
            thread.start()

    def ask_on(self, number):
        turn = 0
        while not self.stop:
            turn += 1
            prompt = " ".join(str((number * 7919 + turn * 104729 + k * 31) % 997) for k in range(self.words))
            body = {"prompt": prompt, "max_tokens": self.tokens, "temperature": 0, "ignore_eos": True}
            request = urllib.request.Request(f"{self.base}/v1/completions", json.dumps(body).encode(),
                                             {"content-type": "application/json"})
            try:
                answer = json.load(urllib.request.urlopen(request, timeout=300))
                if answer["usage"]["completion_tokens"] == 0:
                    raise ValueError(f"no tokens: {answer}")
                self.answers += 1
            except Exception as why:  # whatever a client may see counts as a failure
                detail = why.read().decode() if hasattr(why, "read") else repr(why)
                self.failures.append(detail)
                time.sleep(0.5)

    def end(self):
        self.stop = True
        for thread in self.threads:
            thread.join()
