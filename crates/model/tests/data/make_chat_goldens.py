#!/usr/bin/env python3
"""Renders conversations with Jinja2 in the environment that Hugging Face's transformers gives chat templates.

Needs jinja2 from PyPI (made with 3.1.6). Writes chat/goldens.json: for each template in chat/templates.json and each
conversation below, the prompt, or what the template said when it refused. The templates are written for these tests
after the formats that the models' cards document.

    python make_chat_goldens.py                     # writes chat/
    python make_chat_goldens.py TEMPLATES FOLDER    # the same of a folder of *.jinja files, for an opt-in test
"""

import datetime
import json
import os
import pathlib
import sys

from jinja2 import Environment
from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "chat")
NOW = datetime.datetime.fromtimestamp(1_722_036_645, tz=datetime.timezone.utc)  # 2024-07-26 23:30:45

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'"
        " + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "qwen2.5": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nCall functions to help:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "llama-2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama-3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
        "+ message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "llama-3.1": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
        "{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
    ),
    "phi-3": (
        "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
        "{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}"
        "{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}"
        "{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    # Not a model's: what else templates use.
    "features": """{#- a comment -#}
{%- set ns = namespace(count=0, last='') -%}
{%- macro line(role, text='-') -%}
[{{ role | upper }}] {{ text }}
{% endmacro -%}
{%- for message in messages if message.content is string -%}
    {%- if message.role == 'tool' -%}{% continue %}{%- endif -%}
    {%- set ns.count = ns.count + 1 -%}
    {%- set ns.last = message.content.split('\\n')[-1].rstrip() -%}
    {{- line(message.role, text=message['content'] | replace('\\n', ' / ')) -}}
    {%- if ns.count >= 4 -%}{% break %}{%- endif -%}
{%- endfor %}
  {% generation %}
count={{ ns.count }} last={{ ns.last[:5] }}|{{ ns.last[-3:] }} {{ 'many' if ns.count > 2 else 'few' }}
  {% endgeneration %}
{{ messages | map(attribute='role') | list | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ {'a': [1, 2.5, none, true], 'b': '<é"\\n>'} | tojson }} {{ [true, none, 'x'] }} {{ none }} {{ 7 // 2 }} {{ 'a' ~ 1 }}
{{ messages[::-1][0].role }} {{ 'x'.startswith('x') }} {{ messages[0].get('name', 'nobody') }} {{ range(3) | list }}
{% for key, value in {'k': 1, 'j': 'v'}.items() %}{{ key }}={{ value }};{% endfor +%}
{{ undefined_name }}{{ '  strip me  ' | trim }}{{ 'title case'.title() }} {{ "%s-%d" | format('f', 3) }}
{%- if tools is iterable and tools | length > 0 %} tools{% endif %} {{ [none is iterable, 1 is iterable, 'a' is iterable, {} is iterable, undefined_name is iterable] }}
{%- if enable_thinking is defined and not enable_thinking %} no thinking{% endif %}
""",
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city, in °C <now> & 'later'",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
                "required": ["city"],
            },
        },
    }
]

CONVERSATIONS = {
    "one question": {"messages": [{"role": "user", "content": "Hello, <b>you</b> & 'them'!"}]},
    "with a system message": {
        "messages": [
            {"role": "system", "content": "Be brief.\nBe kind. "},
            {"role": "user", "content": "  Hi!  "},
            {"role": "assistant", "content": " Hello. "},
            {"role": "user", "content": "Bye\nnow"},
        ]
    },
    "not asking for more": {
        "messages": [{"role": "user", "content": "ping"}, {"role": "assistant", "content": "pong"}],
        "add_generation_prompt": False,
    },
    "roles that do not alternate": {
        "messages": [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    },
    "tools": {
        "messages": [
            {"role": "user", "content": "Weather in Zürich?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}}
                ],
            },
            {"role": "tool", "content": '{"temp": 21}'},
        ],
        "tools": TOOLS,
    },
    "tools with ids": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather in Zürich, and in Köln?"},
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "Two calls.",
                "tool_calls": [
                    {"type": "function", "id": "abcdef123",
                     "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}},
                    {"type": "function", "id": "abcdef124",
                     "function": {"name": "get_weather", "arguments": {"city": "Köln"}}},
                ],
            },
            {"role": "tool", "tool_call_id": "abcdef123", "name": "get_weather", "content": '{"temp": 21}'},
            {"role": "tool", "tool_call_id": "abcdef124", "name": "get_weather", "content": "rain"},
            {"role": "assistant", "content": "<think>\nSun and rain.\n</think>\n\nSun, and rain."},
            {"role": "user", "content": "And tomorrow?"},
        ],
        "tools": TOOLS,
        "now": True,
    },
    "variables": {"messages": [{"role": "user", "content": "x", "name": "Ann"}], "enable_thinking": False, "now": True},
}


class Raised(Exception):
    pass


def environment():
    class Generation(loopcontrols):
        """Adds `generation` blocks, which print what they hold."""

        tags = {"break", "continue", "generation"}

        def parse(self, parser):
            if parser.stream.current.value != "generation":
                return super().parse(parser)
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def raise_exception(message):
        raise Raised(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    env: Environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


def render(source, conversation):
    env = environment()
    given = dict(conversation)
    if given.pop("now", False):
        env.globals["strftime_now"] = NOW.strftime
    given.setdefault("add_generation_prompt", True)
    given.setdefault("tools", None)
    try:
        return {"prompt": env.from_string(source).render(bos_token="<s>", eos_token="</s>", **given)}
    except Raised as error:
        return {"refused": str(error)}
    except (TemplateError, TypeError) as error:
        return {"failed": str(error)}


def write(templates, folder):
    os.makedirs(folder, exist_ok=True)
    goldens = {
        name: {title: render(source, conversation) for title, conversation in CONVERSATIONS.items()}
        for name, source in templates.items()
    }
    for name, value in [("templates", templates), ("conversations", CONVERSATIONS), ("goldens", goldens)]:
        with open(os.path.join(folder, f"{name}.json"), "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.write("\n")


def main():
    if len(sys.argv) == 1:
        return write(TEMPLATES, HERE)
    published = sorted(pathlib.Path(sys.argv[1]).glob("*.jinja"))
    write({path.stem: path.read_text(encoding="utf-8") for path in published}, sys.argv[2])


if __name__ == "__main__":
    main()
