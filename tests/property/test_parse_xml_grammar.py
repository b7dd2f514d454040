"""Formats with an argument to a tag, walked at random through their grammar: what is read back is valid."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from sglite.constrained import bitmask
from sglite.constrained.compiler import CompiledConstraint, ConstraintCompiler
from sglite.constrained.spec import ConstraintSpec, Order
from sglite.constrained.vocab import Vocabulary
from sglite.runtime.parse.base import Call, CallArguments, CallEnd, CallStart, Content, Tool, ToolFormat
from sglite.runtime.parse.deepseek_v32 import DeepSeekV32
from sglite.runtime.parse.glm45 import Glm45
from sglite.runtime.parse.qwen3_coder import Qwen3Coder
from sglite.runtime.parse.schemas import argument_schema

FORMATS: list[ToolFormat] = [Qwen3Coder(), Glm45(), DeepSeekV32()]
NAMED = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)

DSML = 256  # the token of ｜DSML｜
END = 257
WORDS = [
    "</parameter>",
    "\n</parameter>\n",
    "</arg_value>",
    "</",
    "parameter>\n",
    "null",
    "true",
    "12",
    "-1",
    '{"',
    '": ',
    "[]",
]
VOCAB = Vocabulary(
    [*(bytes([i]) for i in range(256)), None, None, *(word.encode() for word in WORDS)],
    [END],
    lambda text: list(text.encode()),
    special_ids={"｜DSML｜": DSML},
)


@pytest.fixture(scope="module")
def compiler() -> Iterator[ConstraintCompiler]:
    if not shutil.which("g++"):
        pytest.skip("the reference engine is too slow for this")
    compiler = ConstraintCompiler(VOCAB, engine="native")
    yield compiler
    compiler.close()


def of(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **more}


TEXT, WHOLE, NOTHING = {"type": "string"}, {"type": "integer"}, {"type": "null"}
SCHEMAS: list[dict[str, Any]] = [
    of({"s": TEXT}, "s"),
    of({"s": TEXT, "i": WHOLE, "b": {"type": "boolean"}}, "i"),
    of({"s": {"enum": ["a", "b c", "</x>", "12"]}, "c": {"const": "fix"}}, "s", "c"),
    of({"s": {"enum": ["auto", 1, 2.5, None, True, ["x"]]}}, "s"),
    of({"s": {"type": "string", "minLength": 2, "maxLength": 5}}, "s"),
    of({"s": {"type": "string", "maxLength": 3000}}, "s"),
    of({"s": {"type": "string", "minLength": 3, "maxLength": 2000, "pattern": "^[a-c\\n]*$"}}, "s"),
    of({"s": {"type": "string", "pattern": "^\\d{3}-[A-Z]+$"}, "t": {"type": "string", "pattern": "<"}}, "s", "t"),
    of({"s": {"type": "string", "format": "date"}, "u": {"type": "string", "format": "uuid"}}, "s"),
    of({"s": {"anyOf": [TEXT, NOTHING]}}, "s"),
    of({"s": {"type": ["string", "integer"]}}, "s"),
    of({"s": {"anyOf": [{"type": "string", "pattern": "^\\d+$"}, {"type": "integer", "maximum": 9}]}}),
    of({"s": {"oneOf": [{"type": "array", "items": WHOLE, "maxItems": 2}, TEXT]}}, "s"),
    of({"s": {"anyOf": [{"type": "object", "properties": {"k": WHOLE}, "required": ["k"]}, {"enum": ["none"]}]}}, "s"),
    of({"any": {}}, "any"),
    of(
        {"f": {"type": "number", "minimum": -2, "exclusiveMaximum": 7.5}, "m": {"type": "integer", "multipleOf": 5}},
        "f",
    ),
    of({"o": of({"x": TEXT, "y": {"type": "array", "items": of({"z": NOTHING}, "z")}}, "x")}, "o"),
    of(
        {"r": {"$ref": "#/$defs/node"}},
        "r",
        **{"$defs": {"node": of({"v": WHOLE, "next": {"$ref": "#/$defs/node"}}, "v")}},
    ),
    of({"n": {"$ref": "#/$defs/name"}}, "n", **{"$defs": {"name": {"type": ["string", "null"], "maxLength": 4}}}),
    of({"s": TEXT}, additionalProperties=WHOLE),
    of({"s": WHOLE}, additionalProperties=TEXT),
    of({}, patternProperties={"^x-": TEXT}, additionalProperties=False),
    of({"a": WHOLE, "b": TEXT, "c": TEXT}, minProperties=2),
    of({"a": WHOLE, "b": TEXT, "c": TEXT}, maxProperties=1),
    of({"a": TEXT}, allOf=[of({"a": {"maxLength": 3}, "b": WHOLE}, "b")]),
    of({"a": TEXT, "b": WHOLE}, dependentRequired={"a": ["b"]}),
    {
        "type": "object",
        "oneOf": [of({"k": {"const": "x"}, "v": TEXT}, "k"), of({"k": {"const": "y"}, "v": WHOLE}, "k", "v")],
    },
    {"type": "object", "anyOf": [of({"a": TEXT}, "a"), of({"b": WHOLE}, "b")]},
    {"$ref": "#/$defs/all", "$defs": {"all": of({"a": {"type": ["boolean", "string"]}}, "a")}},
    of(
        {"kind": {"enum": ["n", "s"]}, "v": {}},
        "kind",
        "v",
        **{"if": of({"kind": {"const": "n"}}), "then": of({"v": WHOLE})},
    ),
    of({"a": {"not": {"type": "integer"}, "type": ["string", "integer", "boolean"]}}, "a"),
    of({"a": {"type": "string", "not": {"enum": ["", "x"]}}}, "a"),
    of({"list": {"type": "array", "items": {"enum": ["</parameter>", 1]}, "minItems": 1, "uniqueItems": True}}, "list"),
    of({}),
    {},
]


def compiled(
    compiler: ConstraintCompiler, form: ToolFormat, schema: Any, order: Order = "schema"
) -> CompiledConstraint:
    tag = form.calls([Tool("f", schema), Tool("other")], several=False)
    return compiler.compile(ConstraintSpec.structural_tag({"type": "structural_tag", "format": tag}, order=order))


def walked(constraint: CompiledConstraint, rng: random.Random) -> str | None:
    """A random text of the constraint; None where a value has to be taken back."""
    matcher = constraint.matcher(close_at=constraint.shortest_tokens() + rng.choice((0, 20, 80)))
    text = b""
    while True:
        mask = np.zeros(VOCAB.words, dtype=np.int32)
        matcher.fill(mask)
        ids = [int(i) for i in bitmask.to_ids(mask) if i < VOCAB.size]
        if not ids:
            return None
        likely = [i for i in ids if i > END] or ids
        token = rng.choice(likely if rng.random() < 0.3 else ids)
        assert matcher.accept(token)
        if token == END:
            return text.decode()
        text += "｜DSML｜".encode() if token == DSML else VOCAB.token_bytes[token] or b""


def read(form: ToolFormat, text: str, tools: list[Tool], rng: random.Random) -> list[Call]:
    """The calls of a turn that comes in random pieces. All of it is calls, and they are whole."""
    parser, events = form.parser(tools), []
    while text:
        size = rng.randint(1, 12)
        events += parser.feed(text[:size])
        text = text[size:]
    events += parser.finish()
    assert not any(isinstance(event, Content) for event in events)
    names = [event.name for event in events if isinstance(event, CallStart)]
    assert sum(isinstance(event, CallEnd) for event in events) == len(names)
    pieces = [event for event in events if isinstance(event, CallArguments)]
    texts = ["".join(piece.text for piece in pieces if piece.index == i) for i in range(len(names))]
    return [Call(name, json.loads(text, parse_constant=pytest.fail)) for name, text in zip(names, texts, strict=True)]


@NAMED
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_what_the_grammar_lets_through_is_read_as_valid_arguments(
    compiler: ConstraintCompiler, form: ToolFormat, schema: dict[str, Any]
) -> None:
    rng = random.Random(json.dumps(schema) + form.name)
    tool = Tool("f", schema)
    validator = Draft202012Validator(argument_schema(tool))
    orders: tuple[Order, ...] = ("schema", "any")
    for order in orders:
        constraint = compiled(compiler, form, schema, order)
        texts = [walked(constraint, rng) for _ in range(6)]
        assert sum(text is not None for text in texts) > 2
        for text in texts:
            if text is None:
                continue
            (call,) = read(form, text, [tool, Tool("other")], rng)
            if call.name == "f":
                assert validator.is_valid(call.arguments), (text, call.arguments)
