"""What may stand between the parentheses of a call in Python: keyword arguments, each by its own schema.

Numbers, strings and what they are nested in are written as JSON writes them, which Python reads too; single booleans,
nulls and enumerated values as Python does. Required arguments come first, each kind in the order of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sglite.constrained.spec import ConstraintRefused
from sglite.runtime.parse import grammar
from sglite.runtime.parse.base import Tool
from sglite.runtime.parse.schemas import argument_schema

# What these say is not about one argument alone.
_TOGETHER = (
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "$ref",
    "$dynamicRef",
    "patternProperties",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "minProperties",
    "maxProperties",
    "const",
    "enum",
)
_SHARED = ("$defs", "definitions", "$schema")
_ANNOTATIONS = ("title", "description", "default", "examples", "$comment")
_TYPES: dict[type, tuple[str, ...]] = {
    bool: ("boolean",),
    int: ("integer", "number"),
    str: ("string",),
    type(None): ("null",),
}
_SPELLED = {True: "True", False: "False", None: "None"}


def call_format(tool: Tool) -> grammar.Format:
    """The keyword arguments of a call of ``tool``.

    Raises ``ConstraintRefused`` for a schema that says more than which arguments there are and what each one is.
    """
    if tool.grammar is not None:
        return grammar.sequence(grammar.text(f"{grammar.only_argument(tool)}="), grammar.json_string(tool.grammar))
    schema = argument_schema(tool)
    for keyword in _TOGETHER:
        if keyword in schema:
            reason = (
                f"the parameters of {tool.name!r:.60} cannot be enforced as keyword arguments; leave {keyword!r} out"
            )
            raise ConstraintRefused(reason, pointer=f"/{keyword}", keyword=keyword)
    listed = schema.get("properties")
    if not listed:
        return grammar.text("") if schema.get("additionalProperties") is False else _any_arguments()
    shared = {name: schema[name] for name in _SHARED if name in schema}
    names = schema.get("required", [])
    if not isinstance(names, list):
        reason = f"the parameters of {tool.name!r:.60}: required must be a list of names, got {names!r:.60}"
        raise ConstraintRefused(reason, pointer="/required", keyword="required")
    required = [name for name in listed if name in names]
    optional = [name for name in listed if name not in required]
    formats = {name: _argument(name, listed[name], shared) for name in listed}
    return _in_order([formats[name] for name in required], [formats[name] for name in optional])


def _in_order(required: Sequence[grammar.Format], optional: Sequence[grammar.Format]) -> grammar.Format:
    comma = grammar.text(", ")
    if required:
        first, *others = required
        later = [grammar.sequence(comma, one) for one in others] + [_maybe(comma, one) for one in optional]
        return grammar.sequence(first, *later)
    whole = [
        grammar.sequence(one, *(_maybe(comma, later) for later in optional[i + 1 :])) for i, one in enumerate(optional)
    ]
    return grammar.either(*whole, grammar.text(""))


def _maybe(*parts: grammar.Format) -> grammar.Format:
    return grammar.either(grammar.sequence(*parts), grammar.text(""))


def _argument(name: str, schema: Any, shared: dict[str, Any]) -> grammar.Format:
    return grammar.sequence(grammar.text(f"{name}="), _value(schema, shared))


def _value(schema: Any, shared: dict[str, Any]) -> grammar.Format:
    if not isinstance(schema, dict):
        return _json(schema)
    said = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
    chosen = [said["const"]] if "const" in said else said.get("enum")
    if isinstance(chosen, list) and chosen and not any(isinstance(value, list | dict | float) for value in chosen):
        possible = [value for value in chosen if _is_of(value, said.get("type"))]
        return grammar.either(*(grammar.text(_spelled(value)) for value in possible)) if possible else _json(False)
    kind, options = said.get("type"), said.get("anyOf")
    if isinstance(options, list) and options and len(said) == 1:
        return grammar.either(*(_value(option, shared) for option in options))
    if isinstance(kind, list) and kind:
        return grammar.either(*(_value({**said, "type": one}, shared) for one in kind))
    if not said:
        return grammar.either(_json(True), *(grammar.text(_spelled(word)) for word in _SPELLED))
    if kind == "boolean":
        return grammar.either(grammar.text("True"), grammar.text("False"))
    return grammar.text("None") if kind == "null" else _json({**shared, **schema})


def _is_of(value: str | int | None, kind: Any) -> bool:
    """Whether a word or a whole number has the type that a schema says, one or several; where it says none, it has."""
    if not isinstance(kind, str | list):
        return True
    return any(name in _TYPES[type(value)] for name in ([kind] if isinstance(kind, str) else kind))


def _json(schema: Any) -> grammar.Format:
    return {"type": "json_schema", "json_schema": schema}


def _spelled(value: str | int | None) -> str:
    if value is None or isinstance(value, bool):
        return _SPELLED[value]
    return json.dumps(value, ensure_ascii=False)


def _any_arguments() -> grammar.Format:
    one = grammar.tag("", grammar.sequence(grammar.regex("[A-Za-z_][A-Za-z0-9_]{0,63}="), _value({}, {})), "")
    return grammar.either(grammar.listed([one], ", ", several=True), grammar.text(""))
