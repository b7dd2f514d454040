"""The grammar that every constraint becomes: rules over characters, and nothing an engine could read differently.

Front ends (regex, EBNF, JSON Schema, choice) build it, an engine compiles it. Terminals are strings and sets of
Unicode scalar values; an engine encodes them as UTF-8. `normalise` removes what can never finish, so from every
prefix that a normalised grammar allows, a member of the language can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sglite.constrained.charset import Ranges
from sglite.constrained.limits import Limits
from sglite.constrained.spec import ConstraintRefused


@dataclass(frozen=True, slots=True)
class Text:
    """A fixed string; the empty one matches the empty text."""

    text: str


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of a set."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Seq:
    """All items, in order."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alt:
    """One of the items; none at all matches nothing."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`item` from `low` to `high` times; high None is without end."""

    item: Node
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Limited:
    """The texts of `item` of at most `most` characters.

    Whoever writes it makes sure that a prefix which fits can be finished within the limit, or that another branch of
    the grammar can finish it: an engine counts characters, it does not look ahead.
    """

    item: Node
    most: int


@dataclass(frozen=True, slots=True)
class Ref:
    """The rule of that name."""

    name: str


Node: TypeAlias = Text | Chars | Seq | Alt | Repeat | Limited | Ref

EMPTY = Text("")
NOTHING = Alt(())


@dataclass(frozen=True)
class Grammar:
    """Rules and the name of the one to start from."""

    rules: Mapping[str, Node]
    root: str = "root"


def seq(*items: Node) -> Node:
    """A sequence, flattened, with neighbouring strings joined."""
    flat: list[Node] = []
    for item in items:
        for part in item.items if isinstance(item, Seq) else (item,):
            if isinstance(part, Text) and flat and isinstance(flat[-1], Text):
                flat[-1] = Text(flat[-1].text + part.text)
            elif part != EMPTY:
                flat.append(part)
    if any(part == NOTHING for part in flat):
        return NOTHING
    return flat[0] if len(flat) == 1 else Seq(tuple(flat)) if flat else EMPTY


def alt(items: Iterable[Node]) -> Node:
    """Alternatives, flattened, each once."""
    flat: dict[Node, None] = {}
    for item in items:
        for part in item.items if isinstance(item, Alt) else (item,):
            flat[part] = None
    return next(iter(flat)) if len(flat) == 1 else Alt(tuple(flat))


def repeat(item: Node, low: int, high: int | None) -> Node:
    """A repetition, simplified where nothing is repeated."""
    if high is not None and high < low:
        return NOTHING
    if high == 0 or item == EMPTY:
        return EMPTY
    if item == NOTHING or (isinstance(item, Chars) and not item.ranges):
        return NOTHING if low else EMPTY
    return item if (low, high) == (1, 1) else Repeat(item, low, high)


def optional(item: Node) -> Node:
    return repeat(item, 0, 1)


def lengths(node: Node) -> tuple[int, int | None]:
    """Fewest and most characters of a text of `node`, which holds no Ref; None is without bound."""
    if isinstance(node, Text):
        return len(node.text), len(node.text)
    if isinstance(node, Chars):
        return 1, 1
    if isinstance(node, Seq):
        return _sum_lengths([lengths(item) for item in node.items])
    if isinstance(node, Alt):
        bounds = [lengths(item) for item in node.items]
        highs = [high for _, high in bounds]
        return min((low for low, _ in bounds), default=0), None if None in highs else max(
            (h for h in highs if h is not None), default=0
        )
    if isinstance(node, Repeat):
        low, high = lengths(node.item)
        return low * node.low, None if node.high is None or high is None else high * node.high
    if isinstance(node, Limited):
        low, high = lengths(node.item)
        return low, node.most if high is None else min(high, node.most)
    raise TypeError(f"lengths of a reference to rule {node.name!r} are not defined")


def _sum_lengths(bounds: list[tuple[int, int | None]]) -> tuple[int, int | None]:
    highs = [high for _, high in bounds]
    return sum(low for low, _ in bounds), None if None in highs else sum(h for h in highs if h is not None)


def normalise(grammar: Grammar, limits: Limits) -> Grammar:
    """The same language without alternatives that can never finish and rules that are never reached.

    Raises ConstraintRefused when nothing is left, or when the grammar is larger than `limits` allow.
    """
    _check_size(grammar, limits)
    productive = _productive_rules(grammar)
    if grammar.root not in productive:
        raise ConstraintRefused("matches nothing: no text can satisfy it; relax what contradicts itself")
    kept: dict[str, Node] = {}
    waiting = [grammar.root]
    while waiting:
        name = waiting.pop()
        if name not in kept:
            kept[name] = _prune(grammar.rules[name], productive)
            _each_ref(kept[name], waiting.append)
    return Grammar(kept, grammar.root)


def _productive_rules(grammar: Grammar) -> set[str]:
    users: dict[str, set[str]] = {}
    for name, node in grammar.rules.items():
        _each_ref(node, lambda used, name=name: users.setdefault(used, set()).add(name))  # type: ignore[misc]
    productive: set[str] = set()
    waiting = list(grammar.rules)
    while waiting:
        name = waiting.pop()
        if name not in productive and _finishes(grammar.rules[name], productive):
            productive.add(name)
            waiting.extend(users.get(name, ()))
    return productive


def _finishes(node: Node, productive: set[str]) -> bool:
    if isinstance(node, Text):
        return True
    if isinstance(node, Chars):
        return bool(node.ranges)
    if isinstance(node, Seq):
        return all(_finishes(item, productive) for item in node.items)
    if isinstance(node, Alt):
        return any(_finishes(item, productive) for item in node.items)
    if isinstance(node, Repeat):
        return node.low == 0 or _finishes(node.item, productive)
    if isinstance(node, Limited):
        return _finishes(node.item, productive)
    return node.name in productive


def _prune(node: Node, productive: set[str]) -> Node:
    if isinstance(node, Seq):
        return seq(*(_prune(item, productive) for item in node.items))
    if isinstance(node, Alt):
        return alt(_prune(item, productive) for item in node.items if _finishes(item, productive))
    if isinstance(node, Repeat):
        if not _finishes(node.item, productive):
            return EMPTY
        return repeat(_prune(node.item, productive), node.low, node.high)
    return Limited(_prune(node.item, productive), node.most) if isinstance(node, Limited) else node


def _each_ref(node: Node, see: Callable[[str], object]) -> None:
    if isinstance(node, Ref):
        see(node.name)
    elif isinstance(node, Seq | Alt):
        for item in node.items:
            _each_ref(item, see)
    elif isinstance(node, Repeat | Limited):
        _each_ref(node.item, see)


def _check_size(grammar: Grammar, limits: Limits) -> None:
    nodes = weight = 0
    for node in grammar.rules.values():
        n, w = _measure(node, limits)
        nodes, weight = nodes + n, weight + w
    if nodes > limits.max_nodes:
        raise ConstraintRefused(
            f"too large: {nodes} grammar nodes, at most {limits.max_nodes}; split it or simplify it"
        )
    if weight > limits.max_weight:
        raise ConstraintRefused(
            f"too large: repetitions multiply to {weight} states, at most {limits.max_weight}; lower the counts"
        )


def _measure(node: Node, limits: Limits) -> tuple[int, int]:
    """Nodes as written, and states when every count is multiplied out."""
    if isinstance(node, Text):
        return 1, len(node.text)
    if isinstance(node, Chars):
        return 1 + len(node.ranges), 1 + len(node.ranges)
    if isinstance(node, Seq | Alt):
        parts = [_measure(item, limits) for item in node.items]
        return 1 + sum(n for n, _ in parts), 1 + sum(w for _, w in parts)
    if isinstance(node, Repeat):
        largest = node.high if node.high is not None else node.low
        if largest > limits.max_repeat:
            raise ConstraintRefused(f"a repetition of {largest} is more than {limits.max_repeat}; lower the count")
        n, w = _measure(node.item, limits)
        return n + 1, w * max(largest, 1) + 1
    return _measure(node.item, limits) if isinstance(node, Limited) else (1, 1)
