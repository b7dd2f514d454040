"""Which types a property's value may have, told from the schema's own keywords, for formats that write values as text.

A value that stands between tags without quotes is read by this: both the reader of such a text and its grammar ask
here, so that what was written as a string is never read as a number. The answer may name a type too many, never one
too few; what is not looked into (a reference elsewhere, a negation, a condition) counts as every type.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from sglite.constrained.json_values import is_whole

TYPES = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))
STRING = frozenset(("string",))

_MAX_VISITS = 2000  # subschemas looked at for one property
_MAX_DEPTH = 40


def kind_of_value(value: Any) -> str:
    """The type of a value as ``json_values.parse`` gives it; a whole number is an integer."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    if isinstance(value, int | Decimal):
        return "integer" if is_whole(value) else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


class Kinds:
    """The properties of one schema of an object. What is found for a name is remembered."""

    def __init__(self, schema: Any) -> None:
        self._root = schema
        self._known: dict[str, frozenset[str]] = {}
        self._visits = 0

    def of(self, name: str) -> frozenset[str]:
        """The types that the property may have; with "number" there is "integer" too."""
        found = self._known.get(name)
        if found is None:
            self._visits = _MAX_VISITS
            found = self._property(self._root, name, 0)
            self._known[name] = found if self._visits > 0 else TYPES
        return self._known[name]

    def _spend(self, depth: int) -> bool:
        self._visits -= 1
        return self._visits > 0 and depth < _MAX_DEPTH

    def _property(self, schema: Any, name: str, depth: int) -> frozenset[str]:
        """What an object's schema says of one of its properties."""
        if not isinstance(schema, Mapping) or not self._spend(depth):
            return TYPES
        found = TYPES
        properties = schema.get("properties")
        if isinstance(properties, Mapping) and name in properties:
            found = self._value(properties[name], depth + 1)
        elif "additionalProperties" in schema and not schema.get("patternProperties"):
            found = self._value(schema["additionalProperties"], depth + 1)
        for part in self._all_of(schema):
            found &= self._property(part, name, depth + 1)
        for parts in self._choices(schema):
            found &= frozenset[str]().union(*(self._property(part, name, depth + 1) for part in parts))
        return found

    def _value(self, schema: Any, depth: int) -> frozenset[str]:
        """The types that a schema allows."""
        if schema is False:
            return frozenset()
        if not isinstance(schema, Mapping) or not self._spend(depth):
            return TYPES
        found = _typed(schema.get("type"))
        if "const" in schema:
            found &= _of_values([schema["const"]])
        if isinstance(schema.get("enum"), list):
            found &= _of_values(schema["enum"])
        for part in self._all_of(schema):
            found &= self._value(part, depth + 1)
        for parts in self._choices(schema):
            found &= frozenset[str]().union(*(self._value(part, depth + 1) for part in parts))
        return found

    def _all_of(self, schema: Mapping[str, Any]) -> list[Any]:
        parts = list(schema["allOf"]) if isinstance(schema.get("allOf"), list) else []
        return [*parts, self._target(schema["$ref"])] if "$ref" in schema else parts

    def _choices(self, schema: Mapping[str, Any]) -> list[list[Any]]:
        return [schema[word] for word in ("anyOf", "oneOf") if isinstance(schema.get(word), list) and schema[word]]

    def _target(self, reference: Any) -> Any:
        """What a local reference points to; ``True``, which allows everything, where that is not plain."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            return True
        found = self._root
        for step in unquote(reference[2:]).split("/") if len(reference) > 1 else []:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, Mapping) and key in found:
                found = found[key]
            else:
                return True
        return found


def _typed(given: Any) -> frozenset[str]:
    names = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    if not names or not all(isinstance(name, str) and name in TYPES for name in names):
        return TYPES
    return frozenset((*names, "integer")) if "number" in names else frozenset(names)


def _of_values(values: list[Any]) -> frozenset[str]:
    found = {kind_of_value(value) for value in values}
    return frozenset((*found, "integer")) if "number" in found else frozenset(found)
