"""How models write calls: read back, never a crash, and kept to their rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit.text import templates

from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.spec import ConstraintSpec
from sglite.constrained.vocab import Vocabulary
from sglite.lang.messages import ToolSpec
from sglite.lang.tool_formats import Call, Generic, Hermes, Llama3, ToolFormat, detect, named_tool_format
from sglite.lang.tool_rules import Answer
from sglite.lang.typed import type_spec
from sglite.runtime.text.chat_template import ChatTemplate

FORMATS = [Hermes(), Llama3(), Generic()]
NAMES = st.from_regex(r"[a-zA-Z0-9_-]{1,12}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
CALLS = st.builds(
    lambda name, arguments, ascii_: Call(name, json.dumps(arguments, ensure_ascii=ascii_)),
    NAMES,
    st.dictionaries(st.text(), VALUES, max_size=3),
    st.booleans(),
)
PIECES = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<|python_tag|>", '{"name": "add", ', '"arguments": ', '"parameters": {"a": 2}}',
        '{"tool": "add"', '{"answer": "x"}', "{", "}", '"', "\\", "\n", "; ", "<think>", "</think>", "text ", "[[[[",
    ]
)  # fmt: skip


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: type(form).__name__)
@given(calls=st.lists(CALLS, min_size=1, max_size=3), content=st.sampled_from(["", "Let me see.", "a {b} c"]))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(form: ToolFormat, calls: list[Call], content: str) -> None:
    calls = calls if form.several else calls[:1]
    turn = form.read(form.write(content, calls))
    assert list(turn.calls) == calls
    assert turn.content == ("" if isinstance(form, Generic) else content)


@pytest.mark.parametrize("form", [*FORMATS, Hermes(thinks="writes"), Llama3(thinks="opened")], ids=repr)
@given(text=st.text() | st.lists(PIECES, max_size=12).map("".join))
@settings(max_examples=80, deadline=None)
def test_nothing_crashes_a_reader(form: ToolFormat, text: str) -> None:
    for end in range(0, len(text) + 1, max(1, len(text) // 8)):
        turn = form.read(text[:end])
        shown = form.shown(text[:end])
        assert turn.content.startswith(shown)


@pytest.mark.parametrize("form", FORMATS[:2], ids=lambda form: type(form).__name__)
@given(calls=st.lists(CALLS, min_size=1, max_size=2), content=st.sampled_from(["", "Let me see."]))
@example([Call("a", '{"</tool_call>": "<tool_call>"}')], "")
@example([Call("</tool_call>", '{"a": "</tool_call> b"}')] * 2, "Let me see.")
@settings(max_examples=40, deadline=None)
def test_what_was_shown_stays(form: ToolFormat, calls: list[Call], content: str) -> None:
    """Text that grows shows text that grows, and never a part of a call."""
    text, shown = form.write(content, calls), ""
    for end in range(len(text) + 1):
        now = form.shown(text[:end]).rstrip("\n")
        assert now.startswith(shown) and content.startswith(now)
        shown = now


def test_deep_and_long_texts_are_read_in_time() -> None:
    for text in ("[" * 100_000, '{"name": ' * 20_000, "<tool_call>" * 5_000, '{"name": "a", "parameters": ' * 5_000):
        for form in FORMATS:
            form.read(text)


@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        (Hermes(), 'Hm.\n<tool_call>{"name":"f","arguments":{}}</tool_call> Then.', "Hm.\nThen.", [("f", "{}", True)]),
        (Hermes(), '<tool_call>\n{"arguments": {"a": 1}, "name": "f"}\n</tool_call>', "", [("f", '{"a": 1}', True)]),
        (Hermes(), '<tool_call>\n{"name": "f"}\n</tool_call>', "", [("f", "{}", True)]),
        (Hermes(), '<tool_call>\n{"name": "f", "arguments": {"a": ', "", [("f", '{"a":', False)]),
        (Hermes(), "<tool_call>\nf(1)\n</tool_call>\nok", "ok", [("", "f(1)", False)]),
        (Hermes(), '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>', "",
         [("f", '{"a": "</tool_call>"}', True)]),
        (Llama3(), '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', "",
         [("f", '{"a": 1}', True), ("g", "{}", True)]),
        (Llama3(), '<|python_tag|>{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}', True)]),
        (Llama3(), '{"name": "f", "parameters": {"a": 1', "", [("f", '{"a": 1', False)]),
        (Llama3(), '{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}', []),
        (Llama3(), '{"name": "Ann"}', '{"name": "Ann"}', []),
        (Generic(), '{"tool": "f", "arguments": {"a": 1}}', "", [("f", '{"a": 1}', True)]),
        (Generic(), '{"answer": "yes"}', "yes", []),
        (Generic(), '{"answer": {"a": 1}}', '{"a": 1}', []),
        (Generic(), "Just text", "Just text", []),
        (Generic(), '{"tool": "f", "arg', "", [("f", '{"tool": "f", "arg', False)]),
    ],
)  # fmt: skip
def test_turns_as_models_write_them(form: ToolFormat, text: str, content: str, calls: list[Any]) -> None:
    turn = form.read(text)
    assert (turn.content, [(call.name, call.arguments, call.whole) for call in turn.calls]) == (content, calls)


@pytest.mark.parametrize(
    ("thinks", "text", "reasoning", "content"),
    [
        ("writes", "<think>\nA <tool_call> maybe.\n</think>\n\nYes.", "A <tool_call> maybe.", "Yes."),
        ("writes", "<think>\nstill", "still", ""),
        ("writes", "Yes.", "", "Yes."),
        ("opened", "hm\n</think>\n\nYes.", "hm", "Yes."),
        ("opened", "still", "still", ""),
        ("no", "<think>x</think>y", "", "<think>x</think>y"),
    ],
)
def test_thinking_is_read_apart(thinks: Any, text: str, reasoning: str, content: str) -> None:
    turn = Hermes(thinks=thinks).read(text)
    assert (turn.reasoning, turn.content, turn.calls) == (reasoning, content, ())


# --- finding out -------------------------------------------------------------------------------------------------


def renderer(source: str) -> Callable[[Sequence[Any], Sequence[ToolSpec]], str]:
    template = ChatTemplate(source, "<s>", "</s>")

    def render(messages: Sequence[Any], tools: Sequence[ToolSpec]) -> str:
        told = [tool.to_dict() for tool in tools] or None
        return template.render(messages, tools=told, add_generation_prompt=True)

    return render


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (templates.QWEN3, Hermes(thinks="writes")),
        (templates.LLAMA3, Llama3(several=False)),
        (templates.CHATML, Generic()),
        (templates.GEMMA, Generic()),
        (templates.R1, Generic(thinks="opened")),
    ],
)
def test_a_format_is_found_by_what_the_template_writes(source: str, expected: ToolFormat) -> None:
    assert detect(renderer(source)) == expected


def test_a_back_end_without_a_template_has_the_generic_format() -> None:
    assert detect(lambda messages, tools: None) == Generic()
    with pytest.raises(ValueError, match="format='xml': there are hermes, llama3, generic"):
        named_tool_format("xml")


# --- rules -------------------------------------------------------------------------------------------------------

ADD = ToolSpec(
    "add",
    "Adds.",
    {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/N"}},
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"N": {"type": "integer"}},
    },
)
NOW = ToolSpec("now", "Tells the time.", {"type": "object", "properties": {}, "additionalProperties": False})
A, N = Call("add", '{"a": 2}'), Call("now", "{}")
WRONG = [Call("sub", "{}"), Call("add", '{"a": "2"}'), Call("add", "{}"), Call("now", '{"a": 1}')]


@pytest.fixture(scope="module")
def accepts() -> Iterator[Callable[[dict[str, Any], str], bool]]:
    vocab = Vocabulary([*(bytes([i]) for i in range(256)), None], [256], lambda text: list(text.encode()))
    compiler = ConstraintCompiler(vocab)

    def accepted(rules: dict[str, Any], text: str) -> bool:
        ((kind, value),) = rules.items()
        matcher = compiler.compile(getattr(ConstraintSpec, kind)(value)).matcher()
        return all(matcher.accept(token) for token in text.encode()) and bool(matcher.accepting)

    yield accepted
    compiler.close()


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: type(form).__name__)
@pytest.mark.parametrize("choice", ["auto", "none", "required", "add"])
def test_a_turn_is_what_its_choice_allows(form: ToolFormat, choice: str, accepts: Any) -> None:
    rules = form.rules([ADD, NOW], choice, True, Answer())
    assert accepts(rules, form.write("", [A])) == (choice != "none")
    assert accepts(rules, form.write("", [N])) == (choice in ("auto", "required"))
    assert accepts(rules, form.write("Just text.", [])) == (choice in ("auto", "none"))
    for wrong in WRONG:
        assert not accepts(rules, form.write("", [wrong]))
    if form.several:
        assert accepts(rules, form.write("", [A, A])) == (choice != "none")
        assert not accepts(form.rules([ADD, NOW], choice, False, Answer()), form.write("", [A, A]))


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: type(form).__name__)
@pytest.mark.parametrize(("kind", "right", "wrong"), [(int, "12", "twelve"), (list[int], "[1, 2]", '["x"]')])
def test_an_answer_is_of_its_type(form: ToolFormat, kind: Any, right: str, wrong: str, accepts: Any) -> None:
    spec = type_spec(kind)
    rules = form.rules([ADD, NOW], "auto", True, Answer(spec.regex, spec.json_schema))

    def answer(text: str) -> str:
        plain = kind is int or not isinstance(form, Generic)
        return form.write(text, []) if plain else f'{{"answer": {text}}}'

    assert accepts(rules, answer(right)) and not accepts(rules, answer(wrong))
    assert accepts(rules, form.write("", [A])) and not accepts(rules, form.write("", [WRONG[1]]))
    assert spec.parse(form.read(answer(right)).content) in (12, [1, 2])


@pytest.mark.parametrize("form", [Hermes, Llama3, Generic])
def test_thinking_comes_first(form: Any, accepts: Any) -> None:
    plain, call = form(), form().write("", [A])
    opened = form(thinks="opened").rules([ADD], "required", True, Answer())
    assert accepts(opened, f"I <tool_call> must.\n</think>\n\n{call}") and not accepts(opened, call)
    assert not accepts(opened, f"hm</think>\n\n{plain.write('', [WRONG[1]])}")
    if form is not Generic:
        writes = form(thinks="writes").rules([ADD], "auto", True, Answer())
        assert accepts(writes, f"<think>\nI <tool_call>\n</think>\n\n{call}") and accepts(writes, call)
        assert not accepts(form(thinks="writes").rules([ADD], "required", True, Answer()), f"<think>a</think>{call}")


def test_text_around_calls_is_free(accepts: Any) -> None:
    rules = Hermes().rules([ADD], "auto", True, Answer())
    assert accepts(rules, Hermes().write("Let me see < that.", [A, A]) + "\nAnd then.")
    rules = Llama3().rules([ADD], "auto", True, Answer())
    assert accepts(rules, '{"names": []} is no call') and not accepts(rules, '{"name": "Ann"}')
    assert accepts(rules, f"<|python_tag|>{Llama3().written(A)}")


def test_the_generic_note_tells_of_every_tool() -> None:
    note = Generic().note([ADD, NOW])
    assert all(json.dumps(spec.to_dict()["function"]) in note for spec in (ADD, NOW))
    assert not Hermes().note([ADD])
