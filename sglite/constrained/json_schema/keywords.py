"""The keywords of JSON Schema (drafts 4 to 2020-12), and readers that check a keyword's own value."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sglite.constrained.json_schema.document import Place
from sglite.constrained.json_values import exact
from sglite.constrained.spec import ConstraintError

TYPES = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))

# The keywords that say something about one type only, by that type.
NUMBER_WORDS = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"))
STRING_WORDS = frozenset(("minLength", "maxLength", "pattern", "format"))
ARRAY_WORDS = frozenset(
    ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains", "minContains")
) | {"maxContains"}
OBJECT_WORDS = frozenset(
    ("properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties")
) | {"maxProperties"}
LOCAL_WORDS = frozenset.union(frozenset(("type",)), NUMBER_WORDS, STRING_WORDS, ARRAY_WORDS, OBJECT_WORDS)

REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_APPLICATORS = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas")
_OTHERS = ("enum", "const", "dependencies", "unevaluatedProperties", "unevaluatedItems")
_ENFORCED = LOCAL_WORDS.union(REFERENCES, _APPLICATORS, _OTHERS)

# Keywords without effect unless another one stands beside them.
_NEEDS = {
    "then": "if",
    "else": "if",
    "minContains": "contains",
    "maxContains": "contains",
}

# Every other keyword is an annotation: JSON Schema core, section 6.5, gives an unknown keyword that reading too.


def mark_keywords(place: Place) -> None:
    """Give a verdict on every keyword of a place."""
    document, schema = place.document, place.schema
    alone = place.resource.reading.ref_alone and "$ref" in schema
    for keyword in schema:
        enforced = keyword in _ENFORCED and (not alone or keyword == "$ref")
        if enforced and keyword in _NEEDS:
            enforced = _NEEDS[keyword] in schema
        elif keyword == "additionalItems":
            enforced = isinstance(schema.get("items"), list)
        document.mark(place, keyword, "enforced" if enforced else "annotation")


def check_schema(place: Place) -> None:
    if not isinstance(place.schema, dict | bool):
        raise ConstraintError(f"{place.pointer}: a schema is an object or a boolean, got {place.schema!r:.60}")


def types(place: Place) -> frozenset[str]:
    """The types that `type` allows."""
    if "type" not in place.schema:
        return TYPES
    value = place.schema["type"]
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name in TYPES for name in names):
        place.document.broken(place, "type", f"a type is one of {', '.join(sorted(TYPES))}")
    return frozenset(names)


def count(place: Place, keyword: str) -> int:
    """The whole number a keyword holds."""
    value = place.schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or not _is_whole(value):
        place.document.broken(place, keyword, "a count is a whole number, 0 or more")
    return int(value)


def limit(place: Place, keyword: str) -> int | None:
    """The same, None when the keyword is absent."""
    return count(place, keyword) if keyword in place.schema else None


def number(place: Place, keyword: str) -> Decimal:
    """The number a keyword holds, as it was written."""
    value = place.schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) == float("inf"):
        place.document.broken(place, keyword, "expected a number")
    return Decimal(exact(value))


def text(place: Place, keyword: str) -> str:
    """The string a keyword holds."""
    value = place.schema[keyword]
    if not isinstance(value, str):
        place.document.broken(place, keyword, "expected a string")
    return value


def mapping(place: Place, keyword: str) -> dict[str, Any]:
    """The object a keyword holds."""
    value = place.schema[keyword]
    if not isinstance(value, dict):
        place.document.broken(place, keyword, "expected an object")
    return value


def listing(place: Place, keyword: str) -> list[Any]:
    """The array a keyword holds."""
    value = place.schema[keyword]
    if not isinstance(value, list):
        place.document.broken(place, keyword, "expected an array")
    return value


def branches(place: Place, keyword: str) -> list[Place]:
    """The subschemas of allOf, anyOf or oneOf."""
    if not listing(place, keyword):
        place.document.broken(place, keyword, "expected at least one schema")
    return [place.sub_in(keyword, i) for i in range(len(place.schema[keyword]))]


def names(place: Place, keyword: str, value: Any) -> list[str]:
    """`value`, which stands in the keyword, as a list of property names."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        place.document.broken(place, keyword, "expected an array of names")
    for name in value:
        check_encodable(place.at(keyword), name)
    return value


def check_encodable(where: str, value: str) -> None:
    """Half a surrogate pair is in no text that a model can write."""
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ConstraintError(f"{where}: {value!r:.60} holds half a surrogate pair")


def check_values(place: Place, keyword: str, values: list[Any]) -> None:
    """The same for every string in the values of `enum` or `const`."""
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            check_encodable(place.at(keyword), value)
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]


def _is_whole(value: float) -> bool:
    return isinstance(value, int) or value.is_integer()
