"""A look at the neighbouring character, worked into the node it looks at."""

from __future__ import annotations

from collections.abc import Iterable

from sglite.constrained import charset
from sglite.constrained.charset import Ranges
from sglite.constrained.grammar import NOTHING, Alt, And, Chars, Node, Repeat, Seq, Text, alt, repeat, seq
from sglite.constrained.regex_automaton import ANY
from sglite.constrained.regex_tree import nullable


def restrict(node: Node, ranges: Ranges, ahead: bool) -> Node:
    """The texts of a regular node whose first character (`ahead`), or last one, is in the set."""
    if not ranges or ends(node, ahead) == ():
        return NOTHING
    if not nullable(node) and charset.difference(ends(node, ahead), ranges) == ():
        return node
    if isinstance(node, Text):
        return node if node.text and charset.contains(ranges, ord(node.text[0 if ahead else -1])) else NOTHING
    if isinstance(node, Chars):
        left = charset.intersect(node.ranges, ranges)
        return Chars(left) if left else NOTHING
    if isinstance(node, Alt):
        return _either(restrict(item, ranges, ahead) for item in node.items)
    if isinstance(node, Repeat):
        # where the item may be empty, leaving empty rounds out changes nothing but the least count
        low = 0 if nullable(node.item) else max(node.low - 1, 0)
        rest = repeat(node.item, low, None if node.high is None else node.high - 1)
        return _joined(restrict(node.item, ranges, ahead), rest, ahead)
    if isinstance(node, Seq):
        return _restrict_sequence(node.items, ranges, ahead)
    some = Chars(ranges)
    return And((node, seq(some, ANY) if ahead else seq(ANY, some)))


def _restrict_sequence(items: tuple[Node, ...], ranges: Ranges, ahead: bool) -> Node:
    nearest, others = (items[0], items[1:]) if ahead else (items[-1], items[:-1])
    found = _joined(restrict(nearest, ranges, ahead), seq(*others), ahead)
    if not nullable(nearest) or not others:
        return found
    return _either([found, _restrict_sequence(others, ranges, ahead)])


def _joined(nearest: Node, others: Node, ahead: bool) -> Node:
    return seq(nearest, others) if ahead else seq(others, nearest)


def _either(items: Iterable[Node]) -> Node:
    return alt(item for item in items if item != NOTHING)


def ends(node: Node, ahead: bool) -> Ranges:
    """A set that holds every first (`ahead`) or last character of a text."""
    if isinstance(node, Text):
        return charset.of(node.text[0 if ahead else -1]) if node.text else ()
    if isinstance(node, Chars):
        return node.ranges
    if isinstance(node, Repeat):
        return ends(node.item, ahead) if node.high != 0 else ()
    if isinstance(node, Alt):
        return charset.union(*(ends(item, ahead) for item in node.items))
    if isinstance(node, Seq):
        found: list[Ranges] = []
        for item in node.items if ahead else reversed(node.items):
            found.append(ends(item, ahead))
            if not nullable(item):
                break
        return charset.union(*found)
    if isinstance(node, And):
        common = charset.EVERY
        for item in node.items:
            common = charset.intersect(common, ends(item, ahead))
        return common
    return charset.EVERY


def single(node: Node) -> Ranges | None:
    """The set of a node whose texts are all of one character."""
    if isinstance(node, Chars):
        return node.ranges
    if isinstance(node, Text) and len(node.text) == 1:
        return charset.of(node.text)
    if isinstance(node, Alt) and node.items:
        parts = [single(item) for item in node.items]
        known = [part for part in parts if part is not None]
        return charset.union(*known) if len(known) == len(parts) else None
    return None
