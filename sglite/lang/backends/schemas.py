"""JSON Schemas as APIs take them: an object at the root, and the answer read back out of it.

What is no object (a list, or a number written bare) is asked for as the one property of an object. A bare value of a
typed gen is given by a pattern, which structured outputs know for strings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from sglite.lang.backends.api_params import Asked
from sglite.lang.backends.base import GenCall
from sglite.lang.errors import Unsupported

_PROPERTY = "answer"


@dataclass(frozen=True)
class Shape:
    """``schema``: what to ask for. ``inside``: how the wanted text is found in the answer: it is the ``whole`` answer,
    the JSON text of the ``value`` of its one property, or that property's ``text``."""

    schema: dict[str, Any]
    inside: Literal["whole", "value", "text"] = "whole"

    def read(self, answer: str) -> str:
        """The wanted text; the answer as it is where it was cut off before it was JSON."""
        if self.inside == "whole":
            return answer
        try:
            value = json.loads(answer)[_PROPERTY]
        except (ValueError, KeyError, TypeError):
            return answer
        is_text = self.inside == "text" and isinstance(value, str)
        return str(value) if is_text else json.dumps(value, ensure_ascii=False)


def shape_of(asked: Asked, call: GenCall) -> Shape | None:
    """The shape that ``call`` asks for by a schema or by its type; None if by neither."""
    text = asked.take("json_schema")
    if text is not None:
        schema = parsed_schema(text)
        return Shape(schema) if schema.get("type") == "object" else Shape(_wrapped(schema), "value")
    pattern = asked.take("regex") if call.schema_of is not None else None
    if pattern is not None:
        return Shape(_wrapped({"type": "string", "pattern": f"^(?:{pattern})$"}), "text")
    return None


def parsed_schema(text: str) -> dict[str, Any]:
    """A JSON Schema as an object; Unsupported for ``true`` and ``false``, which no API takes."""
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise Unsupported(f"a JSON Schema has to be an object for an API, not {text[:60]}")
    return schema


def _wrapped(schema: dict[str, Any]) -> dict[str, Any]:
    """An object with ``schema`` as its one property; definitions stay at the root, where references look for them."""
    shared = {k: v for k, v in schema.items() if k in ("$defs", "definitions")}
    inner = {k: v for k, v in schema.items() if k not in shared}
    outer = {"type": "object", "properties": {_PROPERTY: inner}, "required": [_PROPERTY]}
    return {**outer, "additionalProperties": False, **shared}


def is_closed(schema: Any) -> bool:
    """Whether every object in ``schema`` lists all its properties as required and allows no others: what strict
    structured outputs demand."""
    if isinstance(schema, list):
        return all(is_closed(part) for part in schema)
    if not isinstance(schema, dict):
        return True
    kind = schema.get("type")
    if kind == "object" or "properties" in schema or (isinstance(kind, list) and "object" in kind):
        names = set(schema.get("properties") or ())
        if schema.get("additionalProperties") is not False or set(schema.get("required") or ()) != names:
            return False
    parts = [v for k, v in schema.items() if k not in ("properties", "$defs", "definitions", "enum", "const")]
    named = [schema.get(k) for k in ("properties", "$defs", "definitions")]
    return is_closed(parts) and all(is_closed(list(group.values())) for group in named if isinstance(group, dict))
