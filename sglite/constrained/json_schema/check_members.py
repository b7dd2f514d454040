"""The rules for what is inside a value: members of objects, items of arrays, and `unevaluated*`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sglite.constrained.json_schema.check_rules import Asking, Maker, Making, Place, Rule, Seen, count
from sglite.constrained.json_values import identity


def _schemas(make: Making, keyword: str, value: Any) -> dict[str, Place]:
    if not isinstance(value, dict):
        raise make.broken(keyword, "expected an object of schemas")
    return {name: make.sub(keyword, name) for name in value}


def _names(make: Making, keyword: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise make.broken(keyword, "expected an array of names")
    return value


def _each(asking: Asking, place: Place, value: Any, keys: Any, seen: Seen | None) -> bool:
    """Whether value[key] holds for every key; then those are evaluated."""
    keys = list(keys)
    if not all(asking.holds(place, value[key], None) for key in keys):
        return False
    if seen is not None:
        seen.update(keys)
    return True


# objects


def _properties(make: Making, value: Any) -> Rule:
    places = _schemas(make, "properties", value)

    def rule(asking: Asking, value: Any, seen: Seen | None) -> bool:
        if not isinstance(value, dict):
            return True
        return all(_each(asking, place, value, [name], seen) for name, place in places.items() if name in value)

    return rule


def _pattern_properties(make: Making, value: Any) -> Rule:
    places = _schemas(make, "patternProperties", value)
    tests = [(make.pattern("patternProperties", pattern), place) for pattern, place in places.items()]

    def rule(asking: Asking, value: Any, seen: Seen | None) -> bool:
        if not isinstance(value, dict):
            return True
        return all(_each(asking, place, value, filter(found, value), seen) for found, place in tests)

    return rule


def _additional_properties(make: Making, value: Any) -> Rule:
    place = make.sub("additionalProperties")
    declared = make.schema.get("properties")
    known = frozenset(declared) if isinstance(declared, dict) else frozenset()
    patterns = make.schema.get("patternProperties")
    tests = [make.pattern("patternProperties", p) for p in patterns] if isinstance(patterns, dict) else []

    def rule(asking: Asking, value: Any, seen: Seen | None) -> bool:
        if not isinstance(value, dict):
            return True
        others = [name for name in value if name not in known and not any(found(name) for found in tests)]
        return _each(asking, place, value, others, seen)

    return rule


def _property_names(make: Making, value: Any) -> Rule:
    place = make.sub("propertyNames")
    return lambda asking, value, seen: (
        not isinstance(value, dict) or all(asking.holds(place, name, None) for name in value)
    )


def _required(make: Making, value: Any) -> Rule:
    names = _names(make, "required", value)
    return lambda asking, value, seen: not isinstance(value, dict) or all(name in value for name in names)


def _dependent_required(make: Making, value: Any) -> Rule:
    if not isinstance(value, dict):
        raise make.broken("dependentRequired", "expected an object")
    needs = {name: _names(make, "dependentRequired", names) for name, names in value.items()}
    return lambda asking, value, seen: not isinstance(value, dict) or _has_needed(value, needs)


def _has_needed(value: dict[str, Any], needs: Mapping[str, list[str]]) -> bool:
    return all(other in value for name, others in needs.items() if name in value for other in others)


def _dependent_schemas(make: Making, value: Any) -> Rule:
    return _applied_by_name(_schemas(make, "dependentSchemas", value))


def _applied_by_name(places: Mapping[str, Place]) -> Rule:
    return lambda asking, value, seen: (
        not isinstance(value, dict)
        or all(asking.holds(place, value, seen) for name, place in places.items() if name in value)
    )


def _dependencies(make: Making, value: Any) -> Rule:
    if not isinstance(value, dict):
        raise make.broken("dependencies", "expected an object")
    lists = {
        name: [needed] if isinstance(needed, str) else needed
        for name, needed in value.items()
        if isinstance(needed, list | str)
    }
    needs = {name: _names(make, "dependencies", names) for name, names in lists.items()}
    applied = _applied_by_name({name: make.sub("dependencies", name) for name in value if name not in needs})
    return lambda asking, value, seen: (
        not isinstance(value, dict) or (_has_needed(value, needs) and applied(asking, value, seen))
    )


def _unevaluated_properties(make: Making, value: Any) -> Rule:
    place = make.sub("unevaluatedProperties")

    def rule(asking: Asking, value: Any, seen: Seen | None) -> bool:
        if not isinstance(value, dict):
            return True
        return _each(asking, place, value, [name for name in value if name not in (seen or ())], seen)

    return rule


# arrays


def _places(make: Making, keyword: str, value: Any) -> list[Place]:
    if not isinstance(value, list):
        raise make.broken(keyword, "expected an array of schemas")
    return [make.sub(keyword, i) for i in range(len(value))]


def _from(make: Making, place: Place, start: int) -> Rule:
    return lambda asking, value, seen: (
        not isinstance(value, list) or _each(asking, place, value, range(start, len(value)), seen)
    )


def _prefix(places: list[Place]) -> Rule:
    return lambda asking, value, seen: (
        not isinstance(value, list)
        or all(_each(asking, place, value, [i], seen) for i, place in enumerate(places[: len(value)]))
    )


def _prefix_items(make: Making, value: Any) -> Rule:
    return _prefix(_places(make, "prefixItems", value))


def _items(make: Making, value: Any) -> Rule:
    if isinstance(value, list):  # up to draft 2019-09
        return _prefix(_places(make, "items", value))
    before = make.schema.get("prefixItems")
    return _from(make, make.sub("items"), len(before) if isinstance(before, list) else 0)


def _additional_items(make: Making, value: Any) -> Rule | None:
    before = make.schema.get("items")
    return _from(make, make.sub("additionalItems"), len(before)) if isinstance(before, list) else None


def _contains(make: Making, value: Any) -> Rule:
    place = make.sub("contains")
    low = count(make, "minContains", make.schema.get("minContains", 1))
    high = count(make, "maxContains", make.schema["maxContains"]) if "maxContains" in make.schema else None
    counts = make.contains_counts

    def rule(asking: Asking, value: Any, seen: Seen | None) -> bool:
        if not isinstance(value, list):
            return True
        found = [i for i, item in enumerate(value) if asking.holds(place, item, None)]
        if seen is not None and counts:
            seen.update(found)
        return low <= len(found) and (high is None or len(found) <= high)

    return rule


def _unique_items(make: Making, value: Any) -> Rule | None:
    if not isinstance(value, bool):
        raise make.broken("uniqueItems", "expected true or false")
    if not value:
        return None
    return lambda asking, value, seen: (
        not isinstance(value, list) or len({identity(item) for item in value}) == len(value)
    )


def _unevaluated_items(make: Making, value: Any) -> Rule:
    place = make.sub("unevaluatedItems")

    def rule(asking: Asking, value: Any, seen: Seen | None) -> bool:
        if not isinstance(value, list):
            return True
        return _each(asking, place, value, [i for i in range(len(value)) if i not in (seen or ())], seen)

    return rule


MEMBERS: Mapping[str, Maker] = MappingProxyType(
    {
        "required": _required,
        "dependentRequired": _dependent_required,
        "properties": _properties,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "propertyNames": _property_names,
        "dependentSchemas": _dependent_schemas,
        "dependencies": _dependencies,
        "prefixItems": _prefix_items,
        "items": _items,
        "additionalItems": _additional_items,
        "contains": _contains,
        "uniqueItems": _unique_items,
        # last, and in this order: they need what everything else has evaluated
        "unevaluatedItems": _unevaluated_items,
        "unevaluatedProperties": _unevaluated_properties,
    }
)
