"""Anthropic's words in ours, and turns as content blocks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglite.runtime.engine.presenter import Progress
from sglite.runtime.serve.anthropic.conversation import read_conversation
from sglite.runtime.serve.anthropic.events import WIRE, Blocks, content_of, ending
from sglite.runtime.serve.anthropic.tools import read_choice, read_tools
from sglite.runtime.serve.chat.call import CallDelta, CalledTool, ChatDelta, ChatTurn
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields

TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}


def converse(messages: Any, system: Any = None) -> tuple[list[dict[str, Any]], list[str]]:
    return read_conversation(Fields({"messages": messages, "system": system}))


# --- conversations ----------------------------------------------------------------------------------------------


def test_a_conversation_with_tools_is_the_chat_layers() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "c"}, call,
            {**call, "id": "t2"},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": "3"},
            {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": [{"type": "text", "text": "no"}]},
            {"type": "text", "text": "go on", "cache_control": {"type": "ephemeral"}},
        ]},
    ]  # fmt: skip
    function = {"name": "add", "arguments": {"a": 1}}
    assert converse(messages, [{"type": "text", "text": "S"}, {"type": "text", "text": "T"}]) == ([
        {"role": "system", "content": "S\nT"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c", "reasoning_content": "hm", "tool_calls": [
            {"id": "t1", "type": "function", "function": function},
            {"id": "t2", "type": "function", "function": function},
        ]},
        {"role": "tool", "tool_call_id": "t1", "content": "3"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no"},
        {"role": "user", "content": "go on"},
    ], [])  # fmt: skip


def test_what_a_search_has_found_is_text() -> None:
    hit = {"type": "search_result", "title": "T", "source": "https://t", "content": [{"type": "text", "text": "a"}]}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [hit, {"type": "text", "text": "b"}]}
    found, ignored = converse([{"role": "user", "content": [hit, result]}])
    assert ignored == [] and [message["content"] for message in found] == ["T\nhttps://t\na", "T\nhttps://t\na\nb"]


def test_turns_of_the_same_role_are_one() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
    ]
    found, _ = converse(messages)
    assert [(one["role"], one["content"]) for one in found] == [("user", "a\nb"), ("assistant", "c")]
    assert found[1]["tool_calls"][0]["id"] == "t"


def test_what_is_left_out_of_a_prompt_is_named() -> None:
    system = [{"type": "text", "text": "x-anthropic-billing-header: v=1; h=ab"}, {"type": "text", "text": "S"}]
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "?"}, {"type": "text", "text": "b"}]},
        {"role": "system", "content": "x-anthropic-billing-header: v=1; h=cd"},
        {"role": "user", "content": "c"},
        {"role": "system", "content": [system[0], {"type": "text", "text": "T"}]},
    ]
    found, ignored = converse(messages, system)
    assert [(one["role"], one["content"]) for one in found] == [
        ("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("system", "T"),
    ]  # fmt: skip
    assert ignored == ["system.x-anthropic-billing-header", "redacted_thinking"]


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("", "messages[0].content"),
        ([], "messages[0].content"),
        (None, "messages[0].content"),
        (["x"], "messages[0].content[0]"),
        ([{"type": "image", "source": {}}], "messages[0].content[0]"),
        ([{"type": "document", "source": {}}], "messages[0].content[0]"),
        ([{"type": "search_result", "content": [{"type": "search_result"}]}], "messages[0].content[0].content[0]"),
        ([{"type": "text"}], "messages[0].content[0].text"),
        ([{"type": "tool_result"}], "messages[0].content[0].tool_use_id"),
        ([{"type": "tool_result", "tool_use_id": "t", "content": 3}], "messages[0].content[0].content"),
        ([{"type": "tool_result", "tool_use_id": "t", "is_error": 1}], "messages[0].content[0].is_error"),
        (
            [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}],
            "messages[0].content[0].content[0]",
        ),
    ],
)
def test_a_block_that_is_wrong_is_named(content: Any, field: str) -> None:
    with pytest.raises(Refused) as caught:
        converse([{"role": "user", "content": content}])
    assert caught.value.param == field and caught.value.status == 400


# --- tools ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", None, True)),
        ({"type": "auto"}, ("auto", None, True)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ("auto", None, False)),
        ({"type": "any"}, ("required", None, True)),
        ({"type": "tool", "name": "add"}, ("required", "add", True)),
        ({"type": "none"}, ("none", None, True)),
    ],
)
def test_choices_are_the_chat_layers(choice: Any, expected: tuple[str, str | None, bool]) -> None:
    tools, _ = read_tools(Fields({"tools": [TOOL]}), [])
    found, parallel = read_choice(Fields({"tool_choice": choice}), tools)
    assert (found.mode, found.name, parallel) == expected


def test_fields_of_tools_without_effect_are_named() -> None:
    ignored: list[str] = []
    given = {**TOOL, "cache_control": {"type": "ephemeral"}, "defer_loading": True, "strict": True}
    (tool,), dicts = read_tools(Fields({"tools": [given]}), ignored)
    assert tool.strict and ignored == ["tools.defer_loading"]
    function = {"name": "add", "description": "Adds.", "parameters": TOOL["input_schema"]}
    assert dicts == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("tool", "field"),
    [
        ({"type": "web_search_20250305", "name": "web_search"}, "tools[0].type"),
        ({"type": "bash_20250124", "name": "bash"}, "tools[0].type"),
        ({"name": "x"}, "tools[0].input_schema"),
        ({"input_schema": {}}, "tools[0].name"),
    ],
)
def test_tools_that_cannot_be_offered_are_refused_by_name(tool: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as caught:
        read_tools(Fields({"tools": [tool]}), [])
    assert caught.value.param == field


# --- blocks -----------------------------------------------------------------------------------------------------


def event(finish: Any = None, completion: int = 5) -> dict[str, Any]:
    return {"meta_info": {"finish_reason": finish, "completion_tokens": completion}}


def folded(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a client makes of a stream; checks that blocks begin, grow and end one after the other."""
    blocks: list[dict[str, Any]] = []
    texts: list[str] = []
    is_open = False
    for one in events:
        if one["type"] == "content_block_start":
            assert not is_open and one["index"] == len(blocks)
            blocks.append(dict(one["content_block"]))
            texts.append("")
            is_open = True
            continue
        assert is_open and one["index"] == len(blocks) - 1
        if one["type"] == "content_block_stop":
            is_open = False
            continue
        kind = one["delta"]["type"]
        field = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}.get(kind)
        assert (blocks[-1]["type"], kind) in {
            ("text", "text_delta"), ("thinking", "thinking_delta"), ("thinking", "signature_delta"),
            ("tool_use", "input_json_delta"),
        }  # fmt: skip
        texts[-1] += one["delta"][field] if field else ""
    assert not is_open
    for block, text in zip(blocks, texts, strict=True):
        if block["type"] == "tool_use":
            block["input"] = json.loads(text or "{}")
        else:
            block[block["type"]] = text
    return blocks


@st.composite
def cut_turns(draw: st.DrawFn) -> tuple[ChatTurn, list[ChatDelta]]:
    """A turn, and its news cut anywhere: at any character, several things in one, as big steps bring them."""
    text = st.text(alphabet="ab\n", max_size=4)
    turn = ChatTurn(content=draw(text), reasoning=draw(text))
    arguments = st.sampled_from(["", "{}", '{"a": 1}', '{"a": {"b": [2]}}'])
    turn.calls = [CalledTool(id=f"c{i}", name="f", arguments=draw(arguments)) for i in range(draw(st.integers(0, 3)))]
    atoms: list[tuple[str, Any]] = [("reasoning", c) for c in turn.reasoning] + [("content", c) for c in turn.content]
    for index, call in enumerate(turn.calls):
        atoms.append(("call", CallDelta(index, id=call.id, name=call.name)))
        atoms += [("call", CallDelta(index, c)) for c in call.arguments]
    cuts = sorted(draw(st.lists(st.integers(0, len(atoms)), max_size=5)))
    deltas = []
    for low, high in zip([0, *cuts], [*cuts, len(atoms)], strict=True):
        part = atoms[low:high]
        texts = {kind: "".join(one for of, one in part if of == kind) for kind in ("reasoning", "content")}
        calls = tuple(one for of, one in part if of == "call")
        deltas.append(ChatDelta(index=0, calls=calls, progress=Progress(), **texts))
    return turn, deltas


@given(cut_turns())
def test_however_a_turn_is_cut_its_blocks_are_those_of_the_whole(cut: tuple[ChatTurn, list[ChatDelta]]) -> None:
    turn, deltas = cut
    blocks = Blocks()
    events = [one for delta in deltas for one in blocks.add(delta)] + blocks.close()
    assert folded(events) == content_of(turn)


def test_a_call_is_written_on_before_what_follows_it() -> None:
    blocks = Blocks()
    first = ChatDelta(index=0, calls=(CallDelta(0, id="c", name="f"), CallDelta(0, '{"a"')), progress=Progress())
    second = ChatDelta(index=0, content="then", calls=(CallDelta(0, ": 1}"),), progress=Progress())
    found = folded([*blocks.add(first), *blocks.add(second), *blocks.close()])
    assert [block["type"] for block in found] == ["tool_use", "text"]
    assert found[0]["input"] == {"a": 1} and found[1]["text"] == "then"


def test_of_a_call_that_was_broken_off_the_whole_arguments_are_given() -> None:
    turn = ChatTurn(calls=[CalledTool(id="c", name="f", arguments='{"a": 1, "b": "half')])
    assert content_of(turn)[0]["input"] == {"a": 1}


@pytest.mark.parametrize(
    ("finish", "reason", "limit", "expected"),
    [
        ("stop", {"type": "stop", "matched": 7}, 9, ("end_turn", None)),
        ("stop", {"type": "stop", "matched": "END"}, 9, ("stop_sequence", "END")),
        ("tool_calls", {"type": "stop", "matched": 7}, 9, ("tool_use", None)),
        ("length", {"type": "length", "length": 5}, 5, ("max_tokens", None)),
        ("length", {"type": "length", "length": 5}, 9, ("model_context_window_exceeded", None)),
        ("abort", {"type": "abort"}, 9, ("pause_turn", None)),
    ],
)
def test_every_ending_has_a_reason(finish: str, reason: Any, limit: int, expected: tuple[str, str | None]) -> None:
    found = ending(finish, event(reason), limit)
    assert (found["stop_reason"], found["stop_sequence"]) == expected


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (404, "not_found_error"), (429, "rate_limit_error"), (500, "api_error"),
     (503, "overloaded_error")],
)  # fmt: skip
def test_what_goes_wrong_in_a_stream_is_an_event_that_clients_know(status: int, kind: str) -> None:
    name, data = WIRE.failed(Refused(status, "what went wrong")).decode().removesuffix("\n\n").split("\n")
    assert name == "event: error"
    expected = {"type": "error", "error": {"type": kind, "message": "what went wrong"}}
    assert json.loads(data.removeprefix("data: ")) == expected
