"""Constants written out."""

from __future__ import annotations

from typing import Any

from sglite.constrained.grammar import EMPTY, NOTHING, JsonString, Node, Text, alt, seq
from sglite.constrained.json_schema.layout import Layout
from sglite.constrained.json_schema.numbers import exact_decimal
from sglite.constrained.json_schema.numbers_spelling import spellings
from sglite.constrained.json_schema.strings import is_text


def constant(value: Any, layout: Layout) -> Node:
    """One JSON value written out: names in their order, white space as the layout has it, a number in each spelling
    that `numbers_spelling.spellings` gives. NOTHING when it holds half a surrogate pair, which no text can."""
    if isinstance(value, str):
        return JsonString(Text(value)) if is_text(value) else NOTHING
    if isinstance(value, bool) or value is None:
        return Text("null" if value is None else "true" if value else "false")
    if isinstance(value, list):
        return _bracketed("[", [constant(item, layout) for item in value], "]", layout)
    if isinstance(value, dict):
        pairs = [seq(constant(name, layout), layout.colon, constant(item, layout)) for name, item in value.items()]
        return _bracketed("{", pairs, "}", layout)
    return alt(Text(text) for text in spellings(exact_decimal(value)))


def _bracketed(opening: str, items: list[Node], closing: str, layout: Layout) -> Node:
    parts: list[Node] = []
    for item in items:
        parts += [layout.comma, item] if parts else [item]
    inside = seq(*parts, layout.space) if items else EMPTY
    return seq(Text(opening), layout.space, inside, Text(closing))
