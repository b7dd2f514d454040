"""Schemas made to hurt: lowered or refused in bounded time, and guards only where nothing exact is affordable."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sglite.constrained.json_schema.lower import lower_parsed
from sglite.constrained.limits import Limits
from sglite.constrained.spec import ConstraintRefused


def lowered(schema: Any, **options: Any) -> tuple[int, int]:
    """Rules and checks of a schema."""
    grammar, _ = lower_parsed(schema, "fixed", True, Limits(), **options)
    return len(grammar.rules), len(grammar.checks)


def nested(depth: int, keyword: str) -> Any:
    schema: Any = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for i in range(depth):
        schema = {keyword: [schema, {"properties": {f"p{i}": {"type": "string"}}}]}
    return schema


def twofold(depth: int) -> Any:
    """oneOf a thing or an array of it, over and over."""
    defs: dict[str, Any] = {
        f"d{i}": {"oneOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}}]}
        for i in range(depth)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{depth}": {"type": "string"}}}


def inside(depth: int, keyword: str) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(depth):
        schema = {keyword: {"x": schema} if keyword == "properties" else [schema]}
    return schema


PROPERTIES = {f"p{i}": {"type": "string"} for i in range(10_000)}
CASES: dict[str, Any] = {
    "wide": {"properties": PROPERTIES},
    "wide, required": {"properties": PROPERTIES, "required": list(PROPERTIES), "additionalProperties": False},
    "wide, counted": {"properties": PROPERTIES, "minProperties": 5, "maxProperties": 5_000},
    "deep properties": inside(180, "properties"),
    "nested oneOf": nested(40, "oneOf"),
    "nested anyOf": nested(40, "anyOf"),
    "nested allOf": inside(60, "allOf"),
    "twofold": twofold(40),
    "many branches": {"oneOf": [{"required": [f"a{i}"], "properties": {f"a{i}": {}}} for i in range(60)]},
    "many conditions": {
        "allOf": [{"if": {"properties": {"t": {"const": i}}}, "then": {"required": [f"v{i}"]}} for i in range(60)]
    },
    "many dependencies": {"dependentRequired": {f"a{i}": [f"b{i}"] for i in range(30)}},
    "many patterns": {"patternProperties": {f"^a.*{c}": {"minimum": i} for i, c in enumerate("bcdefghijk")}},
    "large counts": {"maxLength": 10**9, "maxItems": 10**9, "maxProperties": 10**9},
    "many contained": {"contains": {"type": "null"}, "minContains": 10**6, "maxContains": 10**7},
    "large enum": {"not": {"enum": [{"a": i, "b": [i]} for i in range(300)]}},
    "NUL": {"properties": {"a\0": {"pattern": "a\0b"}}},
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_lowered_in_bounded_time(name: str) -> None:
    started = time.process_time()
    rules, _ = lowered(CASES[name])
    assert rules and time.process_time() - started < 5


def test_what_grows_without_end_is_refused() -> None:
    doubled: Any = {"type": "integer"}
    for i in range(14):
        doubled = {"anyOf": [doubled, {"properties": {f"p{i}": doubled}}]}
    with pytest.raises(ConstraintRefused, match="too large"):
        lower_parsed(doubled, "fixed", True, Limits(max_places=2_000))
    with pytest.raises(ConstraintRefused, match="nested deeper"):
        lowered(inside(500, "properties"))
    with pytest.raises(ConstraintRefused, match="nested too deeply"):
        lowered(inside(150, "allOf"))


EXACT: dict[str, Any] = {
    "tagged": {
        "oneOf": [{"properties": {"t": {"const": f"t{i}"}}, "required": ["t"], "type": "object"} for i in range(200)]
    },
    "conditions": {
        "properties": {"t": {"enum": [f"t{i}" for i in range(20)]}},
        "allOf": [
            {"if": {"properties": {"t": {"const": f"t{i}"}}, "required": ["t"]}, "then": {"required": [f"v{i}"]}}
            for i in range(20)
        ],
    },
    "not": {"not": {"properties": {"a": {"not": {"items": {"const": [1]}}}}, "required": ["b"]}},
    "unevaluated": {"anyOf": [{"properties": {c: {}}} for c in "abcd"], "unevaluatedProperties": False},
    "dynamic": {"$dynamicAnchor": "n", "properties": {"c": {"items": {"$dynamicRef": "#n"}}}},
}


@pytest.mark.parametrize("name", EXACT)
def test_what_a_grammar_can_say_is_not_guarded(name: str) -> None:
    assert lowered(EXACT[name])[1] == 0


def test_any_order_ends_at_1024_properties() -> None:
    def wide(count: int) -> Any:
        return {"properties": {"o": {"properties": {f"p{i}": {} for i in range(count)}}}}

    assert lowered(wide(1024), order="any")
    with pytest.raises(ConstraintRefused, match="order 'schema'") as caught:
        lowered(wide(1025), order="any")
    assert caught.value.pointer == "/properties/o/properties"
