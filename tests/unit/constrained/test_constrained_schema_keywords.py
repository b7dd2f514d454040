"""Every keyword through the whole path: which JSON texts are taken to their end, and which are not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from constrained_walks import small_vocabulary

from sglite.constrained.engines.native import NativeEngine
from sglite.constrained.limits import Limits
from sglite.constrained.lower import lower
from sglite.constrained.spec import ConstraintSpec

VOCAB = small_vocabulary()  # its first 256 ids are the bytes
DRAFT7 = "http://json-schema.org/draft-07/schema#"
DRAFT4 = "http://json-schema.org/draft-04/schema#"
DRAFT2019 = "https://json-schema.org/draft/2019-09/schema"


@pytest.fixture(scope="module")
def engine() -> NativeEngine:
    return NativeEngine(VOCAB)


def takes(engine: NativeEngine, schema: Any, value: Any, **options: Any) -> bool:
    grammar = lower(ConstraintSpec.json_schema(schema, **options), Limits()).grammar
    matcher = engine.compile(grammar).raw_matcher()
    text = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
    return all(matcher.accept(byte) for byte in text) and matcher.accepting


LINKED = {"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}
TREE = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "http://x/strict",
    "$dynamicAnchor": "node",
    "$ref": "tree",
    "unevaluatedProperties": False,
    "$defs": {
        "tree": {
            "$id": "http://x/tree",
            "$dynamicAnchor": "node",
            "type": "object",
            "properties": {"data": True, "children": {"type": "array", "items": {"$dynamicRef": "#node"}}},
        }
    },
}
IF = {
    "if": {"properties": {"k": {"const": "a"}}, "required": ["k"]},
    "then": {"required": ["x"]},
    "else": {"not": {"required": ["x"]}},
}
TAGGED = {"type": "object", "properties": {"k": {"const": "a"}, "v": {"type": "integer"}}, "required": ["k"]}
OTHER = {"type": "object", "properties": {"k": {"const": "b"}, "v": {"type": "string"}}, "required": ["k"]}
EVALUATED = {"allOf": [{"properties": {"a": True}}], "properties": {"b": True}, "unevaluatedProperties": False}
SOME = {"anyOf": [{"properties": {"a": {"type": "string"}}}, {"properties": {"b": {"type": "string"}}}]}

# name: schema, values that are valid, values that are not
TABLE: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "nothing said": ({}, [None, 1.5, "x", [1, {"a": [True]}], {"é": {}}], []),
    "keywords of one type leave the others": ({"minLength": 2}, ["ab", 1, None, {}], ["a"]),
    "several types": ({"type": ["integer", "null"]}, [1, None], [1.5, "x"]),
    "names are unique": ({}, [b'{"a": 1, "b": 1}'], [b'{"a": 1, "a": 2}', b'{"a": 1, "\\u0061": 2}']),
    "enum of any value": ({"enum": [1, "a", None, [1], {"k": 1}]}, [1, "a", None, [1], {"k": 1}], [2, "b", [], {}]),
    "enum beside keywords": ({"enum": [1, 2, [1], [1, 2]], "minItems": 2, "maximum": 1}, [1, [1, 2]], [2, [1]]),
    "const beside properties": ({"const": {"a": 1}, "properties": {"a": {"type": "integer"}}}, [{"a": 1}], [{}]),
    "not of a constant": ({"not": {"const": {"a": [1]}}}, [{}, {"a": [2]}, {"a": [1], "b": 1}, 1], [{"a": [1]}]),
    "open object": ({"properties": {"a": {"type": "string"}}}, [{}, {"a": "x"}, {"a": "x", "q": 1}], [{"a": 1}]),
    "undeclared names are not declared ones": ({"properties": {"a": False}}, [{"b": 1}], [{"a": 1}]),
    "closed object": ({"properties": {"a": True}, "additionalProperties": False}, [{}, {"a": 1}], [{"b": 1}]),
    "required, not declared": ({"required": ["a", "b"]}, [{"a": 1, "b": 2, "c": 3}], [{"a": 1}, {"b": 1}]),
    "patterns overlap": (
        {"patternProperties": {"^a": {"type": "integer"}, "b$": {"minimum": 3}}, "additionalProperties": False},
        [{"a": 1}, {"ab": 3}, {"b": "x"}],
        [{"a": "x"}, {"ab": 2}, {"c": 1}],
    ),
    "a declared name fits a pattern": (
        {"properties": {"ab": {"minimum": 3}}, "patternProperties": {"^a": {"type": "integer"}}},
        [{"ab": 3}, {"c": "x"}],
        [{"ab": 2}, {"ab": 3.5}, {"a": "x"}],
    ),
    "propertyNames": (
        {"propertyNames": {"anyOf": [{"maxLength": 1}, {"const": "ab"}]}},
        [{"a": 1}, {"ab": 1}],
        [{"ac": 1}],
    ),
    "propertyNames beside properties": (
        {"properties": {"abc": {}, "d": {}}, "propertyNames": {"maxLength": 2}},
        [{"d": 1}, {"ef": 1}],
        [{"abc": 1}],
    ),
    "few names, each once": (
        {"propertyNames": {"enum": ["a", "b"]}, "minProperties": 2},
        [{"b": 1, "a": 1}, {"a": 1, "b": 2}],
        [{"a": 1}],
    ),
    "counted properties": (
        {"properties": {"a": {}, "b": {}}, "minProperties": 2, "maxProperties": 3},
        [{"a": 1, "b": 1}, {"b": 1, "c": 1}, {"c": 1, "d": 1, "e": 1}],
        [{"a": 1}, {"a": 1, "b": 1, "c": 1, "d": 1}],
    ),
    "dependentRequired": ({"dependentRequired": {"b": ["a"]}}, [{"a": 1, "b": 1}, {"a": 1}, {}], [{"b": 1}]),
    "dependentSchemas": (
        {"dependentSchemas": {"b": {"maxProperties": 1}}},
        [{"b": 1}, {"a": 1, "c": 1}],
        [{"b": 1, "c": 1}],
    ),
    "dependencies": (
        {"dependencies": {"b": ["a"], "c": {"required": ["d"]}}},
        [{"a": 1, "b": 1}],
        [{"b": 1}, {"c": 1}],
    ),
    "some property is not": (
        {"not": {"additionalProperties": {"type": "integer"}}},
        [{"a": "x"}, {"a": 1, "b": "x"}],
        [{}, {"a": 1}],
    ),
    "unevaluatedProperties": (EVALUATED, [{"a": 1, "b": 1}, {}], [{"c": 1}]),
    "unevaluatedProperties and anyOf": (
        {**SOME, "unevaluatedProperties": False},
        [{"a": "x"}, {"b": "x"}, {"a": "x", "b": "x"}],
        [{"a": 1}, {"c": 1}],
    ),
    "items": ({"items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, [[1], [1, 2]], [[], ["a"], [1, 2, 3]]),
    "prefixItems": ({"prefixItems": [{"type": "integer"}], "items": False}, [[], [1]], [["a"], [1, 2]]),
    "items as an array": (
        {"$schema": DRAFT7, "items": [{"type": "integer"}], "additionalItems": {"type": "null"}},
        [[1, None]],
        [[1, 1]],
    ),
    "contains": ({"contains": {"type": "integer"}}, [["a", 1]], [["a"], []]),
    "contains, counted": (
        {"contains": {"const": 1}, "minContains": 2, "maxContains": 3, "maxItems": 4},
        [[1, 1], [1, 2, 1], [2, 1, 1, 1]],
        [[1], [1, 1, 1, 1], [1, 1, 2, 2, 2]],
    ),
    "not contains": ({"not": {"contains": {"type": "null"}}}, [[], [1]], [[1, None], 1]),
    "not items": ({"not": {"items": {"type": "null"}}}, [[1], [None, 1]], [[], [None]]),
    "uniqueItems of few": ({"items": {"enum": [1, 2, 3]}, "uniqueItems": True}, [[2, 1], [3, 1, 2]], [[1, 1], [4]]),
    "uniqueItems of many": (
        {"uniqueItems": True},
        [[1, "1", [1], {"a": 1, "b": 2}]],
        [[1, 1.0], [[1], [1]], [{"a": 1, "b": 2}, {"b": 2, "a": 1}]],
    ),
    "uniqueItems, negated": ({"not": {"uniqueItems": True}}, [[1, 1]], [[1, 2], []]),
    "unevaluatedItems": (
        {"allOf": [{"prefixItems": [True]}], "unevaluatedItems": {"type": "null"}},
        [[1], [1, None]],
        [[1, 1]],
    ),
    "unevaluatedItems and contains": ({"contains": {"type": "string"}, "unevaluatedItems": False}, [["a"]], [["a", 1]]),
    "in 2019-09 contains evaluates nothing": (
        {"$schema": DRAFT2019, "contains": {"type": "string"}, "unevaluatedItems": {"type": "string"}},
        [["a"]],
        [["a", 1]],
    ),
    "allOf": ({"allOf": [{"minimum": 2}, {"multipleOf": 3}]}, [3, 6, "x"], [1, 4, 0]),
    "anyOf with siblings": ({"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": 1}]}, [1, 5], [3, 5.5]),
    "oneOf, told apart": (
        {"oneOf": [TAGGED, OTHER]},
        [{"k": "a", "v": 1}, {"k": "b"}],
        [{"k": "a", "v": "x"}, {"k": "c"}],
    ),
    "oneOf, overlapping": ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, [1, 2.5, "x"], [3, 1.5]),
    "oneOf of required": (
        {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1}],
        [{}, {"a": 1, "b": 1}],
    ),
    "not": ({"not": {"type": ["string", "null"]}}, [1, {}, []], ["", None]),
    "not of properties": (
        {"not": {"properties": {"a": {"type": "integer"}}}},
        [{"a": "x"}],
        [{}, {"a": 1}, {"b": 1}, 1],
    ),
    "not of a reference that recurs": (
        {"not": {"$ref": "#/$defs/n"}, "$defs": LINKED["$defs"]},
        [1, {"next": 1}, {"next": {"next": 1}}],
        [{}, {"next": {}}, {"next": {"next": {}}}],
    ),
    "if, then, else": (IF, [{"k": "a", "x": 1}, {"k": "b"}, {}], [{"k": "a"}, {"k": "b", "x": 1}, {"x": 1}]),
    "references recur": (LINKED, [{}, {"next": {"next": {}}}], [{"next": {"next": 1}}, 1]),
    "$ref and siblings": ({"$defs": {"i": {"type": "integer"}}, "$ref": "#/$defs/i", "minimum": 3}, [3], [2, 3.5]),
    "$ref alone in draft 7": (
        {"$schema": DRAFT7, "$ref": "#/definitions/i", "minimum": 3, "definitions": {"i": {"type": "integer"}}},
        [2],
        ["x"],
    ),
    "$anchor": ({"$defs": {"a": {"$anchor": "foo", "type": "integer"}}, "$ref": "#foo"}, [1], ["a"]),
    "$id, relative": (
        {
            "$id": "http://x/root.json",
            "$defs": {
                "a": {"$id": "dir/a.json", "items": {"$ref": "b.json"}},
                "b": {"$id": "dir/b.json", "type": "null"},
            },
            "$ref": "dir/a.json",
        },
        [[None]],
        [[1]],
    ),
    "$id as URN": (
        {"$id": "urn:x:root", "$ref": "urn:x:i", "$defs": {"i": {"$id": "urn:x:i", "type": "integer"}}},
        [1],
        ["a"],
    ),
    "id in draft 4": (
        {"$schema": DRAFT4, "$ref": "#i", "definitions": {"i": {"id": "#i", "type": "integer"}}},
        [1],
        ["a"],
    ),
    "exclusiveMinimum in draft 4": ({"$schema": DRAFT4, "minimum": 3, "exclusiveMinimum": True}, [4], [3]),
    "$dynamicRef": (TREE, [{"children": [{"data": 1}]}], [{"children": [{"daat": 1}]}, {"x": 1}]),
    "$recursiveRef": (
        {"$schema": DRAFT2019, "$recursiveAnchor": True, "type": "array", "items": {"$recursiveRef": "#"}},
        [[[], [[]]]],
        [[1]],
    ),
    "a metaschema": (
        {"$ref": "https://json-schema.org/draft/2020-12/schema"},
        [{"properties": {"a": {"minLength": 1}}, "type": "object"}, True],
        [{"properties": {"a": {"minLength": -1}}}, 1],
    ),
    "a format nobody knows": ({"format": "unheard-of", "type": "string"}, ["x"], [1]),
    "a pattern and a count too large together": (
        {"type": "string", "pattern": "^(\\S+\\s+){0,300}\\S+$", "maxLength": 900},
        ["a b"],
        ["a" * 901, " a"],
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_keyword(engine: NativeEngine, name: str) -> None:
    schema, valid, invalid = TABLE[name]
    assert [value for value in valid if not takes(engine, schema, value)] == []
    assert [value for value in invalid if takes(engine, schema, value)] == []


ORDERED = {"properties": {"a": {}, "b": {}}, "required": ["b"], "additionalProperties": {"type": "null"}}


def test_properties_come_in_the_order_of_the_schema_unless_any_is_asked_for(engine: NativeEngine) -> None:
    swapped, before = b'{"b": 1, "a": 2}', b'{"x": null, "b": 1}'
    assert takes(engine, ORDERED, b'{"a": 1, "b": 2, "x": null}')
    assert not takes(engine, ORDERED, swapped) and not takes(engine, ORDERED, before)
    for text in (swapped, before, b'{"a": 1, "x": null, "b": 2, "y": null}'):
        assert takes(engine, ORDERED, text, order="any")
    for text in (b'{"a": 1}', b'{"b": 1, "x": 1}', b'{"b": 1, "b": 1}', b'{"x": null, "b": 1, "x": null}'):
        assert not takes(engine, ORDERED, text, order="any")


def test_first_mention_first_through_allof_and_references(engine: NativeEngine) -> None:
    schema = {"allOf": [{"$ref": "#/$defs/z"}], "properties": {"a": {}}, "$defs": {"z": {"properties": {"z": {}}}}}
    assert takes(engine, schema, b'{"z": 1, "a": 1}') and not takes(engine, schema, b'{"a": 1, "z": 1}')


@pytest.mark.parametrize(
    ("whitespace", "text", "taken"),
    [
        ("fixed", b'{"a": [1, 2]}', True),
        ("fixed", b'{"a":[1,2]}', False),
        ("compact", b'{"a":[1,2]}', True),
        ("compact", b'{"a": [1,2]}', False),
        ("flexible", b'{\n  "a": [ 1,2 ]}', True),
        ("flexible", b"{" + b" " * 100, False),
    ],
)
def test_whitespace_is_a_policy(engine: NativeEngine, whitespace: Any, text: bytes, taken: bool) -> None:
    schema = {"properties": {"a": {"items": {"type": "integer"}, "type": "array"}}, "type": "object"}
    assert takes(engine, schema, text, whitespace=whitespace) is taken
