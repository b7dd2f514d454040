"""The grammar that every constraint becomes: rules over characters, and nothing an engine could read differently.

Front ends (regex, EBNF, JSON Schema, choice, structural tags) build it, an engine compiles it. Terminals are strings
and sets of Unicode scalar values; an engine encodes them as UTF-8. `normalise` removes what can never finish, so from
every prefix that a normalised grammar allows, a member of the language can be reached, but for what `Unique` and
`Guard` forbid when a value ends: those look at the text, not at the grammar.
"""

from __future__ import annotations

import dataclasses
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


@dataclass(frozen=True, slots=True)
class And:
    """The texts of every item. Its items hold regular nodes only (no Ref and none of the nodes below)."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Every text of Unicode scalar values that is not a text of `item`, which is regular."""

    item: Node


@dataclass(frozen=True, slots=True)
class JsonString:
    """The JSON strings, quotes included, whose value is a text of `item`, which is regular.

    A character is spelled as itself, with its short escape, or, below U+0020, as `\\u00XX`; where `item` treats all
    characters alike, with every escape that JSON has, a surrogate pair being one character.
    """

    item: Node


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Some of `items`, each at most once, in any order, with `separator` between them.

    Those whose index is in `required` occur. `rest`, when given, may stand for any number of further entries. The
    number of entries is from `low` to `high` (None: no limit). At most 4096 items.
    """

    items: tuple[Node, ...]
    required: frozenset[int]
    separator: Node
    low: int = 0
    high: int | None = None
    rest: Node | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """A JSON array or object, brackets included, inside which `Unique` compares."""

    item: Node


@dataclass(frozen=True, slots=True)
class Unique:
    """A text of `item`, a JSON value that is an item, or a JSON string that is a name, of the innermost `Scope`.

    As a JSON value it differs from every other one of that scope before it. `safe` says that a text which turns out
    to repeat an earlier one can always go on to become another, so that it never has to be taken back.
    """

    item: Node
    safe: bool = False


@dataclass(frozen=True, slots=True)
class Guard:
    """A text of `item` that `grammar.checks[check]` holds for, asked when the text ends."""

    item: Node
    check: int


@dataclass(frozen=True, slots=True)
class Special:
    """One token out of `ids`, whatever bytes it has. It stands for itself, not for its text."""

    ids: tuple[int, ...]


Node: TypeAlias = (
    Text | Chars | Seq | Alt | Repeat | Limited | Ref
    | And | Not | JsonString | Shuffle | Scope | Unique | Guard | Special
)  # fmt: skip

EMPTY = Text("")
NOTHING = Alt(())


Check: TypeAlias = Callable[[str], bool]


@dataclass(frozen=True)
class Grammar:
    """Rules, the name of the one to start from, and what `Guard` asks: each a pure function of a value's text."""

    rules: Mapping[str, Node]
    root: str = "root"
    checks: tuple[Check, ...] = ()


def seq(*items: Node) -> Node:
    """A sequence, flattened, with neighbouring strings joined."""
    flat: list[Node] = []
    last = None  # the text at the end of `flat`, if that is one
    for item in items:
        for part in item.items if item.__class__ is Seq else (item,):
            if part.__class__ is Text:
                if not part.text:
                    continue
                if last is not None:
                    flat.pop()
                    part = Text(last + part.text)
                last = part.text
            else:
                if part.__class__ is Alt and not part.items:
                    return NOTHING
                last = None
            flat.append(part)
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


def normalise(grammar: Grammar) -> Grammar:
    """The same language without alternatives that can never finish and rules that are never reached.

    Raises ConstraintRefused when nothing is left.
    """
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
    return Grammar(kept, grammar.root, grammar.checks)


def check_satisfiable(grammar: Grammar) -> None:
    """Raises ConstraintRefused when plainly no text can come to an end. What And and Not leave is not looked into."""
    if grammar.root not in _productive_rules(grammar):
        raise ConstraintRefused("matches nothing: no text can satisfy it; relax what contradicts itself")


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
    """Whether some text can come to an end; of And and Not it is assumed, an engine finds out."""
    if isinstance(node, Text | Not):
        return True
    if isinstance(node, Chars):
        return bool(node.ranges)
    if isinstance(node, Seq | And):
        return all(_finishes(item, productive) for item in node.items)
    if isinstance(node, Alt):
        return any(_finishes(item, productive) for item in node.items)
    if isinstance(node, Repeat):
        return node.low == 0 or _finishes(node.item, productive)
    if isinstance(node, Shuffle):
        return _shuffle_finishes(node, productive)
    if isinstance(node, Special):
        return bool(node.ids)
    return node.name in productive if isinstance(node, Ref) else _finishes(node.item, productive)


def _shuffle_finishes(node: Shuffle, productive: set[str]) -> bool:
    alive = {i for i, item in enumerate(node.items) if _finishes(item, productive)}
    if not node.required <= alive or (node.high is not None and len(node.required) > node.high):
        return False
    endless = node.rest is not None and _finishes(node.rest, productive)
    return endless or node.low <= len(alive)


def _prune(node: Node, productive: set[str]) -> Node:
    if isinstance(node, Seq):
        return seq(*(_prune(item, productive) for item in node.items))
    if isinstance(node, Alt):
        return alt(_prune(item, productive) for item in node.items if _finishes(item, productive))
    if isinstance(node, Repeat):
        if not _finishes(node.item, productive):
            return EMPTY
        return repeat(_prune(node.item, productive), node.low, node.high)
    if isinstance(node, Limited | Scope | Unique | Guard):
        return dataclasses.replace(node, item=_prune(node.item, productive))
    return _prune_shuffle(node, productive) if isinstance(node, Shuffle) else node


def _prune_shuffle(node: Shuffle, productive: set[str]) -> Node:
    kept = [i for i, item in enumerate(node.items) if _finishes(item, productive)]
    return Shuffle(
        tuple(_prune(node.items[i], productive) for i in kept),
        frozenset(kept.index(i) for i in node.required),
        _prune(node.separator, productive),
        node.low,
        node.high,
        _prune(node.rest, productive) if node.rest is not None and _finishes(node.rest, productive) else None,
    )


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly inside a node."""
    if isinstance(node, Shuffle):
        return (*node.items, node.separator, *(() if node.rest is None else (node.rest,)))
    if isinstance(node, Seq | Alt | And):
        return node.items
    if isinstance(node, Text | Chars | Ref | Special):
        return ()
    return (node.item,)


def _each_ref(node: Node, see: Callable[[str], object]) -> None:
    if isinstance(node, Ref):
        see(node.name)
    else:
        for item in children(node):
            _each_ref(item, see)


def check_expanded(grammar: Grammar, limits: Limits) -> None:
    """For an engine that multiplies counts out: refuse a grammar that is too large once that is done."""
    nodes = sum(_count(node) for node in grammar.rules.values())
    if nodes > limits.max_nodes:
        raise ConstraintRefused(
            f"too large: {nodes} grammar nodes, at most {limits.max_nodes}; split it or simplify it"
        )
    weight = sum(_weight(node, limits) for node in grammar.rules.values())
    if weight > limits.max_weight:
        raise ConstraintRefused(
            f"too large: repetitions multiply to {weight} states, at most {limits.max_weight}; lower the counts"
        )


def _count(node: Node) -> int:
    own = 1 + len(node.ranges) if isinstance(node, Chars) else 1
    return own + sum(_count(item) for item in children(node))


def _weight(node: Node, limits: Limits) -> int:
    """States when every count is multiplied out."""
    if isinstance(node, Text):
        return len(node.text)
    if isinstance(node, Chars):
        return 1 + len(node.ranges)
    if isinstance(node, Repeat):
        largest = node.high if node.high is not None else node.low
        if largest > limits.max_repeat:
            raise ConstraintRefused(f"a repetition of {largest} is more than {limits.max_repeat}; lower the count")
        return _weight(node.item, limits) * max(largest, 1) + 1
    return 1 + sum(_weight(item, limits) for item in children(node))
