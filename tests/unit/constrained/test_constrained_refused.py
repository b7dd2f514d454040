"""What is not enforced is refused, with its pointer and a reason; what is broken is told with its place."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from sglite.constrained.limits import Limits
from sglite.constrained.lower import lower
from sglite.constrained.report import KeywordReport
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec

OPEN = {"type": "object", "additionalProperties": True}


def check(schema: Any, strict: bool = True) -> KeywordReport:
    return lower(ConstraintSpec.json_schema(schema, strict=strict), Limits()).report


REFUSED: list[tuple[Any, str]] = [
    ({"not": {"type": "null"}}, "/not"),
    ({"type": "object", "properties": {"x": {"not": {}}}}, "/properties/x/not"),
    ({"if": {"type": "null"}, "then": {"const": None}}, "/if"),
    ({"type": "array", "uniqueItems": True}, "/uniqueItems"),
    ({"type": "array", "contains": {"type": "null"}}, "/contains"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "/dependentRequired"),
    ({"type": "object", "dependentSchemas": {"a": {}}}, "/dependentSchemas"),
    ({"type": "object", "dependencies": {"a": ["b"]}}, "/dependencies"),
    ({"$dynamicRef": "#x"}, "/$dynamicRef"),
    ({"$ref": "https://example.com/other.json"}, "/$ref"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "/oneOf"),
    ({"oneOf": [{"const": 1}, {"enum": [1.0, 2]}]}, "/oneOf"),
    ({"oneOf": [{"required": ["a"], "type": "object"}, {"required": ["b"], "type": "object"}]}, "/oneOf"),
    ({"oneOf": [{"type": "string", "maxLength": 3}, {"const": "ab"}]}, "/oneOf"),
    ({"type": "integer", "multipleOf": 1000}, "/multipleOf"),
    ({"type": "integer", "multipleOf": 3, "minimum": 10}, "/multipleOf"),
    ({"type": "number", "multipleOf": 0.3}, "/multipleOf"),
    ({"type": "number", "minimum": 1e305}, "/minimum"),
    ({"type": "number", "exclusiveMaximum": 0.12345678901234567}, "/exclusiveMaximum"),
    ({"type": "string", "format": "foo"}, "/format"),
    ({"type": "string", "format": "date", "pattern": "^2"}, "/format"),
    ({"type": "string", "pattern": "(?=a)b"}, "/pattern"),
    ({"type": "string", "pattern": "a\\b"}, "/pattern"),
    ({"type": "string", "pattern": "(a|bb)*", "maxLength": 3}, "/maxLength"),
    ({"type": "string", "pattern": "^a"} | {"allOf": [{"pattern": "b$"}]}, "/allOf/0/pattern"),
    (
        {"type": "object", "patternProperties": {"^a": {"type": "null"}, "b$": {"type": "integer"}}},
        "/patternProperties",
    ),
    ({"type": "object", "properties": {"ab": {}}, "patternProperties": {"^a": {}}}, "/patternProperties"),
    ({**OPEN, "properties": {"a": {}}, "propertyNames": {"maxLength": 3}}, "/propertyNames"),
    ({**OPEN, "minProperties": 2}, "/minProperties"),
    ({"type": "object", "properties": {"a": {"$id": "sub", "$ref": "#/x"}}, "x": {}}, "/properties/a/$id"),
    ({"type": "array", "unevaluatedItems": False, "allOf": [{"prefixItems": [{}]}]}, "/unevaluatedItems"),
    (
        {"type": "object", "unevaluatedProperties": False, "allOf": [{"properties": {"a": {}}}]},
        "/unevaluatedProperties",
    ),
    ({"type": "object", "properties": {"a": {}}, "enum": [{"a": 1}]}, "/properties"),
    ({"type": "object", "required": True}, "/required"),
]


@pytest.mark.parametrize(("schema", "pointer"), REFUSED, ids=lambda v: str(v)[:50])
def test_what_is_not_enforced_is_refused_with_its_pointer(schema: Any, pointer: str) -> None:
    with pytest.raises(ConstraintRefused) as caught:
        check(schema)
    assert caught.value.pointer == pointer
    assert caught.value.keyword == pointer.rpartition("/")[2]
    assert caught.value.reason and str(caught.value).startswith(f"{pointer}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [r for r in REFUSED if r[1] not in ("/$ref", "/minimum", "/exclusiveMaximum")],
    ids=lambda v: str(v)[:50],
)
def test_without_strict_it_is_reported_as_unenforced(schema: Any, pointer: str) -> None:
    report = check(schema, strict=False)
    assert report[pointer] == "unenforced" and report.reasons[pointer]


BROKEN: list[tuple[Any, str]] = [
    ({"type": "strin"}, "/type: "),
    ({"type": []}, "/type: "),
    ({"type": "string", "minLength": -1}, "/minLength: "),
    ({"type": "string", "minLength": "3"}, "/minLength: "),
    ({"type": "string", "pattern": "(a"}, "/pattern: .*position 0"),
    ({"type": "integer", "minimum": "3"}, "/minimum: "),
    ({"type": "integer", "multipleOf": 0}, "/multipleOf: "),
    ({"type": "object", "properties": []}, "/properties: "),
    ({"type": "object", "required": [1]}, "/required: "),
    ({"type": "array", "prefixItems": {}}, "/prefixItems: "),
    ({"anyOf": []}, "/anyOf: "),
    ({"$ref": "#/nowhere"}, "/[$]ref: nothing at 'nowhere'"),
    ({"$ref": "#name"}, "/[$]ref: no [$]anchor"),
    ({"$ref": "#"}, "/[$]ref: the reference leads back to itself"),
    ({"type": "array", "items": 3}, "/items: a schema is"),
    ({"enum": ["\ud800"]}, "surrogate"),
    ({"type": "object", "properties": {"\ud800": {}}}, "surrogate"),
]


@pytest.mark.parametrize(("schema", "message"), BROKEN, ids=lambda v: str(v)[:50])
def test_a_broken_schema_is_told_with_its_place(schema: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        check(schema)


EMPTY: list[Any] = [
    False,
    {"type": "integer", "minimum": 3, "maximum": 2},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4},
    {"type": "number", "exclusiveMinimum": 1, "maximum": 1},
    {"type": "string", "minLength": 3, "maxLength": 2},
    {"type": "string", "pattern": "^abc$", "maxLength": 2},
    {"type": "array", "minItems": 2, "maxItems": 1},
    {"type": "array", "items": False, "minItems": 1},
    {"type": "object", "properties": {"a": False}, "required": ["a"]},
    {"type": "object", "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"a": {}}, "minProperties": 2},
    {"allOf": [{"type": "string"}, {"type": "null"}]},
    {"enum": [1, 2], "type": "string"},
    {
        "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}},
        "$ref": "#/$defs/n",
    },
]


@pytest.mark.parametrize("schema", EMPTY, ids=lambda s: str(s)[:60])
def test_an_empty_language_is_refused(schema: Any) -> None:
    with pytest.raises(ConstraintRefused, match="matches nothing"):
        check(schema)


def test_the_report_tells_enforced_from_annotation() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "t",
        "type": "object",
        "properties": {"a/b": {"type": "string", "description": "d", "maxLength": 3, "x-ui": 1}},
        "$defs": {},
    }
    report = check(schema)
    assert report.with_verdict("enforced") == [
        "/type",
        "/properties",
        "/properties/a~1b/type",
        "/properties/a~1b/maxLength",
    ]
    annotations = {"/$schema", "/title", "/$defs", "/properties/a~1b/description", "/properties/a~1b/x-ui"}
    assert set(report.with_verdict("annotation")) == annotations


@pytest.mark.parametrize(
    ("pattern", "error", "where"),
    [
        ("a(?=b)", ConstraintRefused, "lookahead at position 1"),
        ("(?!b)a", ConstraintRefused, "lookahead at position 0"),
        ("(?<=b)a", ConstraintRefused, "lookbehind at position 0"),
        ("(?<!b)a", ConstraintRefused, "lookbehind at position 0"),
        (r"(a)\1", ConstraintRefused, "backreference at position 3"),
        (r"(?P<a>x)(?P=a)", ConstraintRefused, "backreference at position 8"),
        (r"(?<a>x)\k<a>", ConstraintRefused, "backreference at position 7"),
        (r"a\b", ConstraintRefused, "word boundary at position 1"),
        (r"\Ba", ConstraintRefused, "word boundary at position 0"),
        ("a*+", ConstraintRefused, "possessive quantifier at position 2"),
        ("(?>a)", ConstraintRefused, "atomic group at position 0"),
        (r"\p{L}", ConstraintRefused, "Unicode property at position 0"),
        ("a^b", ConstraintRefused, "anchor"),
        ("(a$)*", ConstraintRefused, "anchor"),
        ("^*a", ConstraintRefused, "anchor at position 0"),
        ("(?m)a", ConstraintRefused, "flag 'm' at position 0"),
        ("(?x)a", ConstraintRefused, "flag 'x' at position 0"),
        ("a(?i)b", ConstraintRefused, "flags that are not at the start"),
        ("[[:alpha:]]", ConstraintRefused, "POSIX"),
        ("[]a]", ConstraintRefused, "class that begins with ]"),
        (r"\ud800", ConstraintRefused, "U\\+D800"),
        ("a{100000}", ConstraintRefused, "repetition of 100000"),
        ("(a{60000}){60000}", ConstraintRefused, "multiply"),
        ("a{5000}{5000}", ConstraintError, "quantifier follows a quantifier"),
        ("(" * 100 + ")" * 100, ConstraintRefused, "nesting deeper"),
        ("(a", ConstraintError, "missing \\) at position 0"),
        ("a)", ConstraintError, "unmatched \\) at position 1"),
        ("[a", ConstraintError, "missing ] at position 0"),
        ("*a", ConstraintError, "nothing to repeat at position 0"),
        ("a**", ConstraintError, "quantifier follows a quantifier"),
        ("a{3,2}", ConstraintError, "wrong way round"),
        ("[z-a]", ConstraintError, "wrong way round"),
        (r"[\d-z]", ConstraintError, "cannot bound a range"),
        (r"\x4", ConstraintError, "cut short"),
        (r"\uZZZZ", ConstraintError, "not a hexadecimal number"),
        (r"\q", ConstraintError, "unknown escape"),
        ("a\\", ConstraintError, "ends in a backslash"),
        ("[^\\s\\S]", ConstraintRefused, "matches nothing"),
    ],
)
def test_regexes(pattern: str, error: type[Exception], where: str) -> None:
    with pytest.raises(error, match=where):
        lower(ConstraintSpec.regex(pattern), Limits())


@pytest.mark.parametrize(
    ("grammar", "error", "where"),
    [
        ('start ::= "a"', ConstraintError, "no rule named 'root'"),
        ('root ::= "a" b', ConstraintError, "line 1 column 14: the rule 'b' is not defined"),
        ('root ::= "a"\nroot ::= "b"', ConstraintError, "line 2 column 1: the rule 'root' is defined twice"),
        ('root ::= "a', ConstraintError, 'line 1 column 10: missing "'),
        ("root ::= [a", ConstraintError, "missing ]"),
        ('root ::= ("a"', ConstraintError, "missing \\)"),
        ('root ::= "a" ) "b"', ConstraintError, "expected 'name ::='"),
        ('root ::= "a" &', ConstraintError, "unexpected '&'"),
        ('root ::= "a"{3,2}', ConstraintError, "wrong way round"),
        ('root ::= "\\ud800"', ConstraintError, "surrogate"),
        ("root ::= [z-a]", ConstraintError, "wrong way round"),
        ('root ::= "a" (= "b")', ConstraintRefused, "lookahead"),
        ('root ::= TagDispatch(("a", root))', ConstraintRefused, "extension 'TagDispatch'"),
        ('root ::= "a" root', ConstraintRefused, "matches nothing"),
        ("root ::= []", ConstraintRefused, "matches nothing"),
        ('root ::= "a"{100000}', ConstraintRefused, "repetition of 100000"),
        ('root ::= (("a"{9999}){9999}){9999}', ConstraintRefused, "multiply"),
        ("root ::= " + "(" * 200 + '"a"' + ")" * 200, ConstraintRefused, "nesting deeper"),
        ('root ::= "a"??', ConstraintError, "a quantifier follows a quantifier"),
    ],
)
def test_grammars(grammar: str, error: type[Exception], where: str) -> None:
    with pytest.raises(error, match=where):
        lower(ConstraintSpec.ebnf(grammar), Limits())


@pytest.mark.parametrize(
    ("tag", "error", "where"),
    [
        ({"format": {"type": "token", "token": 3}, "type": "structural_tag"}, ConstraintRefused, "/format/type"),
        ({"format": {"type": "any_text", "max_tokens": 3}}, ConstraintRefused, "/format/max_tokens"),
        ({"format": {"type": "json_schema", "json_schema": {"not": {}}}}, ConstraintRefused, "/format/json_schema/not"),
        (
            {"format": {"type": "json_schema", "json_schema": {}, "style": "qwen_xml"}},
            ConstraintRefused,
            "/format/style",
        ),
        ({"format": {"type": "regex", "pattern": "(a"}}, ConstraintError, "/format/pattern: regex"),
        ({"format": {"type": "regex", "pattern": "[^\\s\\S]"}}, ConstraintRefused, "/format/pattern: matches nothing"),
        ({"format": {"type": "sequence", "elements": 3}}, ConstraintError, "/format/elements"),
        ({"structures": [{"begin": "a"}], "triggers": ["a"]}, ConstraintError, "/structures/0"),
        ({"other": 1}, ConstraintError, "a structural tag has"),
    ],
)
def test_structural_tags(tag: Any, error: type[Exception], where: str) -> None:
    with pytest.raises(error, match=where):
        lower(ConstraintSpec.structural_tag(tag), Limits())


def test_inputs_are_bounded() -> None:
    with pytest.raises(ConstraintRefused, match="has 300001 bytes"):
        lower(ConstraintSpec.regex("a" * 300_001), Limits())
    deep: Any = {}
    for _ in range(400):
        deep = {"items": deep}
    with pytest.raises(ConstraintRefused, match="nested deeper"):
        check(deep)
    with pytest.raises((ConstraintRefused, ConstraintError), match="nested"):
        lower(ConstraintSpec("json_schema", "[" * 100_000), Limits())
    chain: Any = {"$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(200)}, "$ref": "#/$defs/0"}
    with pytest.raises(ConstraintRefused, match="nested too deeply"):
        check(chain)
    with pytest.raises(ConstraintRefused, match="too large"):
        check(
            {"allOf": [{"anyOf": [{"maxLength": 100 * j + i} for i in range(10)]} for j in range(9)], "type": "string"}
        )


def test_a_refusal_travels_to_another_process() -> None:
    error = ConstraintRefused("because", pointer="/a/b", keyword="b")
    other = pickle.loads(pickle.dumps(error))
    assert (other.pointer, other.keyword, other.reason, str(other)) == ("/a/b", "b", "because", "/a/b: because")


def test_specs_are_values() -> None:
    a = ConstraintSpec.json_schema({"type": "object", "properties": {"b": {}, "a": {}}})
    b = ConstraintSpec.json_schema('{ "type": "object",\n "properties": {"b": {}, "a": {}}}')
    assert a == b and hash(a) == hash(b) and a.key() == b.key()
    swapped = ConstraintSpec.json_schema({"type": "object", "properties": {"a": {}, "b": {}}})
    assert a.key() != swapped.key(), "the order of properties is the order of generation"
    keys = {
        ConstraintSpec(kind, "{}", whitespace, strict).key()
        for kind in ("json_schema", "regex")
        for whitespace in ("fixed", "compact")
        for strict in (True, False)
    }
    assert len(keys) == 8


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConstraintSpec("yaml", ""),  # type: ignore[arg-type]
        lambda: ConstraintSpec("regex", "", "loose"),  # type: ignore[arg-type]
        lambda: ConstraintSpec.regex(3),  # type: ignore[arg-type]
        lambda: ConstraintSpec.choice([]),
        lambda: ConstraintSpec.choice("abc"),
        lambda: ConstraintSpec.json_schema("{"),
        lambda: ConstraintSpec.json_schema('{"a": 1, "a": 2}'),
        lambda: ConstraintSpec.json_schema('{"a": NaN}'),
        lambda: ConstraintSpec.json_schema({"a": object()}),
        lambda: lower(ConstraintSpec("choice", '["a", 1]'), Limits()),
        lambda: lower(ConstraintSpec.choice(["\ud800"]), Limits()),
    ],
)
def test_malformed_specs_are_errors(make: Any) -> None:
    with pytest.raises(ConstraintError) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_nesting_up_to_the_limit_is_read() -> None:
    depth = Limits().max_depth
    assert lower(ConstraintSpec.regex("x(y|b" * depth + ")?" * depth), Limits()).grammar
    nested = 'root ::= "r"' + ' "x" ("y" | "b"' * depth + ")?" * depth
    assert lower(ConstraintSpec.ebnf(nested), Limits()).grammar
    chain: Any = {"$defs": {str(i): {"allOf": [{"$ref": f"#/$defs/{i + 1}"}]} for i in range(20)}, "$ref": "#/$defs/0"}
    chain["$defs"]["20"] = {"const": [[[[1]]]]}
    assert check(chain)["/$defs/20/const"] == "enforced"
