"""Every finished random walk over the masks is a member of the language, for every kind of constraint."""

from __future__ import annotations

import json
import random
import re
from datetime import datetime
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from constrained_walks import small_vocabulary, walk

from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.spec import ConstraintError, ConstraintSpec, Whitespace

WALKS = 12
VOCAB = small_vocabulary()


@pytest.fixture(scope="module")
def compiler() -> Any:
    compiler = ConstraintCompiler(VOCAB)
    yield compiler
    compiler.close()


def texts(compiler: ConstraintCompiler, spec: ConstraintSpec, walks: int = WALKS, patience: int = 40) -> list[str]:
    compiled = compiler.compile(spec)
    found = [walk(VOCAB, compiled.matcher(), random.Random(seed), patience) for seed in range(walks)]
    finished = [text.decode() for text in found if text is not None]
    assert len(finished) >= walks * 2 // 3, f"only {len(finished)} of {walks} walks came to an end"
    return finished


PATTERNS = [
    r"abc",
    r"",
    r"a|",
    r"[a-c]{2,4}",
    r"\d{3}-\d{4}",
    r"\w+@\w+\.(com|org)",
    r"(yes|no|maybe)( indeed)?",
    r"[^a-z]{1,5}",
    r"[^\d\s]{1,5}",
    r"[^\w]{1,5}",
    r"\W{1,4}",
    r"\S{1,8}",
    r"\D{1,8}",
    r".{0,20}",
    r"a.b",
    r"[\s\S]{10,50}",
    r"\s{1,3}x",
    r"(?:ab)+",
    r"(a(b(c(d)?)?)?)?e",
    r"((a|b){2}|c{3,}){1,2}",
    r"x{,3}y",
    r"a{2,}",
    r"\x41\u00e9\n\t",
    r"[é-ü]{1,3}",
    r"[一-龥]{1,4}",
    r"[\u4e00-\u4e10]+",
    r"😀|😁",
    r"[😀-😎]{2}",
    r"^\d+$",
    r"^(a|b)$",
    r"(^a$)|(^b$)",
    r"\Aab\Z",
    r"(?i)hello",
    r"(?i:ab)C",
    r"(?i)[a-c]{3}",
    r"(?i)[^k]{2}",
    r"(?s).{3}",
    r"(?P<year>\d{4})-(?P<month>0[1-9]|1[0-2])",
    r"a*?b+?c??",
    r"[a\-z]{2}",
    r"[-az]{2}",
    r"[az-]{2}",
    r"[\]\\]{2}",
    r"\{\}\[\]\.\*\+\?\^\$\|\(\)\/",
    r"a{1",
    r"x{a}",
    r"[+\-]?(0|[1-9]\d*)(\.\d+)?([eE][+\-]?\d+)?",
    r"#[0-9a-fA-F]{6}",
    r"(\d{1,3}\.){3}\d{1,3}",
    r"<(b|i)>[^<]{0,30}</(b|i)>",
    r"(?#note)a",
    r"[\b]",
    r"\0",
    r"[^\x00-\x7f]{1,3}",
    r"(ab?){3}{2}".replace("{3}{2}", "{3}"),
    r"[a-z]{30}",
    r"((x{3}){3}){3}",
    r"Answer: .{1,200}\.",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_regex_walks_match_in_python(compiler: ConstraintCompiler, pattern: str) -> None:
    for text in texts(compiler, ConstraintSpec.regex(pattern)):
        assert re.fullmatch(pattern, text), (pattern, text)


def test_choice_reaches_every_choice(compiler: ConstraintCompiler) -> None:
    choices = ["a", "ab", "abc", "naïve", '"quoted"', "back\\slash", "line\nend", "中文", "", "x" * 50]
    assert set(texts(compiler, ConstraintSpec.choice(choices), walks=150)) == set(choices)


def accepts(compiler: ConstraintCompiler, spec: ConstraintSpec, text: str) -> bool:
    matcher = compiler.compile(spec).matcher()
    data = text.encode()
    return matcher.accept_run(list(data)) == len(data) and matcher.accepting


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "boolean"}},
            ['{"a": null}', '{"a": null, "b": true}', '{"b": true, "c": false}', "{}"],
            ['{"a": true}', '{"b": null}', '{"b": true, "a": null}'],
        ),
        (
            {"type": "object", "properties": {"a": {}}, "additionalProperties": True, "minProperties": 2},
            ['{"a": 1, "b": 2}', '{"a": [{}], "b": {"c": 1}, "d": 3}'],
            ['{"b": 1, "b": 1}', '{"a": 1}', "{}"],
        ),
        ({"type": "string", "maxLength": 20}, ['"' + "x" * 20 + '"', '"\\n\\""'], ['"' + "x" * 21 + '"']),
        ({"type": "string", "maxLength": 3}, ['"中文😀"', '""'], ['"abcd"']),
        ({"type": "string"}, ['"\\u00e9\\ud83d\\ude00\\/"', '"\x7f"'], ['"\\ud800"', '"\n"', '"\\x"', '"\\udc00"']),
        ({"type": "string", "pattern": "b+"}, ['"abc"', '"b"', '"\\nb\\""'], ['"a"', '""']),
        ({"type": "number"}, ["-0.5e+10", "0", "1E5"], ["01", ".5", "1.", "+1", "1e"]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, ["[1]", "[1, 2]"], ["[]", "[1,2]", "[1, ]"]),
        (
            {"type": "object", "patternProperties": {"^x": {"type": "null"}}},
            ['{"x1": null, "xy": null}'],
            ['{"x": 1}'],
        ),
        ({"enum": ["a", {"b": [1, 2]}]}, ['{"b": [1, 2]}', '"a"'], ['{"b": [1,2]}', '"b"']),
    ],
)
def test_json_schema_accepts_and_rejects(
    compiler: ConstraintCompiler, schema: Any, inside: list[str], outside: list[str]
) -> None:
    spec = ConstraintSpec.json_schema(schema)
    assert [text for text in inside if not accepts(compiler, spec, text)] == []
    assert [text for text in outside if accepts(compiler, spec, text)] == []


def test_ebnf_notation(compiler: ConstraintCompiler) -> None:
    grammar = r"""root ::= [^a-c\]] "\x41\n\"" item{2} # comment "
    | ( "é" | "\U0001F600" )+
    item ::= [\-x-z] .? |
    "end"
    """
    spec = ConstraintSpec.ebnf(grammar)
    for text in ('dA\n"xx', 'dA\n"-end', 'dA\n"y中z', "é😀é"):
        assert accepts(compiler, spec, text), text
    for text in ('aA\n"xx', ']A\n"xx', 'dA\n"x', "", 'dA\n"xxxxx'):
        assert not accepts(compiler, spec, text), text


EXPRESSION = r"""
# arithmetic
root ::= sum
sum ::= product (" + " product)*
product ::= atom ("*" atom){0,2}
atom ::= [0-9]{1,3} | "(" sum ")" | "-" atom | loop
loop ::= "never" loop
"""


def test_ebnf_walks_are_expressions(compiler: ConstraintCompiler) -> None:
    for text in texts(compiler, ConstraintSpec.ebnf(EXPRESSION), walks=30):
        assert re.fullmatch(r"[-0-9+* ()]+", text) and text.count("(") == text.count(")")
        assert "never" not in text


SCHEMAS: list[Any] = [
    True,
    {"type": "object"},
    {"type": ["integer", "null", "boolean"]},
    {"enum": ["a", 'q"uo\\te', 1, 2.5, None, True, {"x": [1, "é"], "y": {}}, [], "\n"]},
    {"const": {"b": 1, "a": [True]}},
    {"type": "string"},
    {"type": "string", "minLength": 2},
    {"type": "string", "minLength": 3, "maxLength": 3},
    {"type": "string", "maxLength": 5},
    {"type": "string", "minLength": 1, "maxLength": 25},
    {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 6},
    {"type": "string", "pattern": "[a-mA-M0-9]"},
    {"type": "string", "pattern": "^ab$|^cd"},
    {"type": "string", "pattern": '^a"b\\\\c\\n[^a]$'},
    {"type": "string", "pattern": "^id-\\d{3}$", "maxLength": 20},
    {"type": "integer"},
    {"type": "integer", "minimum": -17, "maximum": 1234},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10},
    {"type": "integer", "minimum": 98765},
    {"type": "integer", "maximum": -3},
    {"type": "integer", "minimum": 0.5, "maximum": 3.5},
    {"type": "integer", "multipleOf": 7},
    {"type": "integer", "multipleOf": 25, "minimum": 3, "maximum": 1000},
    {"type": "integer", "format": "int32"},
    {"type": "number"},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "number", "minimum": -273.15},
    {"type": "number", "minimum": -2.5, "maximum": -0.125},
    {"type": "number", "exclusiveMinimum": 1e-7, "maximum": 1e-6},
    {"type": "array"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "items": False},
    {"type": "array", "maxItems": 0},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}]},
    {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string", "maxLength": 3}, "minItems": 3},
    {"type": "array", "prefixItems": [{"type": "integer"}, True], "items": False, "minItems": 1},
    {"type": "array", "prefixItems": [{"type": "integer"}], "unevaluatedItems": False},
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}}, "required": ["b"]},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a", "z"]},
    {"type": "object", "properties": {"a": True, "b": False, "c": {"type": "null"}}},
    {
        "type": "object",
        "properties": {f"p{i}": {"type": "integer"} for i in range(8)},
        "minProperties": 3,
        "maxProperties": 5,
    },
    {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 2, "minProperties": 1},
    {
        "type": "object",
        "properties": {"ab": {"type": "null"}, "abc": {"type": "null"}, "": {"type": "null"}, '"': {}},
        "additionalProperties": {"type": "boolean"},
    },
    {
        "type": "object",
        "properties": {"a": {"type": "null"}},
        "additionalProperties": {"type": "boolean"},
        "minProperties": 2,
    },
    {"type": "object", "patternProperties": {"^x_[a-z]{1,3}$": {"type": "integer"}}, "additionalProperties": False},
    {"type": "object", "propertyNames": {"enum": ["k1", "k2"]}, "additionalProperties": {"type": "integer"}},
    {"type": "object", "propertyNames": {"pattern": "^[a-z]{2}$"}, "additionalProperties": {"type": "integer"}},
    {"type": "object", "properties": {"a": {"type": "null"}}, "unevaluatedProperties": False},
    {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"minimum": 3},
    {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"type": "integer"},
                    "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
                },
                "required": ["v", "kids"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    {
        "$id": "https://example.com/s",
        "$defs": {"x": {"$anchor": "here", "type": "integer", "maximum": 5}},
        "type": "array",
        "items": {"$ref": "#here"},
        "maxItems": 2,
    },
    {"$ref": "#/$defs/a", "maximum": 5, "$defs": {"a": {"type": "integer", "minimum": 3}}},
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}},
            {"properties": {"b": {"type": "null"}, "a": {"minimum": 5}}, "required": ["a"]},
        ]
    },
    {
        "allOf": [{"properties": {"a": {"type": "integer"}}, "additionalProperties": False}, {"properties": {"b": {}}}],
        "type": "object",
    },
    {
        "type": "object",
        "properties": {"k": {"type": "string", "maxLength": 2}},
        "required": ["k"],
        "anyOf": [
            {"properties": {"x": {"type": "null"}}, "required": ["x"]},
            {"properties": {"y": {"type": "boolean"}}},
        ],
    },
    {
        "oneOf": [
            {"type": "integer"},
            {"type": "string", "maxLength": 3},
            {"type": "object", "properties": {"k": {"const": 1}}, "required": ["k"]},
            {"type": "object", "properties": {"k": {"enum": [2, 3]}}, "required": ["k"]},
        ]
    },
    {"type": "string", "enum": ["aa", "b", 3], "minLength": 2},
    {"enum": [1, 2.5, 30], "type": "integer", "maximum": 10},
    {
        "type": "object",
        "properties": {"title": {"type": "string", "description": "d", "default": "x", "examples": ["y"]}},
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: json.dumps(s)[:60])
@pytest.mark.parametrize("whitespace", ["fixed", "compact", "flexible"])
def test_json_schema_walks_validate(compiler: ConstraintCompiler, schema: Any, whitespace: Whitespace) -> None:
    spec = ConstraintSpec.json_schema(schema, whitespace=whitespace)
    separators = {"fixed": (", ", ": "), "compact": (",", ":")}.get(whitespace)
    for text in texts(compiler, spec, walks=6):
        value = json.loads(text)
        jsonschema.Draft202012Validator(schema).validate(value)
        if separators and not any(c in text for c in "\\.eE") and "-0" not in text and len(text) < 15:
            assert json.dumps(value, ensure_ascii=False, separators=separators) == text


FORMAT_CHECKS = {
    "date": lambda t: datetime.strptime(t, "%Y-%m-%d"),
    "date-time": lambda t: datetime.fromisoformat(
        re.sub(r":60(?=[.Z+-])", ":59", re.sub(r"\.(\d{1,6})\d*", lambda m: "." + m[1].ljust(6, "0"), t.upper()))
    ),
    "ipv4": None,
    "ipv6": None,
    "uuid": None,
    "email": lambda t: re.fullmatch(r'([^@\s]{1,64}|"[^\r\n]{0,64}")@[^@\s.-][^@\s]*', t).group(),  # type: ignore[union-attr]
    "hostname": lambda t: [re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", part).group() for part in t.split(".")],  # type: ignore[union-attr]
    "time": lambda t: datetime.strptime(t[:8], "%H:%M:%S"),
    "duration": lambda t: re.fullmatch(r"P(?!$)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)", t).group(),  # type: ignore[union-attr]
    "uri": lambda t: re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]*", t).group(),  # type: ignore[union-attr]
    "json-pointer": lambda t: re.fullmatch(r"(/([^~/]|~0|~1)*)*", t, re.S).group(),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("name", FORMAT_CHECKS)
def test_format_walks_are_of_the_format(compiler: ConstraintCompiler, name: str) -> None:
    schema = {"type": "string", "format": name}
    checker = jsonschema.FormatChecker()
    for text in texts(compiler, ConstraintSpec.json_schema(schema), walks=20):
        value = json.loads(text)
        if name != "time":  # the checker's own "time" is that of draft 3, without an offset
            jsonschema.validate(value, schema, format_checker=checker)
        if (check := FORMAT_CHECKS[name]) is not None:
            check(value)


def test_multiple_of_a_power_of_ten_is_exact_in_decimal(compiler: ConstraintCompiler) -> None:
    schema = {"type": "number", "multipleOf": 0.01, "minimum": 0.05, "maximum": 20}
    for text in texts(compiler, ConstraintSpec.json_schema(schema), walks=40):
        assert Decimal(text) % Decimal("0.01") == 0 and Decimal("0.05") <= Decimal(text) <= 20


def test_draft_7_tuples_and_draft_4_exclusive_bounds(compiler: ConstraintCompiler) -> None:
    schema = {
        "type": "array",
        "items": [{"type": "integer"}, {"type": "null"}],
        "additionalItems": {"type": "boolean"},
        "maxItems": 4,
    }
    for text in texts(compiler, ConstraintSpec.json_schema(schema)):
        jsonschema.Draft7Validator(schema).validate(json.loads(text))
    schema = {"type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 5}
    assert set(texts(compiler, ConstraintSpec.json_schema(schema), walks=30)) == {"4", "5"}


def test_a_schema_that_leads_back_to_itself_at_the_same_place_is_an_error(compiler: ConstraintCompiler) -> None:
    spec = ConstraintSpec.json_schema({"anyOf": [{"$ref": "#"}, {"type": "null"}]})
    with pytest.raises(ConstraintError, match=r"/anyOf/0/\$ref: the reference leads back to itself"):
        compiler.compile(spec)


def test_a_closed_object_generates_declared_properties_only(compiler: ConstraintCompiler) -> None:
    properties = {"a": {"type": "null"}, "b": {"type": "null"}}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    found = set(texts(compiler, ConstraintSpec.json_schema(schema), walks=40))
    assert found == {"{}", '{"a": null}', '{"b": null}', '{"a": null, "b": null}'}


def test_structural_tags_constrain_the_content_of_a_tag(compiler: ConstraintCompiler) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["n"]}
    spec = ConstraintSpec.structural_tag(
        {"structures": [{"begin": "<call>", "schema": schema, "end": "</call>"}], "triggers": ["<call>"]}
    )
    compiled = compiler.compile(spec)
    assert compiled.report.with_verdict("enforced")
    matcher = compiled.matcher()
    assert matcher.accept_run(list(b'free text <call>{"n": 7}</call> and more')) == 40
    assert compiled.matcher().accept_run(list(b'<call>{"n": 77')) == len(b'<call>{"n": 7')


@pytest.mark.parametrize(("low", "high"), [(0, 6), (2, 9), (5, 5), (1, 40)])
@pytest.mark.parametrize("letter", ["a", "中", "😀"])
def test_a_counted_class_counts_characters(compiler: ConstraintCompiler, low: int, high: int, letter: str) -> None:
    spec = ConstraintSpec.regex(rf"[^!]{{{low},{high}}}!?")
    for n in range(high + 3):
        assert accepts(compiler, spec, letter * n) == (low <= n <= high), n
        assert accepts(compiler, spec, letter * n + "!") == (low <= n <= high), n
