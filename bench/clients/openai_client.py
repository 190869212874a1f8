#!/usr/bin/env python3
"""Drives a running server with the official `openai` package.

    neap serve --port 8080 &
    python3 bench/clients/openai_client.py http://127.0.0.1:8080/v1

Skips with a message where the package is not installed.
"""
import json
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


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"enum": ["small", "large"]},
        "parts": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
    },
    "required": ["name", "size", "parts"],
    "additionalProperties": False,
}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": WEATHER}]


def fits(text):
    value = json.loads(text)
    assert set(value) == {"name", "size", "parts"} and len(value["name"]) <= 12
    assert value["size"] in ("small", "large") and len(value["parts"]) <= 3


def schema():
    form = {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": SCHEMA}}
    for seed in range(10):
        done = chat(response_format=form, max_tokens=200, temperature=1, seed=seed).choices[0]
        assert done.finish_reason == "stop", done
        fits(done.message.content)
    for seed in range(10):
        done = chat(response_format={"type": "json_object"}, max_tokens=400, temperature=1, seed=seed).choices[0]
        if done.finish_reason == "stop":
            assert isinstance(json.loads(done.message.content), dict)
    refused(
        openai.BadRequestError,
        "unsupported_grammar",
        "response_format",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "strict": True, "schema": {"type": "nothing"}},
        },
    )


def parsed():
    import pydantic
    from typing import Literal

    class Thing(pydantic.BaseModel):
        kind: Literal["red", "blue"]
        count: Literal[1, 2, 3]

    done = client.chat.completions.parse(
        model=MODEL, messages=HELLO, response_format=Thing, max_tokens=100, temperature=0
    )
    assert done.choices[0].message.parsed.kind in ("red", "blue")


def tools():
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        done = chat(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, max_tokens=200)
        assert done.choices[0].finish_reason == "tool_calls", done
        (call,) = done.choices[0].message.tool_calls
        assert call.function.name == "get_weather"
        whole = call.function.arguments
        assert set(json.loads(whole)) == {"city", "unit"}
    chunks = list(
        chat(tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=200, stream=True)
    )
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert calls[0].id and calls[0].function.name == "get_weather"
    assert "".join(call.function.arguments or "" for call in calls) == whole
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"
    talk = HELLO + [
        done.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    assert chat(messages=talk, tools=TOOLS).choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert not chat(tools=TOOLS, tool_choice="none").choices[0].message.tool_calls


def responses():
    ask = {"model": MODEL, "max_output_tokens": 16, "temperature": 0}
    first = client.responses.create(input="Hello, who are you?", instructions="Be brief.", **ask)
    assert first.status in ("completed", "incomplete") and first.output_text
    assert first.usage.total_tokens == first.usage.input_tokens + first.usage.output_tokens
    second = client.responses.create(input="And then?", previous_response_id=first.id, **ask)
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    try:
        client.responses.create(input="x", previous_response_id=first.id, **ask)
        raise AssertionError("a response that is gone was gone on from")
    except openai.BadRequestError as error:
        assert error.param == "previous_response_id"


def responses_stream():
    ask = {"model": MODEL, "input": "Hello", "max_output_tokens": 16, "temperature": 0}
    whole = client.responses.create(**ask).output_text
    with client.responses.stream(**ask) as events:
        text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        # The helper gathers what completes; an answer that was cut at its limit is not among it.
    assert text == whole, (text, whole)


def responses_forms():
    ask = {"model": MODEL, "input": "Hello", "max_output_tokens": 200, "temperature": 1, "seed": 1}
    extra = {"extra_body": {"seed": ask.pop("seed")}}
    form = {"format": {"type": "json_schema", "name": "thing", "strict": True, "schema": SCHEMA}}
    fits(client.responses.create(text=form, **ask, **extra).output_text)
    tool = {"type": "function", "strict": True, **WEATHER}
    done = client.responses.create(
        tools=[tool], tool_choice="required", parallel_tool_calls=False, **ask, **extra
    )
    (call,) = done.output
    assert call.type == "function_call" and set(json.loads(call.arguments)) == {"city", "unit"}
    events = list(
        client.responses.create(
            tools=[tool], tool_choice="required", parallel_tool_calls=False, stream=True, **ask, **extra
        )
    )
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert json.loads("".join(deltas)) and events[-1].type == "response.completed"


def named():
    key = {"extra_body": {"prompt_cache_key": "client-test", "prompt_cache_retention": "in_memory"}}
    chat(**key)
    assert chat(**key).usage.prompt_tokens_details.cached_tokens > 0


def deadline():
    refused(openai.APIStatusError, "deadline_exceeded", None, max_tokens=2000, extra_body={"timeout": 0.001})


def cancelled():
    events = chat(stream=True, max_tokens=200)
    next(iter(events))
    events.close()


def embeddings():
    served = client.models.list().data
    if len(served) < 2:
        try:
            client.embeddings.create(model=MODEL, input="x")
            raise AssertionError("a vector without a model for it")
        except openai.NotFoundError:
            return
    ask = {"model": served[1].id, "input": ["the sea", "the moon"]}
    made = client.embeddings.create(**ask)
    assert [d.index for d in made.data] == [0, 1] and made.usage.total_tokens > 0
    assert abs(sum(x * x for x in made.data[0].embedding) - 1) < 1e-3
    assert len(client.embeddings.create(dimensions=16, **ask).data[0].embedding) == 16


CHECKS = [models, answer, stream, stream_helper, choices, logprobs, stop, bias, completions, errors]
CHECKS += [schema, parsed, tools, responses, responses_stream, responses_forms, named, deadline, cancelled, embeddings]
for check in CHECKS:
    check()
    print("ok", check.__name__)
print(f"{len(CHECKS)} checks passed with openai {openai.__version__}")
