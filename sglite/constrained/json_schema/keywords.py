"""The keywords of JSON Schema (drafts 4 to 2020-12), and readers that check a keyword's own value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from sglite.constrained.json_schema.document import Conjunction, Document, Place
from sglite.constrained.spec import ConstraintError

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

# The keywords that say something about one type only, by that type.
OF_TYPE: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "object": frozenset({"properties", "required", "additionalProperties", "patternProperties", "propertyNames"})
        | {"minProperties", "maxProperties", "unevaluatedProperties"}
        | {"dependentRequired", "dependentSchemas", "dependencies"},
        "array": frozenset({"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"})
        | {"contains", "minContains", "maxContains", "unevaluatedItems"},
        "string": frozenset({"minLength", "maxLength", "pattern"}),
        "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    }
)
APPLIED = frozenset({"type", "enum", "const", "allOf", "anyOf", "oneOf", "$ref", "format"}).union(*OF_TYPE.values())

# keyword -> why it is refused. Each is an assertion that a grammar of this front end does not express.
REFUSED = MappingProxyType(
    {
        "not": "cannot be enforced; say what is allowed instead",
        "if": "cannot be enforced; write the cases as anyOf",
        "then": "cannot be enforced; write the cases as anyOf",
        "else": "cannot be enforced; write the cases as anyOf",
        "dependentRequired": "cannot be enforced; write the cases as anyOf",
        "dependentSchemas": "cannot be enforced; write the cases as anyOf",
        "dependencies": "cannot be enforced; write the cases as anyOf",
        "contains": "cannot be enforced; constrain every item with 'items'",
        "minContains": "cannot be enforced; constrain every item with 'items'",
        "maxContains": "cannot be enforced; constrain every item with 'items'",
        "$dynamicRef": "cannot be enforced; use $ref",
        "$recursiveRef": "cannot be enforced; use $ref",
    }
)

# Everything else is an annotation: JSON Schema core, section 6.5, gives an unknown keyword that reading too.


def check_keywords(document: Document, place: Place) -> None:
    """Give a verdict on every keyword of a place, and refuse those that no lowering enforces."""
    if not isinstance(place.schema, dict):
        if not isinstance(place.schema, bool):
            raise ConstraintError(f"{place.pointer}: a schema is an object or a boolean, got {place.schema!r:.60}")
        return
    if place.pointer and isinstance(place.schema.get("$id"), str) and "$ref" in json.dumps(place.schema):
        document.refuse(place, "$id", "below the root changes what references mean; use $ref from the root")
    for keyword in place.schema:
        if keyword in REFUSED and not _without_effect(place, keyword):
            document.refuse(place, keyword, REFUSED[keyword])
        else:
            document.mark(place, keyword, "enforced" if keyword in APPLIED else "annotation")


def _without_effect(place: Place, keyword: str) -> bool:
    if keyword in ("then", "else"):
        return "if" not in place.schema
    if keyword in ("minContains", "maxContains"):
        return "contains" not in place.schema
    return keyword in ("dependentRequired", "dependentSchemas", "dependencies") and place.schema[keyword] == {}


def allowed_types(document: Document, places: Conjunction) -> set[str]:
    """The types a value may have. "number" is then every number, "integer" alone only whole ones.

    A schema without `type` whose keywords all speak of one type is read as being of that type: it is what its
    author means, and what is generated satisfies the schema in either reading.
    """
    allowed: set[str] = set(TYPES)
    said = False
    for place in places:
        if "type" in place:
            allowed &= _declared_types(document, place)
            said = True
    families = [name for name, words in OF_TYPE.items() if any(word in place for place in places for word in words)]
    if not said and len(families) == 1:
        allowed = {families[0], "integer"} if families == ["number"] else set(families)
    return allowed - {"integer"} if "number" in allowed else allowed


def _declared_types(document: Document, place: Place) -> set[str]:
    value = place.schema["type"]
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name in TYPES for name in names):
        document.broken(place, "type", f"a type is one of {', '.join(TYPES)}")
    return {*names, "integer"} if "number" in names else set(names)


def largest(document: Document, places: Conjunction, keyword: str) -> int:
    """The strictest of a lower-limit keyword such as minLength; 0 when none says it."""
    return max((_count(document, place, keyword) for place in places if keyword in place), default=0)


def smallest(document: Document, places: Conjunction, keyword: str) -> int | None:
    """The strictest of an upper-limit keyword such as maxLength; None when none says it."""
    return min((_count(document, place, keyword) for place in places if keyword in place), default=None)


def _count(document: Document, place: Place, keyword: str) -> int:
    value = place.schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        document.broken(place, keyword, "a count is a whole number, 0 or more")
    return int(value)


def number(document: Document, place: Place, keyword: str) -> Decimal:
    """The number a keyword holds, as it was written."""
    value = place.schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float):
        document.broken(place, keyword, "expected a number")
    return Decimal(repr(value))


def text(document: Document, place: Place, keyword: str) -> str:
    """The string a keyword holds."""
    value = place.schema[keyword]
    if not isinstance(value, str):
        document.broken(place, keyword, "expected a string")
    return value


def members(document: Document, place: Place, keyword: str, kind: type) -> Any:
    """The object or array a keyword holds."""
    value = place.schema[keyword]
    if not isinstance(value, kind):
        document.broken(place, keyword, f"expected {'an object' if kind is dict else 'an array'}")
    return value


def branches(document: Document, place: Place, keyword: str) -> list[Place]:
    """The subschemas of allOf, anyOf or oneOf."""
    if not members(document, place, keyword, list):
        document.broken(place, keyword, "expected at least one schema")
    return [place.sub(keyword, i) for i in range(len(place.schema[keyword]))]


def identity(value: Any) -> str:
    """Equal for values that JSON Schema calls equal: 1 is 1.0, true is not 1, key order does not matter."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value == int(value):
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
