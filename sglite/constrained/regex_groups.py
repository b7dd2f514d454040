"""Backreferences and atomic groups, where they say the same as something without them.

A group that is always taken and has few texts is written out once for each, its references with it. An atomic part
keeps its first match alone: that is any match of it when no match is the beginning of another one, and otherwise can
be told by what must not follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from sglite.constrained.charset import size
from sglite.constrained.fsm import intersects
from sglite.constrained.grammar import Alt, Chars, Node, Not, Repeat, Seq, Text, repeat, seq
from sglite.constrained.regex_automaton import EVERYTHING
from sglite.constrained.regex_tree import (
    Around,
    Atomic,
    Back,
    Cat,
    Group,
    Many,
    Or,
    Tree,
    bounds,
    cat,
    children,
    either,
    many,
    plain,
)

_MAX_TEXTS = 64
_MAX_COPIES = 4096  # of parts of the tree, over all references of a pattern

Refuse = Callable[[str], NoReturn]


def without_references(tree: Tree, refuse: Refuse) -> Tree:
    """The same texts with no Group and no Back left. Refuses a group that has many texts, or may not be taken."""
    copies = _Copies(refuse)
    while (index := _first_reference(tree)) is not None:
        tree = _write_out(tree, index, copies)
    return _rebuild(tree, lambda part: part.item if isinstance(part, Group) else part)


class _Copies:
    def __init__(self, refuse: Refuse) -> None:
        self.refuse = refuse
        self._left = _MAX_COPIES

    def take(self, tree: Tree, times: int) -> None:
        self._left -= times * sum(1 for _ in _walk(tree))
        if self._left < 0:
            self.refuse("a backreference to a group with too many texts")


def _write_out(tree: Tree, index: int, copies: _Copies) -> Tree:
    """Replace one group and its references in the smallest part that holds them all."""
    inside = [i for i, child in enumerate(children(tree)) if _holds(child, index)]
    if not isinstance(tree, Cat):
        if len(inside) != 1 or (isinstance(tree, Group) and tree.index == index):
            copies.refuse("a backreference to a group that may not have matched")
        return _with_child(tree, inside[0], _write_out(children(tree)[inside[0]], index, copies))
    if len(inside) == 1:
        return _with_child(tree, inside[0], _write_out(tree.items[inside[0]], index, copies))
    group = _always_taken(tree, index)
    found = None if group is None else _texts(_rebuild(group.item, _ungrouped))
    if found is None:
        copies.refuse("a backreference to a group with many texts, or one that may not have matched,")
    copies.take(tree, len(found))
    return either(_rebuild(tree, lambda part, text=text: _fixed(part, index, text)) for text in found)  # type: ignore[misc]


def _fixed(part: Tree, index: int, text: str) -> Tree:
    return Text(text) if isinstance(part, Group | Back) and part.index == index else part


def _ungrouped(part: Tree) -> Tree:
    return part.item if isinstance(part, Group) else part


def _always_taken(tree: Tree, index: int) -> Group | None:
    """The group, when every match of the tree goes through it exactly once."""
    if isinstance(tree, Group) and tree.index == index:
        return tree
    parts = children(tree) if isinstance(tree, Cat | Group) else ()
    return next((found for part in parts if (found := _always_taken(part, index)) is not None), None)


def _texts(tree: Tree) -> list[str] | None:
    """Every text of a plain tree, when they are few."""
    node = plain(tree)
    if node is None or isinstance(node, Not):
        return None
    if isinstance(node, Text):
        return [node.text]
    if isinstance(node, Chars):
        few = size(node.ranges) <= _MAX_TEXTS
        return [chr(c) for low, high in node.ranges for c in range(low, high + 1)] if few else None
    if isinstance(node, Alt):
        return _few([text for item in node.items for text in _texts(item) or [""] * (_MAX_TEXTS + 1)])
    if isinstance(node, Seq):
        return _joined(node.items)
    if isinstance(node, Repeat) and node.high is not None and node.high <= _MAX_TEXTS:
        counts = [_joined((node.item,) * n) for n in range(node.low, node.high + 1)]
        return _few([text for found in counts for text in found or [""] * (_MAX_TEXTS + 1)])
    return None


def _joined(items: tuple[Node, ...]) -> list[str] | None:
    texts = [""]
    for item in items:
        ends = _texts(item)
        if ends is None or len(texts) * len(ends) > _MAX_TEXTS:
            return None
        texts = [text + end for text in texts for end in ends]
    return texts


def _few(texts: list[str]) -> list[str] | None:
    return list(dict.fromkeys(texts)) if len(texts) <= _MAX_TEXTS else None


def _first_reference(tree: Tree) -> int | None:
    return next((part.index for part in _walk(tree) if isinstance(part, Back)), None)


def _holds(tree: Tree, index: int) -> bool:
    return any(isinstance(part, Group | Back) and part.index == index for part in _walk(tree))


def _walk(tree: Tree) -> list[Tree]:
    found, waiting = [], [tree]
    while waiting:
        part = waiting.pop()
        found.append(part)
        waiting += reversed(children(part))
    return found


def _with_child(tree: Tree, at: int, child: Tree) -> Tree:
    parts = list(children(tree))
    parts[at] = child
    return _with_children(tree, parts)


def _with_children(tree: Tree, parts: list[Tree]) -> Tree:
    if isinstance(tree, Cat):
        return cat(parts)
    if isinstance(tree, Or):
        return either(parts)
    if isinstance(tree, Many):
        return many(parts[0], tree.low, tree.high)
    if isinstance(tree, Around):
        return Around(tree.ahead, tree.negative, parts[0])
    if isinstance(tree, Group):
        return Group(tree.index, parts[0])
    return Atomic(parts[0], parts[-1]) if isinstance(tree, Atomic) else tree


def _rebuild(tree: Tree, change: Callable[[Tree], Tree]) -> Tree:
    """The tree with `change` applied to every part, inner ones first."""
    parts = [_rebuild(part, change) for part in children(tree)]
    return change(_with_children(tree, parts) if parts else tree)


def atomic(tree: Atomic, refuse: Refuse) -> Tree:
    """What an atomic part matches, without saying so. Refuses where that is not known."""
    item, other = plain(tree.item), plain(tree.other)
    if item is None or other is None:
        refuse("an atomic group or possessive quantifier over lookaround")
    if _one_match(item, other):
        return item
    if isinstance(item, Repeat) and isinstance(other, Repeat) and _one_match(item.item, other.item):
        ends = Around(True, True, other.item)  # as often as it goes: nothing more of it follows
        if item.high is None:
            return cat([item, ends])
        shorter = repeat(item.item, item.low, item.high - 1)
        return either([repeat(item.item, item.high, item.high), cat([shorter, ends])])
    if isinstance(item, Alt) and isinstance(other, Alt) and _one_match(*item.items, *other.items):
        return _ordered(item.items, other.items)
    refuse("an atomic group or possessive quantifier that drops some of its matches")


def _ordered(items: tuple[Node, ...], others: tuple[Node, ...]) -> Tree:
    """The first of the alternatives that matches; `others` are the same in the opposite sense."""
    found: list[Tree] = []
    for i, item in enumerate(items):
        found.append(cat([*(Around(True, True, before) for before in others[:i]), item]))
    return either(found)


def _one_match(*nodes: Node) -> bool:
    """Whether at most one match of each begins at any place, and never an empty one."""
    for node in nodes:
        low, high = bounds(node)
        if low == 0 or (low != high and intersects(node, seq(node, Repeat(EVERYTHING, 1, None)))):
            return False
    return True
