"""explain: the report in words."""

from __future__ import annotations

import doctest

import sglite
from sglite.constrained import explain as module
from sglite.constrained.explain import explain
from sglite.constrained.spec import ConstraintSpec

BROKEN = {
    "type": "object",
    "properties": {"a": {"$ref": "https://example.com/a.json"}, "b": {"type": "string", "pattern": r"(.)\1"}},
}


def test_the_example_in_the_docstring_is_what_comes_out() -> None:
    found = doctest.testmod(module)
    assert (found.failed, found.attempted) == (0, 1)


def test_every_refusal_is_told_with_its_pointer_and_reason() -> None:
    text = explain(BROKEN)
    lines = text.splitlines()
    assert lines[0] == "json_schema: refused"
    refused = [line.split()[1] for line in lines if line.startswith("  refused")]
    assert refused == ["/properties/a/$ref:", "/properties/b/pattern:"]
    assert "  enforced    /type" in lines


def test_without_strict_they_are_unenforced() -> None:
    lines = explain(BROKEN, strict=False).splitlines()
    assert lines[0] == "json_schema: accepted"
    found = [line.split()[1] for line in lines if line.startswith("  unenforced")]
    assert found == ["/properties/a/$ref:", "/properties/b/pattern:"]


def test_other_kinds_and_policies() -> None:
    assert explain(ConstraintSpec.regex("a+")) == "regex: accepted"
    assert explain(ConstraintSpec.regex(r"(.+)\1")).startswith("regex: refused\n  refused     (the whole): regex")
    spec = ConstraintSpec.json_schema({}, whitespace="compact", order="any")
    assert explain(spec).splitlines()[1:] == [
        'white space: compact (none, "," and ":")',
        "properties:  in any order",
    ]
    assert sglite.explain is explain


def test_a_long_report_is_cut() -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(1500)}}
    lines = explain(schema).splitlines()
    assert len(lines) < 1010 and any("more keywords" in line for line in lines)
