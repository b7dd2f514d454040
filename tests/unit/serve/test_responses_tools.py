"""Custom tools and namespaces of the Responses API: the model calls functions, the client's own tools are called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import lark
import pytest
from served import start
from told_model import told_engine

from sglite.runtime.parse.base import Call
from sglite.runtime.parse.hermes import Hermes
from sglite.runtime.serve.chat.custom import InputText
from sglite.runtime.serve.responses_api.items import messages_of

PATH = "/v1/responses"
TEXT = 'ls -la "x"\n\té\\'
PARAMETERS = {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]}
SPAWN = {"type": "function", "name": "spawn", "description": "Spawns.", "parameters": PARAMETERS}
SHELL = {"type": "custom", "name": "shell", "description": "Runs a command."}
AGENTS = {"type": "namespace", "name": "agents", "description": "Agents.", "tools": [SPAWN, SHELL]}
TOOLS = [SHELL, AGENTS]
WRITTEN = [
    Call("shell", {"input": TEXT}),
    Call("agents__spawn", {"message": "go"}),
    Call("agents__shell", {"input": "pwd"}),
]


def say(prompt: str) -> str:
    return "Done." if "<tool_response>" in prompt else Hermes().write("", WRITTEN)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with told_engine(say) as engine:
        server, url, thread = start(engine)
        with httpx.Client(base_url=url, timeout=60) as http:
            yield http
        server.should_exit = True
        thread.join(10)


def create(http: httpx.Client, status: int = 200, **fields: Any) -> Any:
    response = http.post(PATH, json={"input": "List the files.", "tools": TOOLS, "max_output_tokens": 200, **fields})
    assert response.status_code == status, response.text
    return response.json()


def shown(items: list[dict[str, Any]]) -> list[Any]:
    keys = ("type", "namespace", "name", "input", "arguments", "status")
    return [{key: item[key] for key in keys if key in item} for item in items]


CALLS = [
    {"type": "custom_tool_call", "name": "shell", "input": TEXT, "status": "completed"},
    {"type": "function_call", "namespace": "agents", "name": "spawn", "arguments": '{"message": "go"}',
     "status": "completed"},
    {"type": "custom_tool_call", "namespace": "agents", "name": "shell", "input": "pwd", "status": "completed"},
]  # fmt: skip


def test_the_clients_own_tools_are_called(http: httpx.Client) -> None:
    found = create(http)
    assert shown(found["output"]) == CALLS and found["tools"] == TOOLS
    assert [item["id"].partition("_")[0] for item in found["output"]] == ["ctc", "fc", "ctc"]


def test_a_stream_says_the_same_piece_by_piece(http: httpx.Client) -> None:
    events = []
    body = {"input": "List the files.", "tools": TOOLS, "max_output_tokens": 200, "stream": True}
    with http.stream("POST", PATH, json=body) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert shown(added) == [
        {**call, "status": "in_progress", ("input" if "input" in call else "arguments"): ""} for call in CALLS
    ]
    first = [event for event in events if event.get("item_id") == added[0]["id"]]
    deltas = [event["delta"] for event in first if event["type"] == "response.custom_tool_call_input.delta"]
    assert "".join(deltas) == TEXT
    assert first[-1]["type"] == "response.custom_tool_call_input.done" and first[-1]["input"] == TEXT
    assert [event["type"] for event in events if event.get("item_id") == added[1]["id"]][-1] == (
        "response.function_call_arguments.done"
    )
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert shown(done) == CALLS and shown(events[-1]["response"]["output"]) == CALLS


def test_the_conversation_goes_on(http: httpx.Client) -> None:
    first = create(http)
    outputs = [
        {"type": item["type"] + "_output", "call_id": item["call_id"], "output": "fine"} for item in first["output"]
    ]
    by_id = create(http, previous_response_id=first["id"], input=outputs)
    whole = create(http, input=[{"role": "user", "content": "List the files."}, *first["output"], *outputs])
    for found in (by_id, whole):
        assert found["output"][0]["content"][0]["text"] == "Done."
    assert by_id["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    calls = messages_of(first["output"])[0]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == [call.name for call in WRITTEN]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [call.arguments for call in WRITTEN]


def test_a_custom_tool_can_be_chosen_and_held_to_an_expression(http: httpx.Client) -> None:
    form = {"type": "grammar", "syntax": "regex", "definition": "ls|pwd"}
    chosen = {"type": "custom", "name": "shell"}
    found = create(http, tools=[{**SHELL, "format": form}, AGENTS], tool_choice=chosen)
    assert len(found["output"]) == 1 and found["output"][0]["input"] in ("ls", "pwd")


LARK = r"""
start: command ("|" command)~0..2
command: /[a-c]/ QUOTED?
QUOTED: "\"" /[x\\]/ "\n" "\""
%ignore " "
"""


@pytest.mark.parametrize("choice", ["required", {"type": "custom", "name": "shell"}])
def test_a_custom_tool_can_be_held_to_a_grammar(http: httpx.Client, choice: Any) -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": LARK}
    reads = lark.Lark(LARK, parser="earley", lexer="dynamic_complete")
    for seed in range(5):
        body = {"tools": [{**SHELL, "format": form}], "tool_choice": choice, "temperature": 2.0, "seed": seed}
        found = create(http, **body, on_limit="close", max_output_tokens=60)
        assert found["output"]
        for item in found["output"]:
            assert item["type"] == "custom_tool_call"
            reads.parse(item["input"])


def test_what_is_wrong_with_a_grammar_is_told_with_its_place(http: httpx.Client) -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": "start: A"}
    error = create(http, 400, tools=[{**SHELL, "format": form}], tool_choice="required")["error"]
    assert error["message"] == "tools[0].format.definition: grammar, line 1 column 8: 'A' is not defined"
    assert error["param"] == "tools[0].format.definition"


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "web_search"}], "tools[0].type"),
        ([{**AGENTS, "tools": [{"type": "web_search"}]}], "tools[0].tools[0].type"),
        ([{**AGENTS, "name": ""}], "tools[0].name"),
        ([{**SHELL, "format": {"type": "grammar", "syntax": "gbnf", "definition": "x"}}], "tools[0].format"),
        ([{**SHELL, "format": {"type": "grammar", "syntax": "lark"}}], "tools[0].format"),
        ([{"type": "custom"}], "tools[0].name"),
        ([AGENTS, {**SPAWN, "name": "agents__spawn"}], "tools"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, tools: list[Any], param: str) -> None:
    assert create(http, 400, tools=tools)["error"]["param"] == param


@pytest.mark.parametrize("item", [{"name": "f"}, {"name": "f", "input": "x", "call_id": "c", "namespace": 1}])
def test_wrong_items_are_named(http: httpx.Client, item: dict[str, Any]) -> None:
    assert create(http, 400, input=[{"type": "custom_tool_call", **item}])["error"]["param"].startswith("input[0]")


@pytest.mark.parametrize("text", [TEXT, "", "\\\\ud83d", '"', "😀😀 é😀"])
@pytest.mark.parametrize("escaped", [True, False])
def test_the_text_comes_whole_however_it_is_cut(text: str, escaped: bool) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=escaped)
    for size in range(1, len(arguments) + 1):
        reader = InputText()
        assert "".join(reader.feed(arguments[at : at + size]) for at in range(0, len(arguments), size)) == text


def test_a_text_that_is_broken_off_is_there_as_far_as_it_goes() -> None:
    for arguments, text in (('{ "input" : "ab\\u00', "ab"), ('{"input": "a\\ud83d b"}', "a\ufffd b"), ('{"inp', "")):
        reader = InputText()
        assert "".join(map(reader.feed, arguments)) == text
