"""Any arguments in any format, any text, any pieces: the same calls, and nothing that is handed on is no JSON."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parse_turns import MARKS, TOOLS, pieces, read

from sglite.runtime.parse.base import Call, TurnParser
from sglite.runtime.parse.json_stream import JsonScanner
from sglite.runtime.parse.marks import Marks
from sglite.runtime.parse.registry import REASONING_FORMATS, tool_format

FORMATS = [
    tool_format(name)
    for name in ("hermes", "deepseekv3", "deepseekv31", "kimi_k2", "mistral", "mistral_named", "gpt-oss", "llama3")
]
PYTHONIC = tool_format("pythonic")

TEXTS = st.text(max_size=12) | st.sampled_from([*MARKS.split(), "</tool_call>", '"}}', "\\", "')]", "{"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["f", "get-b.c", "another_one"])
SEEDS = st.integers(0, 2**32)


def cut(text: str, seed: int) -> list[str]:
    rng = random.Random(seed)
    return pieces(text, 1, rng.choice((1, 3, 12, 60)), rng)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.builds(Call, NAMES, st.dictionaries(TEXTS, VALUES, max_size=3)), max_size=3),
    SEEDS,
)
def test_any_arguments_are_read_back(form: Any, calls: list[Call], seed: int) -> None:
    found = read(form.parser([*TOOLS]), cut(form.write("", calls), seed))
    known = calls if form.name != "llama3" else _known(calls)
    assert [(name, json.loads(text)) for name, _, text, _ in found.calls] == [(c.name, c.arguments) for c in known]


def _known(calls: list[Call]) -> list[Call]:
    """The calls up to the first that names no tool: without a mark that one is content, and what follows it."""
    end = next((i for i, call in enumerate(calls) if call.name == "another_one"), len(calls))
    return calls[:end]


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), VALUES, max_size=4), st.booleans(), SEEDS)
def test_python_literals_are_read_as_json(arguments: dict[str, Any], spelled: bool, seed: int) -> None:
    body = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    text = f"[f({body}), g_2()]" if spelled else PYTHONIC.write("", [Call("f", arguments), Call("g_2")])
    found = read(PYTHONIC.parser(TOOLS), cut(text, seed))
    assert [(name, json.loads(text)) for name, _, text, _ in found.calls] == [("f", arguments), ("g_2", {})]


SOUP = [
    *MARKS.split(" "),
    *(
        "<tool_call>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n",
        "<｜tool▁sep｜>",
        "<|tool_call_argument_begin|>",
    ),
    *("<|channel|>analysis", "<|message|>", " to=functions.f", "<|start|>assistant", "<|python_start|>", "<think>"),
    *(
        '{"name": "f", "arguments": ',
        '{"name": "f", "parameters": ',
        '{"a": ',
        '"arguments": "{\\"a\\": 1}"',
        "}",
        "}}",
    ),
    *(
        "[f(a=",
        "f(",
        "')",
        "x",
        "1",
        "True",
        "null",
        '"',
        "\\",
        "\\u00e9",
        "\\ud83d",
        ", ",
        ";",
        "\n",
        " ",
        "hello",
        "😀",
    ),
]
MACHINES = [("", form) for form in (*FORMATS, PYTHONIC)] + [
    (opened, form) for form in REASONING_FORMATS for opened in ("opened", "closed")
]


def machine(opened: str, form: Any) -> TurnParser:
    if not opened:
        return form.parser(TOOLS)  # type: ignore[no-any-return]
    rest = tool_format("gpt-oss" if form.name == "gpt-oss" else "hermes").parser(TOOLS)
    return form.parser(opened == "opened", rest)  # type: ignore[no-any-return]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(MACHINES), st.lists(st.sampled_from(SOUP) | st.text(max_size=3), max_size=12), SEEDS)
def test_any_text_is_read_the_same_however_it_is_cut(which: Any, parts: list[str], seed: int) -> None:
    text = "".join(parts)
    whole = read(machine(*which), [text])
    assert read(machine(*which), cut(text, seed)) == whole
    for *_, arguments, ended in whole.calls:
        assert not ended or isinstance(json.loads(arguments), dict)


@settings(max_examples=120, deadline=None)
@given(VALUES, st.sampled_from([None, 2]), st.text(max_size=5), SEEDS)
def test_a_json_value_ends_where_it_ends(value: Any, indent: int | None, after: str, seed: int) -> None:
    written = json.dumps(value, indent=indent)
    scanner, found, left = JsonScanner(), "", ""
    for piece in cut(f"{written} {after}", seed):
        more, end = scanner.feed(piece) if not scanner.done else ("", 0)
        found += more
        left += piece[end:]
    assert (found, left, scanner.done) == (written, f" {after}", True)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(list('{}[]",:\\ntrueu01.-e \n')), max_size=14).map("".join))
def test_what_the_scanner_ends_is_json(text: str) -> None:
    scanner = JsonScanner()
    found = scanner.feed(text)[0] + scanner.close()
    if scanner.done:
        json.loads(found)
    else:
        with pytest.raises(ValueError, match=":"):
            json.loads(text)


@settings(max_examples=120, deadline=None)
@given(st.text(alphabet="ab<", max_size=20), SEEDS)
def test_marks_are_found_where_they_are_first(text: str, seed: int) -> None:
    marks, found, held = Marks("<ab", "a<", "bb"), [], ""
    for piece in cut(text, seed):
        held += piece
        found += _taken(marks, held)
        held = held[sum(len(before) + len(mark) for before, mark in _taken(marks, held)) :]
        assert len(held) - marks.find(held)[0] < 3
    assert found == _taken(marks, text)


def _taken(marks: Marks, text: str) -> list[tuple[str, str]]:
    """Every mark, with what stands before it."""
    at, mark = marks.find(text)
    return [] if mark is None else [(text[:at], mark), *_taken(marks, text[at + len(mark) :])]


@pytest.mark.parametrize("marks", [("",), ("a", "ab")])
def test_marks_of_which_one_begins_another_are_refused(marks: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="begins another"):
        Marks(*marks)
