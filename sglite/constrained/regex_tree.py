"""A pattern as it is read: regular nodes of the grammar, and around them what looks beyond its own text.

A part without anything that looks is a plain grammar node already; the constructors here keep it that way. `Near` and
`Side` are conditions on a position. They are what anchors, word boundaries and lookaround (`Around`) become.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from sglite.constrained.charset import Ranges
from sglite.constrained.grammar import (
    EMPTY,
    Alt,
    And,
    Chars,
    Node,
    Not,
    Repeat,
    Seq,
    Text,
    alt,
    repeat,
    seq,
)


@dataclass(frozen=True, slots=True)
class Cat:
    """All items, in order."""

    items: tuple[Tree, ...]
    _hash: int = field(init=False, repr=False, compare=False)  # large trees are looked up again and again

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((Cat, self.items)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Or:
    """One of the items."""

    items: tuple[Tree, ...]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((Or, self.items)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Many:
    """`item` from `low` to `high` times; high None is without end."""

    item: Tree
    low: int
    high: int | None
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((Many, self.item, self.low, self.high)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Near:
    """The next character (`ahead`) or the one before is of a set; `edge` tells whether none at all will do."""

    ahead: bool
    ranges: Ranges
    edge: bool


@dataclass(frozen=True, slots=True)
class Side:
    """The whole text from here (`ahead`), or up to here, is of `node`.

    Of a longer text its nearest `reach` characters decide; None is all of them.
    """

    ahead: bool
    node: Node
    reach: int | None


@dataclass(frozen=True, slots=True)
class Around:
    """Lookaround as written: `item` matches from here or up to here, or does not."""

    ahead: bool
    negative: bool
    item: Tree


@dataclass(frozen=True, slots=True)
class Both:
    """The rest of the text is of every item. Only in what `regex_automaton` derives."""

    items: tuple[Tree, ...]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((Both, self.items)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Atomic:
    """The first match of `item` alone. `other` is the same read with the opposite `sense`."""

    item: Tree
    other: Tree


@dataclass(frozen=True, slots=True)
class Group:
    """A numbered group that is referred to."""

    index: int
    item: Tree


@dataclass(frozen=True, slots=True)
class Back:
    """The text that the group matched."""

    index: int


Tree: TypeAlias = Node | Cat | Or | Many | Near | Side | Around | Both | Atomic | Group | Back

_LOOKING = (Cat, Or, Many, Near, Side, Around, Both, Atomic, Group, Back)


def plain(tree: Tree) -> Node | None:
    """The grammar node that a tree is when nothing in it looks beyond itself."""
    return None if isinstance(tree, _LOOKING) else tree


def cat(items: Iterable[Tree]) -> Tree:
    """A sequence, flattened; neighbouring plain parts are one."""
    flat: list[Tree] = []
    run: list[Node] = []
    for item in items:
        for part in item.items if isinstance(item, Cat) else (item,):
            node = plain(part)
            if node is not None:
                run.append(node)
                continue
            flat += [joined] if (joined := seq(*run)) != EMPTY else []
            flat.append(part)
            run = []
    flat += [joined] if (joined := seq(*run)) != EMPTY else []
    return flat[0] if len(flat) == 1 else Cat(tuple(flat)) if flat else EMPTY


def either(items: Iterable[Tree]) -> Tree:
    """Alternatives, each once; plain ones are one."""
    nodes: list[Node] = []
    others: dict[Tree, None] = {}
    for item in items:
        for part in item.items if isinstance(item, Or) else (item,):
            node = plain(part)
            if node is None:
                others[part] = None
            else:
                nodes.append(node)
    if not others:
        return alt(nodes)
    found = ([alt(nodes)] if nodes else []) + list(others)
    return found[0] if len(found) == 1 else Or(tuple(found))


def many(item: Tree, low: int, high: int | None) -> Tree:
    """A repetition. A condition on a position is met any number of times when it is met once."""
    node = plain(item)
    if node is not None:
        return repeat(node, low, high)
    if high == 0 or (low == 0 and isinstance(item, Near | Side | Around)):
        return EMPTY
    return item if (low, high) == (1, 1) or isinstance(item, Near | Side | Around) else Many(item, low, high)


def children(tree: Tree) -> tuple[Tree, ...]:
    """The parts of a tree, in the order of the text; none of a plain one."""
    if isinstance(tree, Cat | Or | Both):
        return tree.items
    if isinstance(tree, Atomic):
        return tree.item, tree.other
    if isinstance(tree, Many | Around | Group):
        return (tree.item,)
    return ()


def bounds(tree: Tree) -> tuple[int, int | None]:
    """Fewest and most characters that a match can take: bounds, not always met."""
    if isinstance(tree, Text):
        return len(tree.text), len(tree.text)
    if isinstance(tree, Chars):
        return 1, 1
    if isinstance(tree, Seq | Cat):
        parts = [bounds(item) for item in tree.items]
        return sum(low for low, _ in parts), _all(sum, [high for _, high in parts])
    if isinstance(tree, Alt | Or):
        parts = [bounds(item) for item in tree.items]
        return min((low for low, _ in parts), default=0), _all(_largest, [high for _, high in parts])
    if isinstance(tree, And):
        parts = [bounds(item) for item in tree.items]
        known = [high for _, high in parts if high is not None]
        return max((low for low, _ in parts), default=0), min(known, default=None)
    if isinstance(tree, Repeat | Many):
        low, high = bounds(tree.item)
        return low * tree.low, 0 if high == 0 else None if high is None or tree.high is None else high * tree.high
    if isinstance(tree, Group | Atomic):
        return bounds(tree.item)
    return (0, 0) if isinstance(tree, Near | Side | Around) else (0, None)


def _largest(numbers: list[int]) -> int:
    return max(numbers, default=0)


def _all(fold: Callable[[list[int]], int], values: list[int | None]) -> int | None:
    numbers = [value for value in values if value is not None]
    return fold(numbers) if len(numbers) == len(values) else None


def nullable(node: Node) -> bool:
    """Whether the empty text is one of a regular node's."""
    if isinstance(node, Text):
        return not node.text
    if isinstance(node, Seq | And):
        return all(nullable(item) for item in node.items)
    if isinstance(node, Alt):
        return any(nullable(item) for item in node.items)
    if isinstance(node, Repeat):
        return node.low == 0 or nullable(node.item)
    if isinstance(node, Not):
        return not nullable(node.item)
    return False
