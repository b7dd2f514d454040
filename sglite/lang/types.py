"""From what users write to what requests carry: strings, schemas, and simple types as patterns.

Values of ``gen(dtype=...)`` stay strings, as in SGLang; the patterns are the ones its programs rely on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

Strings = str | Sequence[str]
"""One string or several."""


def as_strings(value: Strings | None) -> tuple[str, ...] | None:
    """``value`` as a tuple; the caller's own list is never kept."""
    if value is None:
        return None
    return (value,) if isinstance(value, str) else tuple(value)


class DtypeRule(NamedTuple):
    """``regex``: what may be written. ``stop``: strings that end a number, which has no end of its own."""

    regex: str
    stop: tuple[str, ...] = ()


_RULES: tuple[tuple[type, DtypeRule], ...] = (
    (int, DtypeRule(r"[-+]?[0-9]+[ \n]*", (" ", "\n"))),
    (float, DtypeRule(r"[-+]?[0-9]*\.?[0-9]+[ \n]*", (" ", "\n"))),
    (bool, DtypeRule(r"(True|False)")),
    (str, DtypeRule(r'"[\w\d\s]*"')),
)


def dtype_rule(dtype: type | str) -> DtypeRule:
    """The rule for ``int``, ``float``, ``bool`` or ``str``, or their names; ValueError for anything else."""
    for known, rule in _RULES:
        if dtype in (known, known.__name__):
            return rule
    names = ", ".join(known.__name__ for known, _ in _RULES)
    raise ValueError(f"gen(dtype={dtype!r}): not a known dtype; use one of {names}, a regex or a json_schema")


def schema_text(schema: str | dict[str, Any] | type) -> str:
    """A JSON Schema, or a pydantic model, as JSON text; ValueError when a string is not JSON or a type is no model."""
    if isinstance(schema, type):
        describe = getattr(schema, "model_json_schema", None)
        if describe is None:
            raise ValueError(f"gen(json_schema={schema.__name__}): a type has to be a pydantic model; or give a schema")
        schema = describe()
    if not isinstance(schema, str):
        return json.dumps(schema)
    try:
        json.loads(schema)
    except json.JSONDecodeError as error:
        raise ValueError(f"gen(json_schema=...): not JSON: {error} in {schema[:80]!r}") from None
    return schema
