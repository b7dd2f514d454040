"""Whether a constant of `enum` or `const` satisfies the other keywords beside it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sglite.constrained.json_schema.document import Conjunction, Document
from sglite.constrained.json_schema.keywords import OF_TYPE, number
from sglite.constrained.json_schema.scalars import characters
from sglite.constrained.matching import matches


def fits(document: Document, places: Conjunction, types: set[str], value: Any) -> bool:
    """Whether `value` is allowed. A constant array or object beside keywords of its type is refused."""
    kind = type_of(value)
    if kind not in types and not (kind == "integer" and "number" in types):
        return False
    if kind == "string":
        return matches(characters(document, places), value)
    if kind in ("integer", "number"):
        return all(_number_fits(document, places, keyword, Decimal(repr(value))) for keyword in OF_TYPE["number"])
    for place in places:
        for keyword in OF_TYPE.get(kind, ()):
            if keyword in place:
                document.refuse(place, keyword, f"beside a constant {kind} cannot be enforced; drop one of them")
    return True


def type_of(value: Any) -> str:
    """The JSON Schema type of a parsed value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value == int(value)):
        return "integer"
    names = {float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]


def _number_fits(document: Document, places: Conjunction, keyword: str, value: Decimal) -> bool:
    for place in places:
        if keyword not in place:
            continue
        limit = place.schema[keyword]
        if isinstance(limit, bool):  # draft 4: makes minimum or maximum of the same schema exclusive
            plain = "minimum" if keyword == "exclusiveMinimum" else "maximum"
            if limit and plain in place and value == number(document, place, plain):
                return False
            continue
        bound = number(document, place, keyword)
        right = {
            "minimum": value >= bound,
            "maximum": value <= bound,
            "exclusiveMinimum": value > bound,
            "exclusiveMaximum": value < bound,
            "multipleOf": bound > 0 and value % bound == 0,
        }
        if not right[keyword]:
            return False
    return True
