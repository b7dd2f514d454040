"""Entries between brackets: what objects and arrays have in common."""

from __future__ import annotations

import re
from typing import Protocol

from sglite.constrained.grammar import EMPTY, NOTHING, Node, Text, alt, repeat, seq
from sglite.constrained.json_schema.layout import Layout
from sglite.constrained.json_schema.normal import Conjunction, Normal
from sglite.constrained.json_schema.scalars import constant

_PLAIN = re.compile(r'[^"\\/\x00-\x1f\x7f]*')


class Values(Protocol):
    """What the lowering of a structure needs of the lowering of everything."""

    layout: Layout
    any_order: bool
    rules: dict[str, Node]

    def value(self, terms: Conjunction) -> Node: ...

    def form(self, terms: Conjunction) -> Normal: ...


def listed(entry: Node, layout: Layout, low: int, high: int | None) -> Node:
    """`low` to `high` entries, at least one, with commas between them."""
    return seq(entry, repeat(seq(layout.comma, entry), max(low, 1) - 1, None if high is None else high - 1))


def maybe_empty(filled: Node, layout: Layout, low: int) -> Node:
    """What stands between the brackets: `filled`, which is one entry or more, or nothing where `low` is 0."""
    if filled == NOTHING:
        return NOTHING if low else EMPTY
    whole = seq(filled, layout.space)
    return whole if low else alt([EMPTY, whole])


def bracketed(opening: str, inside: Node, closing: str, layout: Layout) -> Node:
    """`inside` brings the space before the closing bracket if it is not empty."""
    return seq(Text(opening), layout.space, inside, Text(closing))


def name_node(name: str, layout: Layout) -> Node:
    """A declared name in quotes; as fixed text where JSON has but one spelling for it."""
    return Text(f'"{name}"') if _PLAIN.fullmatch(name) else constant(name, layout)
