"""Turns as the models write them, in every format: the same calls and content however the text is cut."""

from __future__ import annotations

import json

import pytest
from parse_turns import NASTY, TOOLS, TURNS, feed, read, read_every_way

from sglite.runtime.parse.base import Call, CallArguments, CallEnd, CallStart, ToolFormat
from sglite.runtime.parse.registry import tool_format

FORMATS = [
    tool_format(name)
    for name in (
        "hermes",
        "deepseekv3",
        "deepseekv31",
        "kimi_k2",
        "mistral",
        "mistral_named",
        "gpt-oss",
        "llama3",
        "pythonic",
    )
]
NAMED = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)


@NAMED
def test_a_turn_is_read_back_however_it_is_cut(form: ToolFormat) -> None:
    for content, calls in TURNS:
        found = read_every_way(lambda: form.parser(TOOLS), form.write(content, calls))
        assert found.content == content and not found.reasoning
        assert [name for name, *_ in found.calls] == [call.name for call in calls]
        assert [json.loads(text) for _, _, text, _ in found.calls] == [call.arguments for call in calls]
        assert all(ended for *_, ended in found.calls)


@NAMED
def test_a_call_is_told_as_it_comes(form: ToolFormat) -> None:
    text = form.write("", [Call("f", {"a": "z" * 60, "n": 12345})])
    parser, at, pieces = form.parser(TOOLS), {}, []
    for i, char in enumerate(text):
        for event in parser.feed(char):
            at[type(event)] = i
            if isinstance(event, CallStart):
                begun = i
            elif isinstance(event, CallArguments):
                pieces.append(event.text)
    assert begun < text.index("z")
    assert sum(piece.endswith("z") for piece in pieces) == 60
    assert not any(piece in ("1", "12", "123") for piece in pieces)
    assert at[CallEnd] == at[CallArguments] == text.index("12345") + 5


@NAMED
def test_what_breaks_off_has_no_end_and_shows_no_mark(form: ToolFormat) -> None:
    arguments = NASTY[2]
    text = form.write("Let me see.", [Call("f", arguments)])
    whole = read(form.parser(TOOLS), [text]).calls[0][2]
    for end in range(len(text)):
        found = read(form.parser(TOOLS), [text[:end]])
        assert not any(mark in found.content for mark in form.marks), text[:end]
        for name, _, written, ended in found.calls:
            assert name == "f" and whole.startswith(written)
            assert ended == (written == whole)


@NAMED
def test_names_that_are_no_tools_are_handed_on_behind_a_mark(form: ToolFormat) -> None:
    text = form.write("Hm.", [Call("nobody", {"a": [1]})])
    assert read_every_way(lambda: form.parser(TOOLS), text).calls[0][0] == "nobody"


@pytest.mark.parametrize("form", [form for form in FORMATS if form.name != "gpt-oss"], ids=lambda form: form.name)
def test_plain_text_comes_at_once_but_for_what_may_belong_to_a_mark(form: ToolFormat) -> None:
    parser = form.parser(TOOLS)
    shown = [[getattr(event, "text", "") for event in parser.feed(word)] for word in ("Hello", " there", ", you", " ")]
    assert ["".join(texts) for texts in shown] == ["Hello", " there", ", you", ""]
    assert [getattr(event, "text", "") for event in parser.finish()] == [" "]


def test_the_ids_that_a_model_writes_are_kept() -> None:
    calls = [Call("f", {"a": 1}), Call("get-b.c")]
    kimi = tool_format("kimi_k2")
    found = read_every_way(lambda: kimi.parser(TOOLS), kimi.write("", calls))
    assert [id_ for _, id_, *_ in found.calls] == ["functions.f:0", "functions.get-b.c:1"]
    mistral = tool_format("mistral")
    found = read_every_way(lambda: mistral.parser(TOOLS), "[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{}")
    assert found.calls == [("f", "a1b2c3d4e", "{}", True)]


def test_no_format_has_state_of_its_own() -> None:
    form = tool_format("hermes")
    first, second = form.parser(TOOLS), form.parser(TOOLS)
    first.feed('<tool_call>\n{"name": "f", ')
    assert feed(second, ["plain"])[0] == feed(form.parser([]), ["plain"])[0]
