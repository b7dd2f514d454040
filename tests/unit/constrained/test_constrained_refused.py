"""What is not enforced is refused, with its pointer and a reason; what is broken is told with its place."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from sglite.constrained.limits import Limits
from sglite.constrained.lower import lower
from sglite.constrained.report import KeywordReport
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec


def check(schema: Any, strict: bool = True) -> KeywordReport:
    return lower(ConstraintSpec.json_schema(schema, strict=strict), Limits()).report


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
    "spec",
    [
        ConstraintSpec.regex("[^\\s\\S]"),
        ConstraintSpec.regex("a^b"),
        ConstraintSpec.ebnf('root ::= "a" root'),
        ConstraintSpec.ebnf("root ::= []"),
        ConstraintSpec.structural_tag({"format": {"type": "regex", "pattern": "[^\\s\\S]"}}),
    ],
)
def test_what_no_text_can_satisfy_is_refused(spec: ConstraintSpec) -> None:
    with pytest.raises(ConstraintRefused, match="matches nothing"):
        lower(spec, Limits())


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
        ConstraintSpec(kind, "{}", whitespace, strict, order).key()
        for kind in ("json_schema", "regex")
        for whitespace in ("fixed", "compact")
        for strict in (True, False)
        for order in ("schema", "any")
    }
    assert len(keys) == 16


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConstraintSpec("yaml", ""),  # type: ignore[arg-type]
        lambda: ConstraintSpec("regex", "", "loose"),  # type: ignore[arg-type]
        lambda: ConstraintSpec.json_schema({}, order="random"),  # type: ignore[arg-type]
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
