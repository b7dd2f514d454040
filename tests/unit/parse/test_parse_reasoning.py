"""Thinking: where it begins and ends, what belongs to its marks, what is text."""

from __future__ import annotations

import pytest
from parse_turns import TOOLS, Read, read_every_way

from sglite.runtime.parse.base import Reasoning, TurnParser
from sglite.runtime.parse.detect import Formats
from sglite.runtime.parse.machine import PlainTurn
from sglite.runtime.parse.registry import REASONING_FORMATS, reasoning_format, tool_format

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "</think> <think>"}}\n</tool_call>'
CALLS = [("f", None, '{"a": "</think> <think>"}', True)]

# whether the prompt opened it, turn, what it is read as
CASES = [
    (False, "<think>\nhm\n</think>\n\nHi\n", Read("Hi\n", "hm", [])),
    (False, " \n<think>hm</think>Hi", Read("Hi", "hm", [])),
    (False, "<think>\n\n</think>\n\nHi", Read("Hi", "", [])),
    (False, "Hi <think>x</think>", Read("Hi <think>x</think>", "", [])),
    (False, "\nHi</think>", Read("\nHi</think>", "", [])),
    (False, "<think>\n a\n\nb ", Read("", " a\n\nb ", [])),
    (False, "<think> </thin", Read("", " </thin", [])),
    (False, "<thi", Read("<thi", "", [])),
    (False, f"<think>\n<tool_call>\n</think>\n\n{CALL}", Read("", "<tool_call>", CALLS)),
    (False, CALL, Read("", "", CALLS)),
    (True, "hm\n</think>\n\nHi", Read("Hi", "hm", [])),
    (True, "\nhm</think></think>", Read("</think>", "hm", [])),
    (True, "<think>\nhm</think>Hi", Read("Hi", "hm", [])),
    (True, "hm\n", Read("", "hm\n", [])),
    (True, "</think>", Read("", "", [])),
    (True, f"hm\n</think>\n\n{CALL}", Read("", "hm", CALLS)),
]


def parser(name: str, opened: bool, *, tools: bool = True) -> TurnParser:
    rest = tool_format("hermes").parser(TOOLS) if tools else PlainTurn()
    return reasoning_format(name).parser(opened, rest)


@pytest.mark.parametrize(("opened", "text", "expected"), CASES)
def test_thinking_is_taken_off(opened: bool, text: str, expected: Read) -> None:
    assert read_every_way(lambda: parser("qwen3", opened), text) == expected


@pytest.mark.parametrize(
    ("name", "first", "last"), [("kimi", "◁think▷", "◁/think▷"), ("mistral", "[THINK]", "[/THINK]")]
)
def test_other_marks(name: str, first: str, last: str) -> None:
    found = read_every_way(lambda: parser(name, False, tools=False), f"{first}a <think>{last}\n\nb {last}")
    assert found == Read(f"b {last}", "a <think>", [])


def test_a_call_ends_the_thought_of_a_model_that_thinks_between_calls() -> None:
    kimi = tool_format("kimi_k2")
    text = "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
    form = Formats(kimi, reasoning_format("kimi_k2"))
    found = read_every_way(lambda: form.turn_parser(TOOLS, True), f"hm <|tool_calls_section_begin|>{text}")
    assert found == Read("", "hm ", [("f", "functions.f:0", "{}", True)])


def test_thinking_is_shown_as_it_comes() -> None:
    machine = parser("deepseek-r1", True)
    assert [machine.feed(word) for word in ("I", " think", "\n", "so")] == [
        [Reasoning("I")],
        [Reasoning(" think")],
        [],
        [Reasoning("\nso")],
    ]


@pytest.mark.parametrize("form", REASONING_FORMATS, ids=lambda form: form.name)
def test_the_prompt_tells_whether_it_opened_a_thought(form) -> None:  # type: ignore[no-untyped-def]
    opening = "<|channel|>analysis<|message|>" if form.name == "gpt-oss" else form.opening
    assert form.opened_by(f"user: hi\nassistant: {opening}")
    assert not form.opened_by(f"user: what does {opening} mean?\nassistant: ")
    if form.name != "gpt-oss":
        assert form.opened_by(f"assistant: {opening}\n")
        assert not form.opened_by(f"assistant: {opening}\n\n{form.closing}\n\n")


@pytest.mark.parametrize("opened", [False, True])
def test_the_thinking_of_harmony_is_a_channel_of_its_own(opened: bool) -> None:
    form = Formats(tool_format("gpt-oss"), reasoning_format("gpt-oss"))
    text = ("" if opened else "<|channel|>analysis<|message|>") + "hm<|end|><|start|>assistant<|channel|>"
    answer = text + "final<|message|>Hi"
    call = text + "commentary to=functions.f <|constrain|>json<|message|>{}"
    assert read_every_way(lambda: form.turn_parser(TOOLS, opened), answer) == Read("Hi", "hm", [])
    assert read_every_way(lambda: form.turn_parser([], opened), answer) == Read("Hi", "hm", [])
    assert read_every_way(lambda: form.turn_parser(TOOLS, opened), call) == Read("", "hm", [("f", None, "{}", True)])
    assert read_every_way(lambda: form.turn_parser([], opened), call) == Read("{}", "hm", [])


def test_without_tools_in_the_request_there_are_no_calls() -> None:
    text = '<think>\nhm\n</think>\n\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n'
    form = Formats(tool_format("hermes"), reasoning_format("qwen3"))
    assert read_every_way(lambda: form.turn_parser([], False), text).content == text.split("\n\n")[1]
    assert Formats().turn_parser(TOOLS, True).feed(text)[0].text == text  # type: ignore[union-attr]
