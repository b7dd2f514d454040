"""Formats with an argument to a tag: which calls are read, however the text is cut, and what broken text is."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglite.constrained.spec import ConstraintRefused
from sglite.runtime.parse.base import Call, CallArguments, CallEnd, CallStart, Content, Event, Tool, ToolFormat
from sglite.runtime.parse.deepseek_v32 import DeepSeekV4, DeepSeekV32, DeepSeekV41
from sglite.runtime.parse.glm45 import Glm45
from sglite.runtime.parse.qwen3_coder import Qwen3Coder

QWEN, GLM, DSML = Qwen3Coder(), Glm45(), DeepSeekV32()
FORMATS: list[ToolFormat] = [QWEN, GLM, DSML, DeepSeekV4(), DeepSeekV41()]
NAMED = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "$defs": {"size": {"enum": ["small", "large", 7]}, "text": {"type": "string"}},
    "properties": {
        "s": {"type": "string"},
        "i": {"type": "integer"},
        "f": {"type": "number"},
        "b": {"type": "boolean"},
        "o": {"type": "object"},
        "a": {"type": "array"},
        "opt": {"anyOf": [{"$ref": "#/$defs/text"}, {"type": "null"}]},
        "mix": {"type": ["string", "integer", "array"]},
        "size": {"$ref": "#/$defs/size"},
        "any": {},
        "digits": {"const": "12"},
    },
}
TOOLS = [
    Tool("f", SCHEMA),
    Tool("none"),
    Tool("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}}),
]


@dataclass
class Turn:
    """What a parser told, put together; ``calls`` are (name, text of the arguments, whether it ended)."""

    content: str = ""
    calls: list[tuple[str, str, bool]] = field(default_factory=list)

    @property
    def read(self) -> tuple[str, list[Call]]:
        assert all(ended for _, _, ended in self.calls)
        return self.content, [Call(name, json.loads(text)) for name, text, _ in self.calls]


def told(events: Iterable[Event]) -> Turn:
    turn = Turn()
    for event in events:
        if isinstance(event, Content):
            assert event.text
            turn.content += event.text
        elif isinstance(event, CallStart):
            assert event.index == len(turn.calls)
            turn.calls.append((event.name, "", False))
        else:
            assert isinstance(event, CallArguments | CallEnd)
            assert event.index == len(turn.calls) - 1
            name, text, ended = turn.calls[-1]
            assert not ended
            turn.calls[-1] = (
                (name, text + event.text, False) if isinstance(event, CallArguments) else (name, text, True)
            )
    return turn


def parsed(form: ToolFormat, pieces: Iterable[str], tools: Sequence[Tool] = TOOLS) -> Turn:
    parser = form.parser(tools)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return told([*events, *parser.finish()])


def cuts(text: str, rng: random.Random) -> Iterable[list[str]]:
    """The whole, every two pieces, single characters, and random pieces."""
    yield [text]
    yield from ([text[:i], text[i:]] for i in range(1, len(text)))
    yield list(text)
    for most in (3, 7, 16, 40):
        places = sorted(rng.sample(range(1, len(text)), min(len(text) - 1, 1 + len(text) // most)))
        yield [text[a:b] for a, b in itertools.pairwise([0, *places, len(text)])]


def same_for_every_cut(form: ToolFormat, text: str) -> Turn:
    whole = parsed(form, [text])
    for pieces in cuts(text, random.Random(text)):
        assert parsed(form, pieces) == whole, pieces
    return whole


# what is written is read

NASTY = [
    "",
    "\n",
    "\n\n x \n\n",
    " spaced ",
    'quotes " and \\ backslash \\n',
    "<b>bold</b> a < b && b > c",
    "</tool_call>",
    "<tool_call>\n<function=f>\n",
    "</parameter>",
    "x</arg_value>y",
    "</｜DSML｜parameter> and more",
    "</parameter>\n</parameter>",
    "<parameter=s>",
    "</function>",
    "中文 😀 é\u2028",
    "null",
    "12",
    '{"a": "b"}',
    "[1, 2]",
    "\t\r\n",
    "a\x01b",
]
MIXED = [
    {"i": -12, "f": 1.5e-7, "b": True},
    {"f": 3},
    {
        "o": {
            "k": "</parameter>\n</function>\n</tool_call> </arg_value><arg_key> </｜DSML｜parameter>\n</｜DSML｜invoke>"
        }
    },
    {"a": [{"x": [1, "]}", None]}, "</arg_value></tool_call>"], "s": "after"},
    {"o": {}, "a": []},
    {"opt": None},
    {"opt": "some text"},
    {"opt": "nullable"},
    {"opt": "12"},
    {"mix": 5, "size": 7},
    {"mix": "5 apples", "size": "small"},
    {"mix": ["x"], "digits": "12"},
    {"mix": "[not json"},
    {"any": {"deep": [1, {"er": "}"}]}},
    {"any": False},
    {"any": "false alarm"},
    {},
]


@NAMED
@pytest.mark.parametrize("value", NASTY)
def test_a_string_comes_back_whatever_it_holds(form: ToolFormat, value: str) -> None:
    calls = [Call("f", {"s": value, "i": 1}), Call("get_weather", {"city": value})]
    assert same_for_every_cut(form, form.write("Well.", calls)).read == ("Well.", calls)


@NAMED
@pytest.mark.parametrize("arguments", MIXED, ids=json.dumps)
def test_values_keep_their_types(form: ToolFormat, arguments: dict[str, Any]) -> None:
    calls = [Call("f", arguments), Call("none", {})]
    assert same_for_every_cut(form, form.write("", calls)).read == ("", calls)


@NAMED
def test_a_tool_that_is_not_known_is_told_all_the_same(form: ToolFormat) -> None:
    call = Call("other", {"x": "text", "n": 3, "o": {"a": 1}, "z": None})
    assert same_for_every_cut(form, form.write("", [call])).read == ("", [call])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
PIECES = st.sampled_from([*NASTY, "<", ">", "</", "\n", "<arg_key>", "<parameter=s>\n", "｜DSML｜", "a", "</para"])
STRINGS = st.lists(PIECES, max_size=4).map("".join) | st.text(max_size=20)
ENDS = ("<parameter=", "</function>", "</tool_call>", "<arg_key>", "<｜DSML｜", "</｜DSML｜")


def is_end(form: ToolFormat, text: str) -> bool:
    """Whether a text holds a value's end and another tag behind it, which no reader could tell from the real ones."""
    marks = ("</parameter>", "</arg_value>", "parameter>")
    return any(text.find(end, text.find(mark)) >= 0 for mark in marks if mark in text for end in ENDS)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_random_arguments_come_back_in_random_pieces(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMATS))
    strings = STRINGS.filter(lambda text: not is_end(form, text))
    arguments = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "s": strings,
                "i": st.integers(),
                "f": st.floats(allow_nan=False, allow_infinity=False),
                "b": st.booleans(),
                "o": st.dictionaries(st.text(max_size=4), VALUES, max_size=3),
                "a": st.lists(VALUES, max_size=3),
                "opt": st.none() | strings.filter(lambda text: text.strip(" \t\r\n") != "null"),
            },
        )
    )
    calls = [Call("f", arguments)] * data.draw(st.integers(1, 2))
    text = form.write(data.draw(st.sampled_from(["", "Hm.", "a < b"])), calls)
    places = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=20)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *places, len(text)])]
    assert parsed(form, pieces).read[1] == calls


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(
        PIECES | st.sampled_from(["<tool_call>", "<tool_call>f\n", "<｜DSML｜function_calls>\n", " "]), max_size=12
    )
)
def test_no_text_raises_and_no_cut_changes_what_it_is(pieces: list[str]) -> None:
    for form in FORMATS[:3]:
        whole = parsed(form, ["".join(pieces)])
        assert parsed(form, pieces) == whole
        assert parsed(form, "".join(pieces)) == whole


# what is streamed


def test_a_string_is_streamed_as_it_comes() -> None:
    parser = QWEN.parser(TOOLS)
    parser.feed("<tool_call>\n<function=f>\n<parameter=s>\n")
    assert parser.feed('one "two"') == [CallArguments(0, '"one \\"two\\"')]
    assert parser.feed(" three\n") == [CallArguments(0, " three")]
    assert parser.feed("</par") == []
    assert parser.feed("ty") == [CallArguments(0, "\\n</party")]


@NAMED
def test_an_optional_string_is_streamed_once_it_cannot_be_null(form: ToolFormat) -> None:
    text = form.write("", [Call("f", {"opt": "number one"})])
    parser = form.parser(TOOLS)
    before = told(parser.feed(text[: text.index("mber")])).calls[0][1]
    assert before == '{"opt": "nu' if form.name.startswith("deepseek") else before == '{"opt": '
    assert parser.feed("mber") == [CallArguments(0, "mber" if form.name.startswith("deepseek") else '"number')]


# what is no call, and what is broken off


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (QWEN, "The tag <tool_call> opens a call, </tool_call> closes it."),
        (QWEN, "<tool_call> <tool_call>{}"),
        (QWEN, "<tool_call>\n<function=two words>x"),
        (QWEN, "<function=f> </function> <parameter=x>"),
        (GLM, "<tool_call>two words</tool_call>"),
        (GLM, "<tool_call></tool_call> it is"),
        (GLM, "<tool_call>f and so on"),
        (DSML, "<｜DSML｜function_calls> nothing </｜DSML｜function_calls>"),
        (DSML, "<｜DSML｜function_calls>\n<｜DSML｜invoke f>"),
        (DSML, '<｜DSML｜invoke name="f">'),
    ],
)
def test_what_only_begins_like_a_call_is_content_as_it_was_written(form: ToolFormat, text: str) -> None:
    assert same_for_every_cut(form, text) == Turn(text)


@NAMED
def test_a_call_broken_off_tells_what_is_certain_and_has_no_end(form: ToolFormat) -> None:
    call = Call("f", {"s": "some text", "o": {"a": "b"}, "i": 12})
    text = form.write("Well.", [call])
    whole = parsed(form, [text]).calls[0][1]
    for length in range(len(text)):
        turn = parsed(form, [text[:length]])
        assert turn == parsed(form, text[:length])
        assert turn.content.startswith("Well.") or "Well.".startswith(turn.content)
        assert "｜DSML｜" not in turn.content and "tool_call>" not in turn.content
        for name, arguments, ended in turn.calls:
            assert name == "f"
            assert whole.startswith(arguments)
            assert not ended or arguments == whole


@NAMED
def test_white_space_around_calls_is_no_content(form: ToolFormat) -> None:
    text = "Well.\n\n\n" + form.write("", [Call("none")]) + "\n\n"
    assert same_for_every_cut(form, text).read == ("Well.", [Call("none")])


@pytest.mark.parametrize(
    ("form", "text", "arguments"),
    [
        (QWEN, "<tool_call><function=f><parameter=s>x</parameter></function></tool_call>", {"s": "x"}),
        (QWEN, "<tool_call>\n<function=f>\n<parameter=i>\n5\n</parameter>\n</tool_call>", {"i": 5}),
        (QWEN, "<tool_call>\n<function=f>\n<parameter=b>\nTrue\n</parameter>\n</function>\n</tool_call>", {"b": True}),
        (
            QWEN,
            "<tool_call>\n<function=f>\n<parameter=i>\nfive\n</parameter>\n</function>\n</tool_call>",
            {"i": "five"},
        ),
        (QWEN, "<tool_call>\n<function=f>\nwell <parameter=s>\nx\n</parameter>\n</function>\n</tool_call>", {"s": "x"}),
        (
            QWEN,
            "<tool_call>\n<function=f>\n<parameter=s>\nx\n</parameter>\n<parameter=s>\ny\n</parameter>\n</function>\n</tool_call>",
            {"s": "x"},
        ),
        (GLM, "<tool_call>f<arg_key>s</arg_key><arg_value>x</arg_value></tool_call>", {"s": "x"}),
        (GLM, "<tool_call>f</tool_call>", {}),
        (GLM, "<tool_call>\nf\n<arg_key>o</arg_key>\n<arg_value>\n{}\n</arg_value>\n</tool_call>", {"o": {}}),
        (
            DSML,
            '<｜DSML｜function_calls><｜DSML｜invoke name="f">{"s": "</｜DSML｜invoke>"}</｜DSML｜invoke>\n'
            "</｜DSML｜function_calls>",
            {"s": "</｜DSML｜invoke>"},
        ),
        (
            DSML,
            '<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="i">5</｜DSML｜parameter>\n'
            "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
            {"i": 5},
        ),
    ],
)
def test_other_spellings_are_understood(form: ToolFormat, text: str, arguments: dict[str, Any]) -> None:
    assert same_for_every_cut(form, text).read == ("", [Call("f", arguments)])


def test_two_functions_may_share_a_call() -> None:
    one, two = (f"<function=f>\n<parameter=s>\n{s}\n</parameter>\n</function>\n" for s in "ab")
    turn = same_for_every_cut(QWEN, f"<tool_call>\n{one}{two}</tool_call>")
    assert turn.read == ("", [Call("f", {"s": "a"}), Call("f", {"s": "b"})])


@NAMED
def test_a_tool_whose_name_no_tag_can_hold_is_refused(form: ToolFormat) -> None:
    with pytest.raises(ConstraintRefused, match="a> b"):
        form.calls([Tool("a> b")], several=False)


def test_templates_and_write_agree() -> None:
    calls = [Call("f", {"s": "x", "n": 1})]
    assert QWEN.write("Hi", calls) == (
        "Hi\n\n<tool_call>\n<function=f>\n<parameter=s>\nx\n</parameter>\n<parameter=n>\n1\n</parameter>\n"
        "</function>\n</tool_call>"
    )
    assert GLM.write("Hi", calls) == (
        "Hi\n<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>x</arg_value>\n<arg_key>n</arg_key>\n"
        "<arg_value>1</arg_value>\n</tool_call>"
    )
    assert DeepSeekV41().write("Hi", calls) == (
        'Hi\n\n<｜DSML｜ calls>\n<｜DSML｜ invoke name="f">\n'
        '<｜DSML｜ parameter name="s" string="true">x</｜DSML｜ parameter>\n'
        '<｜DSML｜ parameter name="n" string="false">1</｜DSML｜ parameter>\n</｜DSML｜ invoke>\n</｜DSML｜ calls>'
    )
