"""The measurement of tool calls: what it counts as right and as wrong, on a set of two turns."""

from __future__ import annotations

import random
import shutil

import pytest

from benchmarks.tools.run import CONTENT, PIECES, Item, ask_calls, ask_parse, ask_schemas, pieces_of
from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.vocab import Vocabulary
from sglite.runtime.parse.base import Call, Tool
from sglite.runtime.parse.qwen3_coder import Qwen3Coder

VOCAB = Vocabulary([*(bytes([i]) for i in range(256)), None], [256], lambda text: list(text.encode()))
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["b"]}
TOOLS = (Tool("f", SCHEMA), Tool("never", {"type": "object", "required": ["x"], "properties": {"x": False}}))
ORDERED, SWAPPED = Call("f", {"a": "x", "b": 1}), Call("f", {"b": 1, "a": "x"})
ITEMS = [Item("one", TOOLS, (ORDERED,)), Item("two", TOOLS, (SWAPPED, ORDERED))]


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(VOCAB, engine="native" if shutil.which("g++") else "reference")


def test_a_schema_that_is_refused_is_told_with_its_tool(compiler: ConstraintCompiler) -> None:
    found = ask_schemas(Qwen3Coder(), TOOLS, compiler)
    assert (found.asked, found.right, len(found.times)) == (2, 1, 1)
    assert found.problems[0].startswith("never: ")


def test_the_order_of_properties_decides_what_is_accepted(compiler: ConstraintCompiler) -> None:
    rows = {order: ask_calls(Qwen3Coder(), ITEMS, compiler, VOCAB, order) for order in ("schema", "any")}
    assert (rows["schema"].right, rows["any"].right) == (1, 2)
    assert rows["schema"].problems[0].startswith("two: not accepted after ")


@pytest.mark.parametrize("name", PIECES)
def test_every_turn_is_read_back(name: str) -> None:
    found = ask_parse(Qwen3Coder(), ITEMS, *PIECES[name])
    assert (found.asked, found.right, found.problems) == (2, 2, [])


def test_a_wrong_reading_is_a_problem() -> None:
    mark = "</parameter>\n</function>\n</tool_call>"
    found = ask_parse(Qwen3Coder(), [Item("cut", TOOLS, (Call("f", {"a": mark}),))], 0, 0)
    assert found.right == 0
    assert found.problems[0].startswith("cut: ")


def test_pieces_are_the_text() -> None:
    pieces = list(pieces_of(CONTENT, 1, 4, random.Random(1)))
    assert "".join(pieces) == CONTENT
    assert all(1 <= len(piece) <= 4 for piece in pieces)
