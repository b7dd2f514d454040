"""The schema that the arguments of a call are held to."""

from __future__ import annotations

from typing import Any

from sglite.runtime.parse.base import Tool

# With one of these at the top, what an object may hold is not told by its "properties" alone.
_OPENING = (
    "additionalProperties",
    "unevaluatedProperties",
    "patternProperties",
    "propertyNames",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "dependentSchemas",
    "dependencies",
    "$ref",
    "$dynamicRef",
    "$recursiveRef",
)


def argument_schema(tool: Tool) -> dict[str, Any]:
    """The JSON Schema of the arguments of ``tool``, of an object even where it does not say so.

    A tool without parameters takes any object. One that lists its arguments, and says nothing of others, takes no
    others: a model cannot invent an argument that the function does not have.
    """
    given = {"type": "object", **(tool.parameters or {})}
    if isinstance(given["type"], list) and "object" in given["type"]:
        given["type"] = "object"
    listed, required = given.get("properties"), given.get("required", [])
    if given["type"] != "object" or not isinstance(listed, dict) or any(name in given for name in _OPENING):
        return given
    if not isinstance(required, list) or any(not isinstance(name, str) or name not in listed for name in required):
        return given
    return {**given, "additionalProperties": False}
