"""Custom tools of chat completions: their input is a text, which may have a grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import lark
import openai
import pytest
from served import start
from told_model import told_engine

from sglite.runtime.parse.base import Call
from sglite.runtime.parse.hermes import Hermes

PATH = "/v1/chat/completions"
TEXT = 'ls -la "x"\n\té\\'
SHELL = {"type": "custom", "custom": {"name": "shell", "description": "Runs a command."}}
PARAMETERS = {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]}
SEND = {"type": "function", "function": {"name": "send", "parameters": PARAMETERS}}
WRITTEN = [Call("shell", {"input": TEXT}), Call("send", {"message": "go"}), Call("shell", {"input": ""})]
LARK = r"""
start: command ("|" command)~0..2
command: /[a-c]/ QUOTED?
QUOTED: "\"" /[x\\]/ "\n" "\""
%ignore " "
"""


def say(prompt: str) -> str:
    return "Done." if "<tool_response>" in prompt else Hermes().write("", WRITTEN)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with told_engine(say) as engine:
        server, url, thread = start(engine)
        yield url
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as http:
        yield http


def held_to(syntax: str, definition: str) -> dict[str, Any]:
    form = {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}
    return {"type": "custom", "custom": {**SHELL["custom"], "format": form}}  # type: ignore[dict-item]


def ask(http: httpx.Client, status: int = 200, **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": "List the files."}], "tools": [SHELL, SEND], "max_tokens": 200}
    response = http.post(PATH, json={**body, **fields})
    assert response.status_code == status, response.text
    return response.json()


CALLS = [
    {"type": "custom", "custom": {"name": "shell", "input": TEXT}},
    {"type": "function", "function": {"name": "send", "arguments": '{"message": "go"}'}},
    {"type": "custom", "custom": {"name": "shell", "input": ""}},
]


def test_the_text_is_the_input(http: httpx.Client) -> None:
    choice = ask(http)["choices"][0]
    calls = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and all(call.pop("id") for call in calls)
    assert calls == CALLS


def test_a_stream_says_the_same_piece_by_piece(http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [SHELL, SEND], "max_tokens": 200, "stream": True}
    calls: dict[int, dict[str, Any]] = {}
    pieces = 0
    with http.stream("POST", PATH, json=body) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            for news in json.loads(line[6:])["choices"][0]["delta"].get("tool_calls", []):
                pieces += 1
                call = calls.setdefault(news["index"], {})
                kind = call.setdefault("type", news.get("type"))
                into = call.setdefault(kind, {})
                for key, value in news[kind].items():
                    into[key] = value if key == "name" else into.get(key, "") + value
    assert [calls[index] for index in sorted(calls)] == CALLS and pieces > 3


def test_openais_client_reads_them_and_the_conversation_goes_on(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    messages: list[Any] = [{"role": "user", "content": "List the files."}]
    tools: list[Any] = [SHELL, SEND]
    first = client.chat.completions.create(model="default", messages=messages, tools=tools, max_tokens=200)
    made = first.choices[0].message.tool_calls
    assert made is not None and [call.type for call in made] == ["custom", "function", "custom"]
    assert made[0].type == "custom" and made[0].custom.input == TEXT
    messages.append(first.choices[0].message.model_dump(exclude_none=True))
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "fine"} for call in made]
    second = client.chat.completions.create(model="default", messages=messages, tools=tools, max_tokens=200)
    assert second.choices[0].message.content == "Done."
    as_functions = [
        {**call, "type": "function", "function": {"name": "shell", "arguments": json.dumps({"input": text})}}
        for call, text in ((messages[1]["tool_calls"][0], TEXT), (messages[1]["tool_calls"][2], ""))
    ]
    for call in as_functions:
        del call["custom"]
    messages[1]["tool_calls"][0], messages[1]["tool_calls"][2] = as_functions
    third = client.chat.completions.create(model="default", messages=messages, tools=tools, max_tokens=200)
    assert second.usage is not None and third.usage is not None
    assert abs(second.usage.prompt_tokens - third.usage.prompt_tokens) < 8  # JSON has several spellings


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "custom", "custom": {"name": "shell"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "custom", "custom": {"name": "shell"}}]},
        },
    ],
)
def test_a_text_is_held_to_its_grammar(http: httpx.Client, choice: Any) -> None:
    reads = lark.Lark(LARK, parser="earley", lexer="dynamic_complete")
    fields = {"tool_choice": choice, "temperature": 2.0, "max_tokens": 60, "on_limit": "close"}
    for seed in range(3):
        found = ask(http, tools=[held_to("lark", LARK)], seed=seed, **fields)["choices"][0]["message"]["tool_calls"]
        assert found
        for call in found:
            reads.parse(call["custom"]["input"])
    (call,) = ask(http, tools=[held_to("regex", "ls|pwd")], **{**fields, "parallel_tool_calls": False})["choices"][0][
        "message"
    ]["tool_calls"]
    assert call["custom"]["input"] in ("ls", "pwd")


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "custom"}, "tools[0].custom.name"),
        ({"type": "custom", "custom": {"name": 1}}, "tools[0].custom.name"),
        ({"type": "custom", "custom": {"name": "f", "description": 1}}, "tools[0].custom.description"),
        ({"type": "custom", "custom": {"name": "f", "format": {"type": "json"}}}, "tools[0].custom.format"),
        ({"type": "custom", "custom": {"name": "f", "format": {"type": "grammar"}}}, "tools[0].custom.format"),
        (held_to("gbnf", "x"), "tools[0].custom.format"),
        (held_to("lark", "start: A"), "tools[0].custom.format.grammar.definition"),
        ({"type": "web_search"}, "tools[0].type"),
    ],
)
def test_what_is_wrong_with_a_tool_is_named(http: httpx.Client, tool: dict[str, Any], param: str) -> None:
    assert ask(http, 400, tools=[tool], tool_choice="required")["error"]["param"] == param


@pytest.mark.parametrize("custom", [None, 1, {}, {"name": "f"}, {"name": "f", "input": 1}, {"name": 1, "input": ""}])
def test_what_is_wrong_with_a_call_is_named(http: httpx.Client, custom: Any) -> None:
    call = {"id": "1", "type": "custom", "custom": custom}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    assert ask(http, 400, messages=messages)["error"]["param"] == "messages[1].tool_calls[0].custom"
