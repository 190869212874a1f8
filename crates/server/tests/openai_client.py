#!/usr/bin/env python3
"""Drives a running server with the official `openai` package.

    neap serve --port 8080 &
    python3 crates/server/tests/openai_client.py http://127.0.0.1:8080/v1

Skips with a message where the package is not installed.
"""
import sys

try:
    import openai
except ImportError:
    print("skipped: the `openai` package is not installed")
    sys.exit(0)

BASE = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080/v1"
client = openai.OpenAI(base_url=BASE, api_key="none", max_retries=0, timeout=120)
MODEL = client.models.list().data[0].id
HELLO = [{"role": "user", "content": "Hello, who are you?"}]


def chat(**more):
    options = {"model": MODEL, "messages": HELLO, "max_tokens": 24, "temperature": 0}
    return client.chat.completions.create(**{**options, **more})


def models():
    assert client.models.retrieve(MODEL).id == MODEL


def answer():
    first = chat()
    choice = first.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    again = chat()
    assert again.choices[0].message.content == choice.message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def stream():
    whole = chat().choices[0].message.content
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole, (text, whole)
    assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")


def stream_helper():
    with client.chat.completions.stream(
        model=MODEL, messages=HELLO, max_tokens=24, temperature=0
    ) as events:
        final = events.get_final_completion()
    assert final.choices[0].message.content == chat().choices[0].message.content


def choices():
    texts = [c.message.content for c in chat(n=2, temperature=1.5, seed=7).choices]
    assert len(texts) == 2
    assert texts == [c.message.content for c in chat(n=2, temperature=1.5, seed=7).choices]


def logprobs():
    content = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    for token in content:
        assert len(token.top_logprobs) == 3
        # Greedy takes the most likely.
        assert token.logprob == token.top_logprobs[0].logprob <= 0
    chunks = chat(logprobs=True, top_logprobs=3, stream=True)
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert [t.token for t in streamed] == [t.token for t in content]


def stop():
    text = chat().choices[0].message.content
    word = text.split()[1]
    cut = chat(stop=[word]).choices[0]
    assert cut.finish_reason == "stop" and cut.message.content == text[: text.find(word)]


def bias():
    token = chat(logprobs=True).choices[0].logprobs.content[0]
    import json
    import urllib.request

    request = urllib.request.Request(
        BASE.removesuffix("/v1") + "/tokenize",
        json.dumps({"prompt": token.token, "add_special_tokens": False}).encode(),
    )
    ids = json.load(urllib.request.urlopen(request))["tokens"]
    if len(ids) == 1:
        other = chat(logprobs=True, logit_bias={str(ids[0]): -100})
        assert other.choices[0].logprobs.content[0].token != token.token


def completions():
    done = client.completions.create(
        model=MODEL, prompt=["Once upon", "The sea"], max_tokens=8, temperature=0, logprobs=2
    )
    assert [c.index for c in done.choices] == [0, 1]
    assert len(done.choices[0].logprobs.tokens) <= 8
    chunks = client.completions.create(
        model=MODEL, prompt="Once upon", max_tokens=8, temperature=0, stream=True
    )
    assert "".join(c.choices[0].text for c in chunks) == done.choices[0].text


def refused(kind, code, param, **more):
    try:
        chat(**more)
    except kind as error:
        assert error.code == code, (error.code, code)
        assert error.param == param, (error.param, param)
        return
    raise AssertionError(f"{more} was not refused")


def errors():
    refused(openai.NotFoundError, "model_not_found", "model", model="gpt-4")
    refused(openai.BadRequestError, None, "temperature", temperature=9)
    refused(openai.BadRequestError, None, "messages", messages=[])
    refused(openai.BadRequestError, None, "n", n=0)
    long = [{"role": "user", "content": "word " * 200_000}]
    refused(openai.BadRequestError, "context_length_exceeded", "messages", messages=long)


def cancelled():
    events = chat(stream=True, max_tokens=200)
    next(iter(events))
    events.close()


CHECKS = [models, answer, stream, stream_helper, choices, logprobs, stop, bias, completions, errors, cancelled]
for check in CHECKS:
    check()
    print("ok", check.__name__)
print(f"{len(CHECKS)} checks passed with openai {openai.__version__}")
