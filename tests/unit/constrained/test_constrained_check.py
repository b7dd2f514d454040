"""The checker: the standard's answer for every keyword, exactly, in context, within bounds."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from sglite.constrained.json_schema.check import Checker
from sglite.constrained.json_values import identity, is_multiple, parse
from sglite.constrained.spec import ConstraintError, ConstraintRefused


def found(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


def check(schema: Any, pointer: str = "", **options: Any) -> Callable[[str], bool]:
    return Checker(schema, patterns=found, **options).check([pointer])


OLD = "http://json-schema.org/draft-07/schema#"
CASES: list[tuple[str, Any, list[str], list[str]]] = [
    ("exact multiples", {"multipleOf": 0.01}, ["0.07", "1e300", "19.99", "-4"], ["0.075", "0.0700001"]),
    (
        "exact bounds",
        {"minimum": 0.1, "exclusiveMaximum": 1},
        ["0.1", "0.99999999999999999999"],
        ["1.0", "0.09999999999999999999"],
    ),
    ("big integers", {"const": 9007199254740993}, ["9007199254740993", "9007199254740993.0"], ["9007199254740992"]),
    ("an integer by value", {"type": "integer"}, ["1", "1.0", "1e3", "-0"], ["1.5", "1e-3", "true"]),
    (
        "an integer of draft 4",
        {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer"},
        ["1"],
        ["1.0"],
    ),
    (
        "equality",
        {"enum": [1, True, {"a": [0], "b": None}]},
        ["1.0", "true", '{"b":null,"a":[0.0]}'],
        ["0", "false", '{"a":[0]}'],
    ),
    (
        "unique items",
        {"uniqueItems": True},
        ["[1, true, 0, false]", '[{"a":1},{"a":2}]'],
        ["[1, 1.0]", '[{"a":1,"b":2},{"b":2,"a":1}]'],
    ),
    ("characters, not units", {"maxLength": 1}, ['"😀"', '"\\ud83d\\ude00"'], ['"ab"']),
    (
        "an array of items",
        {"items": [{"type": "null"}], "additionalItems": False},
        ["[]", "[null]"],
        ["[1]", "[null, null]"],
    ),
    (
        "prefix and rest",
        {"prefixItems": [True, {"const": 1}], "items": {"const": 2}},
        ["[0,1,2,2]", "[0]"],
        ["[0,2]", "[0,1,3]"],
    ),
    ("exclusive as a boolean", {"minimum": 2, "exclusiveMinimum": True}, ["2.1"], ["2"]),
    (
        "dependencies",
        {"dependencies": {"a": ["b"], "c": {"required": ["d"]}}},
        ['{"a":1,"b":1}', "{}"],
        ['{"a":1}', '{"c":1}'],
    ),
    (
        "a reference with siblings",
        {"$defs": {"s": {"type": "string"}}, "$ref": "#/$defs/s", "minLength": 2},
        ['"ab"'],
        ['"a"', "1"],
    ),
    (
        "a reference alone",
        {"$schema": OLD, "definitions": {"s": {"type": "string"}}, "$ref": "#/definitions/s", "minLength": 2},
        ['"a"'],
        ["1"],
    ),
    (
        "contains with counts",
        {"contains": {"const": 1}, "minContains": 2, "maxContains": 3},
        ["[1,1]", "[1,0,1,1]"],
        ["[1]", "[1,1,1,1]"],
    ),
    ("contains none", {"contains": {"const": 1}, "minContains": 0}, ["[]", "[2]"], []),
    (
        "unevaluated through anyOf",
        {
            "anyOf": [{"properties": {"a": True}, "required": ["a"]}, {"properties": {"b": True}}],
            "unevaluatedProperties": False,
        },
        ['{"a":1}', '{"b":1}', '{"a":1,"b":1}'],
        ['{"c":1}', '{"a":1,"c":1}'],
    ),
    (
        "unevaluated after if",
        {"if": {"prefixItems": [{"const": 1}]}, "then": {"prefixItems": [True, True]}, "unevaluatedItems": False},
        ["[1, 2]", "[]"],
        ["[1, 2, 3]", "[2]"],
    ),
    (
        "unevaluated is not seen through not",
        {"not": {"not": {"properties": {"a": True}}}, "unevaluatedProperties": False},
        ["{}"],
        ['{"a":1}'],
    ),
    (
        "a tree by dynamic reference",
        {
            "$id": "https://x/strict",
            "$dynamicAnchor": "node",
            "$ref": "tree",
            "unevaluatedProperties": False,
            "$defs": {
                "tree": {
                    "$id": "https://x/tree",
                    "$dynamicAnchor": "node",
                    "properties": {"kids": {"items": {"$dynamicRef": "#node"}}},
                }
            },
        },
        ['{"kids":[{"kids":[]}]}'],
        ['{"kids":[{"kid":[]}]}'],
    ),
    (
        "relative to the enclosing id",
        {
            "$id": "https://x/a/root",
            "properties": {"p": {"$id": "b/", "$ref": "c"}},
            "$defs": {"c": {"$id": "b/c", "const": 1}, "other": {"$id": "c", "const": 2}},
        },
        ['{"p":1}'],
        ['{"p":2}'],
    ),
    ("an escaped pointer", {"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"const": 1}}}, ["1"], ["2"]),
    (
        "the standard's own schema",
        {"$ref": "https://json-schema.org/draft/2020-12/schema"},
        ['{"minLength": 1}'],
        ['{"minLength": -1}', "1"],
    ),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_keywords_mean_what_the_standard_says(schema: Any, valid: list[str], invalid: list[str]) -> None:
    holds = check(schema)
    assert [text for text in valid if not holds(text)] == []
    assert [text for text in invalid if holds(text)] == []


@pytest.mark.parametrize(
    "text", ["", "{", "1 2", '{"a":1,"a":1}', "NaN", "-Infinity", '"\n"', '"\\ud800"', "01", "'a'", "[" * 10**5]
)
def test_text_that_is_not_one_json_value_is_invalid(text: str) -> None:
    assert not check(True)(text)


def test_a_place_is_asked_in_the_context_of_the_whole_document() -> None:
    schema = {
        "$id": "https://x/root",
        "$defs": {"name": {"$id": "names/", "$defs": {"short": {"maxLength": 2}}, "items": {"$ref": "#/$defs/short"}}},
        "properties": {"a/b": {"allOf": [{"$ref": "names/#/$defs/short"}, {"minLength": 1}]}},
    }
    checker = Checker(schema, patterns=found)
    assert checker.valid(["ab"], "/$defs/name") and not checker.valid(["abc"], "/$defs/name")
    assert checker.valid("a", "/properties/a~1b") and not checker.valid("", "/properties/a~1b/allOf/1")
    both = checker.check(["/properties/a~1b", "/$defs/name/items"])
    assert both('"ab"') and not both('"abc"') and not both('""')


def test_what_must_not_hold_is_asked_with_what_must() -> None:
    checker = Checker({"$defs": {"low": {"maximum": 3}, "loop": {"$ref": "#/$defs/loop"}}})
    outside = checker.check([""], against=["/$defs/low"])
    assert outside("4") and not outside("3") and not outside("a")
    assert not checker.check([], against=["/$defs/loop"])("1")  # no answer is not a no


def test_what_cannot_be_checked_is_refused_with_its_place() -> None:
    with pytest.raises(ConstraintRefused, match=r"/items/\$ref.*outside this document"):
        check({"items": {"$ref": "https://elsewhere/schema"}})
    with pytest.raises(ConstraintError, match=r"/items/\$ref.*nothing is at 'a'"):
        check({"items": {"$ref": "#/$defs/a"}, "$defs": {}})
    with pytest.raises(ConstraintError, match=r"/\$ref: nothing is called 'a'"):
        check({"$ref": "#a"})
    with pytest.raises(ConstraintError, match=r"/properties/a/required: .* got True"):
        check({"properties": {"a": {"required": True}}})
    with pytest.raises(ConstraintRefused, match="/pattern"):
        Checker({"pattern": "(a+)\\1"}).check([""])
    with pytest.raises(ConstraintError, match="/items/pattern"):
        Checker({"items": {"pattern": "("}}).check([""])
    checker = Checker({"type": "nothing"})
    for _ in range(2):  # said again to whoever asks next
        with pytest.raises(ConstraintError, match="/type: a type is one of"):
            checker.check([""])


def test_formats_are_asserted_where_they_are_known() -> None:
    def formats(name: str, text: str) -> bool | None:
        return text.isdigit() if name == "digits" else None

    holds = check({"items": {"format": "digits"}, "contains": {"format": "unheard-of"}}, formats=formats)
    assert holds('["12", 1]') and not holds('["a"]')
    assert check({"format": "email"})('"no"')


def test_bombs_end_quickly_and_are_not_accepted() -> None:
    began = time.process_time()
    assert not check({"$ref": "#"})("1")
    doubled: dict[str, Any] = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    doubled["d40"] = {"type": "integer"}
    assert not check({"$ref": "#/$defs/d0", "$defs": doubled})('"a"')  # 2 ** 40 ways to fail
    nested = check({"items": {"$ref": "#"}})
    assert nested("[" * 60 + "]" * 60)
    assert not nested("[" * 400 + "]" * 400)
    assert not check({"minLength": 1})('"' + "a" * 2_000_000 + '"')
    assert not check({"multipleOf": 3})("1" * 5000)
    assert check({"multipleOf": 7})("7e999999999") and not check({"multipleOf": 1e-9})("1e-999999999")
    assert time.process_time() - began < 3


def test_a_pattern_that_explodes_elsewhere_is_searched_in_linear_time() -> None:
    began = time.process_time()
    assert not Checker({"pattern": "^(a+)+$"}).check([""])('"' + "a" * 2000 + 'b"')
    assert time.process_time() - began < 2


def test_a_pattern_that_dialects_read_differently_is_no_proof_of_anything() -> None:
    for schema in ({"pattern": "^\\w$"}, {"not": {"pattern": "^\\w$"}}):
        assert not Checker(schema).check([""])('"é"')
    assert Checker({"pattern": "^\\w$"}).check([""])('"a"') and Checker({"not": {"pattern": "^\\w$"}}).check([""])(
        '"-"'
    )


def test_answers_do_not_depend_on_threads_or_on_what_was_asked_before() -> None:
    schema = {
        "properties": {"a": {"$ref": "#/$defs/x"}},
        "$defs": {"x": {"minimum": 3}},
        "unevaluatedProperties": False,
    }
    texts = [json.dumps({"a": i}) for i in range(6)] + ['{"b": 1}']
    expected = [check(schema)(text) for text in texts]
    shared, results = Checker(schema, patterns=found), []

    def ask() -> None:
        results.append([shared.check([""])(text) for text in texts for _ in range(50)][::50])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_values_are_read_and_compared_exactly() -> None:
    assert parse("1.10") == Decimal("1.1") and parse("[1e2, -0]") == [100, 0]
    assert identity(parse('[1, {"a": 2.0}]')) == identity(parse('[1.0, {"a": 2}]'))
    assert identity(True) != identity(1) and identity("1") != identity(1) and identity([]) != identity({})
    assert is_multiple(Decimal("1e-400"), Decimal("1e-401")) and not is_multiple(Decimal("1e-401"), Decimal("1e-400"))
