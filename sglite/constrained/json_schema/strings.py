"""Sets of strings: values, lengths, patterns and formats, and whatever `&`, `|` and `~` make of them.

A set is kept as what was said of it, not as an automaton: making one costs nothing, whatever the counts in it. Lengths
count code points. What dialects of patterns disagree on belongs neither to a pattern nor to its complement, so that
what is generated is right for every reader. A text with half a surrogate pair, which no model can write, belongs to no
set. Questions that need an automaton (`is_empty`, `contains`, `finite`) are bounded by `fsm`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import ClassVar, TypeAlias

from sglite.constrained import fsm
from sglite.constrained.charset import EVERY
from sglite.constrained.grammar import Alt, And, Chars, JsonString, Node, Not, Repeat, Seq, Text, alt
from sglite.constrained.json_schema.formats import format_node
from sglite.constrained.limits import Limits
from sglite.constrained.regex import search_expr

_ANY_CHARACTER = Chars(EVERY)
_FREE_TEXT = Repeat(_ANY_CHARACTER, 0, None)


@dataclass(frozen=True, slots=True)
class _Language:
    """The texts of a regular node."""

    node: Node

    def complement(self) -> StringSet:
        return StringSet(parts=(_Language(self.node.item if isinstance(self.node, Not) else Not(self.node)),))


@dataclass(frozen=True, slots=True)
class _Pattern:
    """The texts in which a pattern is found in every dialect, or, negative, in no dialect."""

    pattern: str
    limits: Limits
    negative: bool = False

    @property
    def node(self) -> Node:
        found = _searched(self.pattern, self.limits, self.negative)
        return Not(found) if self.negative else found

    def complement(self) -> StringSet:
        return StringSet(parts=(_Pattern(self.pattern, self.limits, not self.negative),))


@dataclass(frozen=True, slots=True)
class _Except:
    """Every text but some."""

    values: frozenset[str]

    @property
    def node(self) -> Node:
        return Not(_listed(self.values))

    def complement(self) -> StringSet:
        return StringSet(values=self.values)


@dataclass(frozen=True, slots=True)
class _Either:
    """The texts of any of some sets."""

    sets: tuple[StringSet, ...]

    @property
    def node(self) -> Node:
        return alt(each.expr for each in self.sets)

    def complement(self) -> StringSet:
        return reduce(StringSet.__and__, (~each for each in self.sets))


_Part: TypeAlias = _Language | _Pattern | _Except | _Either


@dataclass(frozen=True, slots=True)
class StringSet:
    """The texts of `low` to `high` characters that belong to every part; or, when given, just `values`.

    Immutable; made by the class methods and by `&`, `|` and `~`. May raise ConstraintRefused from `fsm` where a
    question needs too large an automaton.
    """

    ALL: ClassVar[StringSet]
    NONE: ClassVar[StringSet]

    low: int = 0
    high: int | None = None
    parts: tuple[_Part, ...] = ()
    values: frozenset[str] | None = None

    @classmethod
    def of(cls, values: Iterable[str]) -> StringSet:
        """Just these texts."""
        return cls(values=frozenset(value for value in values if is_text(value)))

    @classmethod
    def lengths(cls, low: int, high: int | None) -> StringSet:
        """Texts of `low` to `high` characters, None for no limit."""
        return StringSet.NONE if high is not None and high < low else cls(max(0, low), high)

    @classmethod
    def pattern(cls, pattern: str, limits: Limits | None = None) -> StringSet:
        """Texts in which a pattern is found, as JSON Schema says. Raises as `regex.search_expr`."""
        found = _Pattern(pattern, limits or Limits())
        return StringSet.ALL if _is_everything(found.node) else cls(parts=(found,))

    @classmethod
    def language(cls, node: Node) -> StringSet:
        """The texts of a regular node."""
        return StringSet.ALL if _is_everything(node) else cls(parts=(_Language(node),))

    @classmethod
    def format(cls, name: str) -> StringSet | None:
        """Texts of a format; None for one that says nothing of the text, which makes it an annotation."""
        node = format_node(name)
        return None if node is None else cls(parts=(_Language(node),))

    def __and__(self, other: StringSet) -> StringSet:
        if self.values is not None:
            return StringSet(values=frozenset(value for value in self.values if other.contains(value)))
        if other.values is not None:
            return other & self
        low = max(self.low, other.low)
        high = self.high if other.high is None else other.high if self.high is None else min(self.high, other.high)
        if high is not None and high < low:
            return StringSet.NONE
        return StringSet(low, high, _both(self.parts, other.parts))

    def __or__(self, other: StringSet) -> StringSet:
        if self == other or other == StringSet.NONE or self == StringSet.ALL:
            return self
        if self == StringSet.NONE or other == StringSet.ALL:
            return other
        if self.values is not None and other.values is not None:
            return StringSet(values=self.values | other.values)
        return _joined(self, other) or _joined(other, self) or StringSet(parts=(_Either(_options(self, other)),))

    def __invert__(self) -> StringSet:
        if self.values is not None:
            return StringSet(parts=(_Except(self.values),)) if self.values else StringSet.ALL
        options = [part.complement() for part in self.parts]
        if self.low:
            options.append(StringSet(0, self.low - 1))
        if self.high is not None:
            options.append(StringSet(self.high + 1))
        return reduce(StringSet.__or__, options, StringSet.NONE)

    def contains(self, text: str) -> bool:
        """Whether a text belongs to the set."""
        if self.values is not None:
            return text in self.values
        fits = len(text) >= self.low and (self.high is None or len(text) <= self.high) and is_text(text)
        return fits and all(_has(part, text) for part in self.parts)

    def is_empty(self) -> bool:
        """Whether no text belongs to the set. Raises fsm.TooLarge where that takes too long to find out."""
        if self.values is not None:
            return not self.values
        return bool(self.parts) and fsm.is_empty(self.expr)

    def finite(self, limit: int) -> list[str] | None:
        """Every text of the set when there are at most `limit` and it is affordable to list them, else None."""
        if self.values is not None:
            return sorted(self.values) if len(self.values) <= limit else None
        if not self.parts:
            return [""] if self.high == 0 and limit else None
        try:
            return fsm.finite(self.expr, limit)
        except fsm.TooLarge:
            return None

    @property
    def expr(self) -> Node:
        """The set as a regular node."""
        if self.values is not None:
            return _listed(self.values)
        nodes = [part.node for part in self.parts]
        if self.low or self.high is not None or not nodes:
            nodes.append(Repeat(_ANY_CHARACTER, self.low, self.high))
        return nodes[0] if len(nodes) == 1 else And(tuple(nodes))

    def node(self) -> Node:
        """The JSON strings whose value belongs to the set."""
        return JsonString(self.expr)

    @property
    def extendable(self) -> bool:
        """Whether every prefix of a member goes on to infinitely many members; False also where that is not plain."""
        if self.values is not None or self.high is not None:
            return False
        closed = [part for part in self.parts if not isinstance(part, _Except) and not _open(part)]
        return not closed or (len(closed) == 1 and _grows(closed[0]))


def _both(left: tuple[_Part, ...], right: tuple[_Part, ...]) -> tuple[_Part, ...]:
    """The parts of two sets, each once, what is excluded in one of them."""
    excluded = [part.values for part in (*left, *right) if isinstance(part, _Except)]
    others = dict.fromkeys(part for part in (*left, *right) if not isinstance(part, _Except))
    return (*others, *([_Except(frozenset[str]().union(*excluded))] if excluded else []))


def _joined(one: StringSet, two: StringSet) -> StringSet | None:
    """The union of two sets where it has a simple form; None else."""
    if two.values is not None:
        if len(one.parts) == 1 and isinstance(one.parts[0], _Except) and (one.low, one.high) == (0, None):
            return ~StringSet(values=one.parts[0].values - two.values)
        return one if all(one.contains(value) for value in two.values) else None
    if one.parts != two.parts or one.values is not None:
        return None
    if one.low > two.low or (one.high is not None and one.high + 1 < two.low):
        return None
    high = None if one.high is None or two.high is None else max(one.high, two.high)
    return StringSet(one.low, high, one.parts)


def _options(one: StringSet, two: StringSet) -> tuple[StringSet, ...]:
    flat: dict[StringSet, None] = {}
    for each in (one, two):
        part = each.parts[0] if len(each.parts) == 1 and (each.low, each.high) == (0, None) else None
        flat.update(dict.fromkeys(part.sets if isinstance(part, _Either) else (each,)))
    return tuple(flat)


def _has(part: _Part, text: str) -> bool:
    if isinstance(part, _Except):
        return text not in part.values
    if isinstance(part, _Either):
        return any(each.contains(text) for each in part.sets)
    return fsm.matches(part.node, text)


def is_text(value: str) -> bool:
    """Whether a string holds no half surrogate pair, so that a model can write it."""
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def _is_everything(node: Node) -> bool:
    """Whether a node plainly has every text: what precedes and follows may be empty."""
    items = node.items if isinstance(node, Seq) else (node,)
    return _FREE_TEXT in items and all(isinstance(item, Repeat) and item.low == 0 for item in items)


def _listed(values: Iterable[str]) -> Node:
    return alt(Text(value) for value in sorted(values))


@lru_cache(maxsize=256)
def _searched(pattern: str, limits: Limits, outer: bool) -> Node:
    return search_expr(pattern, limits, sense="outer" if outer else "inner")


def _open(part: _Part) -> bool:
    """Whether every text that begins with a member is one."""
    return isinstance(part, _Language | _Pattern) and _ends_in_loop(part.node, anything=True)


def _grows(part: _Part) -> bool:
    """Whether every member goes on to further members without end."""
    if isinstance(part, _Either):
        return all(each.extendable for each in part.sets)
    return isinstance(part, _Language | _Pattern) and _ends_in_loop(part.node, anything=False)


def _ends_in_loop(node: Node, *, anything: bool) -> bool:
    """Whether each text of `node` ends in a part that may go on: with anything, or with more of the same."""
    if isinstance(node, Seq):
        return _ends_in_loop(node.items[-1], anything=anything)
    if isinstance(node, Alt):
        return bool(node.items) and all(_ends_in_loop(item, anything=anything) for item in node.items)
    if isinstance(node, Repeat) and node.high is None:
        return node.item == _ANY_CHARACTER if anything else fsm.lengths(node.item)[1] != 0
    return False


StringSet.ALL = StringSet()
StringSet.NONE = StringSet(values=frozenset())
