"""What the formats enforce: the turns of models pass, with their marks as text or as tokens, and others do not."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from parse_turns import read

from sglite.constrained import bitmask
from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.spec import ConstraintRefused, ConstraintSpec
from sglite.constrained.vocab import Vocabulary
from sglite.runtime.parse.base import Call, Tool, ToolFormat
from sglite.runtime.parse.registry import REASONING_FORMATS, TOOL_FORMATS, reasoning_format, tool_format
from sglite.runtime.parse.schemas import argument_schema

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
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "wind": {"type": "boolean"},
        "unit": {"enum": ["c", "f"]},
        "at": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}]},
    },
    "required": ["city"],
}
OPTIONAL = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": ["null", "string"]}, "c": {}}}
TOOLS = [
    Tool("get_weather", WEATHER),
    Tool("now", {"type": "object", "properties": {}}),
    Tool("any"),
    Tool("optional", OPTIONAL),
]
RIGHT = [
    [Call("get_weather", {"city": 'Å "x"\n'})],
    [Call("get_weather", {"city": "Oslo", "days": 3, "wind": True, "unit": "f", "at": [1, 2.5]}), Call("now")],
    [Call("get_weather", {"city": "", "at": None}), Call("optional", {"a": 1, "c": False}), Call("any", {"x": [{}]})],
    [Call("optional", {"b": None})],
    [Call("optional", {})],
    [Call("any", {})],
]
WRONG = [
    Call("get_wether", {"city": "Oslo"}),
    Call("get_weather", {}),
    Call("get_weather", {"city": "Oslo", "country": "no"}),
    Call("get_weather", {"city": 1}),
    Call("now", {"a": 1}),
    Call("optional", {"a": "1"}),
]
ALL_MARKS = sorted({mark for form in (*FORMATS, *REASONING_FORMATS) for mark in form.marks})
END, FIRST = 256, 257


class Judge:
    """Compiles formats over bytes; ``marks``: those that are special tokens."""

    def __init__(self, marks: list[str]) -> None:
        self.ids: Mapping[str, int] = {mark: FIRST + i for i, mark in enumerate(marks)}
        self.vocab = Vocabulary(
            [*(bytes([i]) for i in range(256)), *[None] * (1 + len(marks))],
            [END],
            lambda text: list(text.encode()),
            special_ids=self.ids,
        )
        self.compiler = ConstraintCompiler(self.vocab, engine="native" if shutil.which("g++") else "reference")

    def accepts(self, form: dict[str, Any], text: str) -> bool:
        spec = ConstraintSpec.structural_tag({"type": "structural_tag", "format": form})
        matcher, ids = self.compiler.compile(spec).matcher(), self.tokens(text)
        return matcher.accept_run(ids) == len(ids) and matcher.accepting

    def tokens(self, text: str) -> list[int]:
        found, at = [], 0
        while at < len(text):
            mark = next((mark for mark in self.ids if text.startswith(mark, at)), None)
            found += list(text[at].encode()) if mark is None else [self.ids[mark]]
            at += len(mark or text[at])
        return found


@pytest.fixture(scope="module", params=["text", "tokens"])
def judge(request: pytest.FixtureRequest) -> Iterator[Judge]:
    judge = Judge(ALL_MARKS if request.param == "tokens" else [])
    yield judge
    judge.compiler.close()


@NAMED
@pytest.mark.parametrize("several", [False, True])
def test_right_calls_pass_and_wrong_ones_do_not(judge: Judge, form: ToolFormat, several: bool) -> None:
    calls, free = form.calls(TOOLS, several=several), form.free(TOOLS, several=several)
    for right in RIGHT:
        one = len(right) == 1 or (several and form.name != "gpt-oss")
        for content in ("", "Hello"):
            text = form.write(content, right)
            assert judge.accepts(free, text) == one, text
            assert judge.accepts(calls, text) == (one and not content), text
    for call in WRONG:
        for content in ("", "Hello"):
            assert not judge.accepts(calls, form.write(content, [call]))
            assert not judge.accepts(free, form.write(content, [call]))


@pytest.mark.parametrize("name", [form.name for form in TOOL_FORMATS])
@pytest.mark.parametrize("grammar", ['start: "a"~1..2 X?\nX: "\\n\\"" | "é"', 'root ::= "a"{1,2} ("\\n\\"" | "é")?'])
def test_a_text_with_a_grammar_is_a_text_of_it(judge: Judge, name: str, grammar: str) -> None:
    form = tool_format(name)
    schema = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    tools = [Tool("write", {**schema, "additionalProperties": False}, grammar=grammar), TOOLS[1]]
    calls, free = form.calls(tools, several=True), form.free(tools, several=True)
    assert judge.accepts(calls, form.write("", [Call("now")]))
    for text, right in (("a", True), ("aaé", True), ('aa\n"', True), ("é", False), ("aaa", False), ("a\n", False)):
        written = form.write("", [Call("write", {"input": text})])
        assert judge.accepts(calls, written) is right and judge.accepts(free, written) is right, (text, written)
        ((called, _, arguments, _),) = read(form.parser(tools), [written]).calls
        assert (called, json.loads(arguments)) == ("write", {"input": text})


@pytest.mark.parametrize("name", ["qwen3_coder", "glm45", "deepseekv32", "deepseekv4", "deepseekv41"])
@pytest.mark.parametrize("terminal", ['"a<b"', "/[^a]/", '"!".."~"'])
def test_a_text_that_may_hold_what_ends_an_argument_is_refused(judge: Judge, name: str, terminal: str) -> None:
    schema = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    tools = [Tool("write", schema, grammar=f"start: a+\na: {terminal}")]
    with pytest.raises(ConstraintRefused, match="may hold '<'"):
        judge.accepts(tool_format(name).calls(tools, several=True), "x")


@NAMED
def test_free_text_needs_no_call(judge: Judge, form: ToolFormat) -> None:
    calls, free = form.calls(TOOLS, several=True), form.free(TOOLS, several=True)
    for text in ("Hello, <b>you</b>. [1] {2}\n", "<p>", " x", "é"):
        written = form.write(text, [])
        assert judge.accepts(free, written) and not judge.accepts(calls, written)


@pytest.mark.parametrize(
    ("name", "first", "last"), [("llama3", "<|python_tag|>", ""), ("pythonic", "<|python_start|>", "<|python_end|>")]
)
def test_calls_without_marks_may_have_them(judge: Judge, name: str, first: str, last: str) -> None:
    form = tool_format(name)
    free, text = form.free(TOOLS, several=True), form.write("", RIGHT[1])
    assert judge.accepts(free, text) and judge.accepts(free, first + text + last)
    assert not judge.accepts(free, text[:-1]) and not judge.accepts(free, first + "x")


@pytest.mark.parametrize("name", ["deepseek-r1", "kimi", "mistral", "gpt-oss"])
def test_thinking_may_stand_before_a_turn_and_does_where_it_was_opened(judge: Judge, name: str) -> None:
    form = tool_format("gpt-oss" if name == "gpt-oss" else "hermes")
    thinking = reasoning_format(name)
    text = form.write("", [Call("now")])
    opening, closing = getattr(thinking, "opening", ""), (thinking.closing or "") + "\n\n"
    if name == "gpt-oss":
        opening, closing = "<|channel|>analysis<|message|>", "<|end|><|start|>assistant"
    for rest in (form.calls(TOOLS, several=False), form.free(TOOLS, several=False)):
        assert judge.accepts(thinking.tag(True, rest), f"Hm, now().{closing}{text}")
        assert judge.accepts(thinking.tag(False, rest), f"{opening}Hm.{closing}{text}")
        assert judge.accepts(thinking.tag(False, rest), text)
        assert not judge.accepts(thinking.tag(True, rest), text)
        assert not judge.accepts(thinking.tag(True, rest), f"Hm.{closing}{form.write('', [Call('nothing')])}")
    answer = thinking.answer({"type": "json_schema", "json_schema": {"type": "integer"}})
    written = "<|channel|>final<|message|>7" if name == "gpt-oss" else "7"
    assert judge.accepts(thinking.tag(True, answer), f"Hm.{closing}{written}")
    assert not judge.accepts(thinking.tag(True, answer), f"Hm.{closing}x")


@NAMED
def test_what_random_logits_write_is_read_as_valid_calls(judge: Judge, form: ToolFormat) -> None:
    rng = random.Random(form.name)
    names = {id_: mark for mark, id_ in judge.ids.items()}
    tag = {"type": "structural_tag", "format": form.calls(TOOLS, several=True)}
    compiled = judge.compiler.compile(ConstraintSpec.structural_tag(tag))
    for _ in range(8):
        matcher, text = compiled.matcher(close_at=compiled.shortest_tokens() + rng.randint(0, 120)), b""
        while True:
            mask = np.zeros(judge.vocab.words, dtype=np.int32)
            matcher.fill(mask)
            token = rng.choice([int(i) for i in bitmask.to_ids(mask) if i < judge.vocab.size])
            assert matcher.accept(token)
            if token == END:
                break
            text += names[token].encode() if token in names else bytes([token])
        found = read(form.parser(TOOLS), [text.decode()])
        assert found.calls and not found.content
        for name, _, arguments, ended in found.calls:
            tool = next(tool for tool in TOOLS if tool.name == name)
            value = json.loads(arguments)
            assert ended and Draft202012Validator(argument_schema(tool)).is_valid(value), text


SCHEMAS: list[tuple[dict[str, Any] | None, dict[str, Any]]] = [
    (None, {"type": "object"}),
    ({}, {"type": "object"}),
    ({"type": "object"}, {"type": "object"}),
    ({"properties": {}}, {"type": "object", "properties": {}, "additionalProperties": False}),
    ({"type": ["object", "null"]}, {"type": "object"}),
    ({"properties": {}, "required": ["a"]}, {"type": "object", "properties": {}, "required": ["a"]}),
    ({"properties": {}, "required": [{}]}, {"type": "object", "properties": {}, "required": [{}]}),
    ({"properties": {}, "anyOf": [{}]}, {"type": "object", "properties": {}, "anyOf": [{}]}),
    (
        {"properties": {}, "additionalProperties": True},
        {"type": "object", "properties": {}, "additionalProperties": True},
    ),
    ({"type": "string"}, {"type": "string"}),
]


@pytest.mark.parametrize(("given", "expected"), SCHEMAS)
def test_arguments_that_are_listed_are_all_there_are(given: dict[str, Any] | None, expected: dict[str, Any]) -> None:
    assert argument_schema(Tool("f", given)) == expected


def test_what_keyword_arguments_cannot_say_is_refused() -> None:
    tool = Tool("f", {"properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]})
    with pytest.raises(ConstraintRefused, match="/anyOf: the parameters of 'f' cannot be enforced as keyword"):
        tool_format("pythonic").calls([tool], several=False)
    with pytest.raises(ConstraintRefused, match="/required: the parameters of 'f': required must be a list of names"):
        tool_format("pythonic").calls([Tool("f", {"properties": {"a": {}}, "required": 5})], several=False)


@pytest.mark.parametrize("form", TOOL_FORMATS, ids=lambda form: form.name)
def test_an_enum_that_contradicts_its_type_leaves_what_fits_both(judge: Judge, form: ToolFormat) -> None:
    mixed = {"type": ["string", "boolean"], "enum": ["a", 1, None, True]}
    tool = Tool("pick", {"properties": {"x": mixed}, "required": ["x"]})
    calls = form.calls([tool], several=False)
    for value, right in (("a", True), (True, True), (1, False), (None, False), ("b", False)):
        assert judge.accepts(calls, form.write("", [Call("pick", {"x": value})])) == right, value
