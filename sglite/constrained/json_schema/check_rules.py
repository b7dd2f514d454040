"""What each keyword says of a value: the standard's assertions, one small function each.

A rule is made once for a keyword of a place and then asked for many values. It answers False as soon as the value is
wrong. Where the place tracks what was evaluated (`unevaluated*` needs it), it notes that in `seen`, the names of an
object's members or the indices of an array's items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from sglite.constrained.json_values import identity, is_multiple, is_whole
from sglite.constrained.spec import ConstraintError

Seen: TypeAlias = "set[str | int]"


class Asking(Protocol):
    """One value being checked: asks other places, in the same dynamic scope."""

    def holds(self, place: Place, value: Any, seen: Seen | None) -> bool: ...

    def holds_at(self, name: str, place: Place, value: Any, seen: Seen | None) -> bool:
        """The same for the place that `name`, a dynamic anchor, has here, or for `place` ("" is `#` recursively)."""


Rule: TypeAlias = Callable[[Asking, Any, "Seen | None"], bool]


class Place:
    """A subschema ready to be asked. `rules` is None until it is made."""

    __slots__ = ("pointer", "resource", "rules", "schema", "tracks")

    def __init__(self, schema: Any, pointer: str, resource: Any) -> None:
        self.schema = schema
        self.pointer = pointer
        self.resource = resource
        self.rules: list[Rule] | None = None
        self.tracks = isinstance(schema, dict) and ("unevaluatedItems" in schema or "unevaluatedProperties" in schema)


class Making(Protocol):
    """What a rule is made from: the place, and its door to other places, patterns and formats."""

    schema: Mapping[str, Any]
    contains_counts: bool
    whole_by_spelling: bool

    def sub(self, *steps: str | int) -> Place: ...

    def target(self, keyword: str) -> tuple[Place, str | None]: ...

    def pattern(self, keyword: str, pattern: Any) -> Callable[[str], bool]: ...

    def format(self, name: str) -> Callable[[str], bool | None]: ...

    def broken(self, keyword: str, what: str) -> ConstraintError: ...


Maker: TypeAlias = Callable[[Making, Any], "Rule | None"]


def is_number(value: Any) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


_TYPES: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "null": lambda value: value is None,
        "boolean": lambda value: isinstance(value, bool),
        "integer": lambda value: is_number(value) and is_whole(value),
        "number": is_number,
        "string": lambda value: isinstance(value, str),
        "array": lambda value: isinstance(value, list),
        "object": lambda value: isinstance(value, dict),
    }
)


def _spelled_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _type(make: Making, names: Any) -> Rule:
    listed = names if isinstance(names, list) else [names]
    if not listed or not all(isinstance(name, str) and name in _TYPES for name in listed):
        raise make.broken("type", f"a type is one of {', '.join(_TYPES)}")
    tests = [_spelled_whole if name == "integer" and make.whole_by_spelling else _TYPES[name] for name in listed]
    return lambda asking, value, seen: any(test(value) for test in tests)


def _enum(make: Making, values: Any) -> Rule:
    if not isinstance(values, list):
        raise make.broken("enum", "expected an array")
    known = frozenset(identity(value) for value in values)
    return lambda asking, value, seen: identity(value) in known


def _const(make: Making, constant: Any) -> Rule:
    known = identity(constant)
    return lambda asking, value, seen: identity(value) == known


# numbers


def _compared(keyword: str, holds: Callable[[Any, Any], bool]) -> Maker:
    def maker(make: Making, limit: Any) -> Rule | None:
        if isinstance(limit, bool) and keyword.startswith("exclusive"):
            return None  # draft 4: it belongs to minimum or maximum
        limit = _number(make, keyword, limit)
        other = "exclusive" + keyword[:1].upper() + keyword[1:]
        strict = make.schema.get(other) is True
        return lambda asking, value, seen: (
            not is_number(value) or (holds(value, limit) and not (strict and value == limit))
        )

    return maker


def _number(make: Making, keyword: str, value: Any) -> int | Decimal:
    if not is_number(value):
        raise make.broken(keyword, "expected a number")
    return value  # type: ignore[no-any-return]


def _multiple_of(make: Making, divisor: Any) -> Rule:
    divisor = _number(make, "multipleOf", divisor)
    if not divisor > 0 or divisor == Decimal("Infinity"):
        raise make.broken("multipleOf", "expected a number above 0")
    return lambda asking, value, seen: not is_number(value) or is_multiple(value, divisor)


# counts


def count(make: Making, keyword: str, value: Any) -> int:
    if not is_number(value) or not is_whole(value) or value < 0:
        raise make.broken(keyword, "a count is a whole number, 0 or more")
    return int(value)


def _counted(keyword: str, kind: type[str] | type[list[Any]] | type[dict[str, Any]], low: bool) -> Maker:
    def maker(make: Making, limit: Any) -> Rule:
        number = count(make, keyword, limit)

        def rule(asking: Asking, value: Any, seen: Seen | None) -> bool:
            if not isinstance(value, kind):
                return True
            return len(value) >= number if low else len(value) <= number

        return rule

    return maker


# strings


def _pattern(make: Making, pattern: Any) -> Rule:
    found = make.pattern("pattern", pattern)
    return lambda asking, value, seen: not isinstance(value, str) or found(value)


def _format(make: Making, name: Any) -> Rule:
    if not isinstance(name, str):
        raise make.broken("format", "expected a string")
    contains = make.format(name)
    return lambda asking, value, seen: not isinstance(value, str) or contains(value) is not False


# references and combinations


def _ref(make: Making, reference: Any) -> Rule:
    place, _ = make.target("$ref")
    return lambda asking, value, seen: asking.holds(place, value, seen)


def _dynamic_ref(make: Making, reference: Any) -> Rule:
    place, name = make.target("$dynamicRef")
    if name is None:
        return lambda asking, value, seen: asking.holds(place, value, seen)
    return lambda asking, value, seen: asking.holds_at(name, place, value, seen)


def _recursive_ref(make: Making, reference: Any) -> Rule:
    place, _ = make.target("$recursiveRef")
    return lambda asking, value, seen: asking.holds_at("", place, value, seen)


def members(make: Making, keyword: str, value: Any) -> list[Place]:
    if not isinstance(value, list) or not value:
        raise make.broken(keyword, "expected an array of at least one schema")
    return [make.sub(keyword, i) for i in range(len(value))]


def _all_of(make: Making, value: Any) -> Rule:
    places = members(make, "allOf", value)
    return lambda asking, value, seen: all(asking.holds(place, value, seen) for place in places)


def _any_of(make: Making, value: Any) -> Rule:
    places = members(make, "anyOf", value)

    def rule(asking: Asking, value: Any, seen: Seen | None) -> bool:
        if seen is None:
            return any(asking.holds(place, value, None) for place in places)
        return sum(asking.holds(place, value, seen) for place in places) > 0  # all asked: each may add to `seen`

    return rule


def _one_of(make: Making, value: Any) -> Rule:
    places = members(make, "oneOf", value)

    def rule(asking: Asking, value: Any, seen: Seen | None) -> bool:
        matched = 0
        for place in places:
            matched += asking.holds(place, value, seen)
            if matched > 1:
                return False
        return matched == 1

    return rule


def _not(make: Making, value: Any) -> Rule:
    place = make.sub("not")
    return lambda asking, value, seen: not asking.holds(place, value, None)


def _if(make: Making, value: Any) -> Rule:
    test = make.sub("if")
    then = make.sub("then") if "then" in make.schema else None
    other = make.sub("else") if "else" in make.schema else None

    def rule(asking: Asking, value: Any, seen: Seen | None) -> bool:
        branch = then if asking.holds(test, value, seen) else other
        return branch is None or asking.holds(branch, value, seen)

    return rule


SCALAR_AND_APPLIED: Mapping[str, Maker] = MappingProxyType(
    {
        "type": _type,
        "enum": _enum,
        "const": _const,
        "minimum": _compared("minimum", lambda value, limit: value >= limit),
        "maximum": _compared("maximum", lambda value, limit: value <= limit),
        "exclusiveMinimum": _compared("exclusiveMinimum", lambda value, limit: value > limit),
        "exclusiveMaximum": _compared("exclusiveMaximum", lambda value, limit: value < limit),
        "multipleOf": _multiple_of,
        "minLength": _counted("minLength", str, True),
        "maxLength": _counted("maxLength", str, False),
        "minItems": _counted("minItems", list, True),
        "maxItems": _counted("maxItems", list, False),
        "minProperties": _counted("minProperties", dict, True),
        "maxProperties": _counted("maxProperties", dict, False),
        "pattern": _pattern,
        "format": _format,
        "$ref": _ref,
        "$dynamicRef": _dynamic_ref,
        "$recursiveRef": _recursive_ref,
        "allOf": _all_of,
        "anyOf": _any_of,
        "oneOf": _one_of,
        "not": _not,
        "if": _if,
    }
)
