"""What the front end says of a schema: a verdict on every keyword, refusals with their place, errors with theirs."""

from __future__ import annotations

from typing import Any

import pytest

from sglite.constrained.limits import Limits
from sglite.constrained.lower import lower
from sglite.constrained.report import KeywordReport
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec


def check(schema: Any, strict: bool = True, **options: Any) -> KeywordReport:
    return lower(ConstraintSpec.json_schema(schema, strict=strict, **options), Limits()).report


def test_the_report_tells_enforced_from_annotation() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "t",
        "type": "object",
        "properties": {
            "a/b": {"type": "string", "description": "d", "maxLength": 3, "x-ui": 1, "format": "unheard-of"},
            "c": {"not": {"const": 1}, "then": {}, "minContains": 2, "format": "date"},
        },
        "$defs": {},
    }
    report = check(schema)
    assert sorted(report.with_verdict("enforced")) == [
        "/properties",
        "/properties/a~1b/maxLength",
        "/properties/a~1b/type",
        "/properties/c/format",
        "/properties/c/not",
        "/properties/c/not/const",
        "/type",
    ]
    annotations = {"/$schema", "/title", "/$defs", "/properties/a~1b/description", "/properties/a~1b/x-ui"}
    annotations |= {"/properties/a~1b/format", "/properties/c/then", "/properties/c/minContains"}
    assert set(report.with_verdict("annotation")) == annotations


def test_siblings_that_a_draft_hides_are_annotations() -> None:
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/a", "minimum": 1}
    report = check({**schema, "definitions": {"a": {"type": "integer"}}})
    assert report["/minimum"] == "annotation" and report["/$ref"] == "enforced"


REFUSED: list[tuple[Any, str]] = [
    ({"$ref": "https://example.com/other.json"}, "/$ref"),
    ({"properties": {"a": {"$ref": "other.json#/a"}}}, "/properties/a/$ref"),
    ({"type": "string", "pattern": "(a*)\\1"}, "/pattern"),
    ({"patternProperties": {"(a*)\\1": {}}}, "/patternProperties/(a*)\\1"),
    ({"type": "object", "required": True}, "/required"),
    ({"type": "array", "items": {"$ref": "other.json#/x"}}, "/items/$ref"),
    ({"type": "string", "pattern": "(.+)-\\1"}, "/pattern"),
]


@pytest.mark.parametrize(("schema", "pointer"), REFUSED, ids=lambda v: str(v)[:50])
def test_what_is_not_enforced_is_refused_with_its_pointer(schema: Any, pointer: str) -> None:
    with pytest.raises(ConstraintRefused) as caught:
        check(schema)
    assert caught.value.pointer == pointer
    *_, above, last = pointer.split("/")
    assert caught.value.keyword == (above if above == "patternProperties" else last)
    assert caught.value.reason and str(caught.value).startswith(f"{pointer}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(("schema", "pointer"), REFUSED, ids=lambda v: str(v)[:50])
def test_without_strict_it_is_left_out_and_reported(schema: Any, pointer: str) -> None:
    report = check(schema, strict=False)
    assert report[pointer] == "unenforced" and report.reasons[pointer]


def test_what_is_left_out_is_not_checked_either() -> None:
    schema = {"not": {"uniqueItems": True}, "items": {"$ref": "x.json"}}
    lowered = lower(ConstraintSpec.json_schema(schema, strict=False), Limits())
    assert lowered.report["/items/$ref"] == "unenforced"
    assert [asked("[1, 1]") for asked in lowered.grammar.checks] == [True]
    assert [asked("[1, 2]") for asked in lowered.grammar.checks] == [False]


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
    ({"uniqueItems": 1}, "/uniqueItems: "),
    ({"dependentRequired": {"a": [1]}}, "/dependentRequired: "),
    ({"anyOf": []}, "/anyOf: "),
    ({"allOf": {}}, "/allOf: "),
    ({"enum": 1}, "/enum: "),
    ({"$ref": "#/nowhere"}, "/[$]ref: .*nothing is at 'nowhere'"),
    ({"$ref": "#name"}, "/[$]ref: nothing is called 'name'"),
    ({"$ref": 1}, "/[$]ref: a reference is a string"),
    ({"$ref": "#"}, "/[$]ref: the reference leads back to itself"),
    ({"anyOf": [{"type": "null"}, {"allOf": [{"$ref": "#"}]}]}, "/anyOf/1/allOf/0/[$]ref: the reference leads back"),
    ({"type": "array", "items": 3}, "/items: a schema is"),
    ({"not": []}, "/not: a schema is"),
    ({"enum": ["\ud800"]}, "/enum: .*surrogate"),
    ({"const": {"a": ["\ud800"]}}, "/const: .*surrogate"),
    ({"type": "object", "properties": {"\ud800": {}}}, "/properties: .*surrogate"),
]


@pytest.mark.parametrize(("schema", "message"), BROKEN, ids=lambda v: str(v)[:50])
def test_a_broken_schema_is_told_with_its_place(schema: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=message) as caught:
        check(schema)
    assert "\n" not in str(caught.value)


EMPTY: list[Any] = [
    False,
    {"type": "integer", "minimum": 3, "maximum": 2},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4},
    {"type": "number", "exclusiveMinimum": 1, "maximum": 1},
    {"type": "string", "minLength": 3, "maxLength": 2},
    {"type": "string", "pattern": "^abc$", "maxLength": 2},
    {"type": "string", "pattern": "^a", "not": {"pattern": "^a"}},
    {"type": "array", "minItems": 2, "maxItems": 1},
    {"type": "array", "items": False, "minItems": 1},
    {"type": "array", "contains": False},
    {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "minItems": 3},
    {"type": "object", "properties": {"a": False}, "required": ["a"]},
    {"type": "object", "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"a": {}}, "minProperties": 2, "additionalProperties": False},
    {"type": "object", "propertyNames": {"maxLength": 1}, "required": ["ab"]},
    {"allOf": [{"type": "string"}, {"type": "null"}]},
    {"enum": [1, 2], "type": "string"},
    {"oneOf": [{}, {}]},
    {"not": {}},
    {
        "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}},
        "$ref": "#/$defs/n",
    },
    {"type": "string", "pattern": "(?=a)b"},
]


@pytest.mark.parametrize("schema", EMPTY, ids=lambda s: str(s)[:60])
def test_an_empty_language_is_refused(schema: Any) -> None:
    with pytest.raises(ConstraintRefused, match="matches nothing"):
        check(schema)
