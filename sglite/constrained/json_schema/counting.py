"""Objects whose properties are counted, or of which some have to meet a demand: the automaton of `objects`.

A state (i, c, p): the first i declared properties are decided, c of them are there, the demands p are still to be
met. Undeclared properties follow; while a demand is open they are counted one by one, after that by a repetition.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from sglite.constrained.grammar import EMPTY, NOTHING, Node, Ref, Unique, alt, seq
from sglite.constrained.json_schema.cells import Cell
from sglite.constrained.json_schema.listing import Values, name_node
from sglite.constrained.json_schema.normal import Conjunction, Rule, both
from sglite.constrained.json_schema.tail import Tail

_MAX_STATES = 20_000
_MAX_COUNT = 256  # properties counted one by one while a demand is open
_MAX_SOME = 3

Open = frozenset[int]  # the demands that are still to be met


class Entry(NamedTuple):
    """A declared property that may occur."""

    name: str
    value: Conjunction
    required: bool


class Ready(NamedTuple):
    """A shape without names that are forbidden and counts that say nothing."""

    entries: list[Entry]
    cells: list[Cell]
    low: int
    high: int | None
    some: tuple[Rule, ...]


class Counting:
    """The rules of one object, named after `rule`."""

    def __init__(self, values: Values, ready: Ready, rule: str) -> None:
        self._values = values
        self._rule = rule
        self._entries = ready.entries
        self._cells = ready.cells
        self._tail = Tail(values, ready.cells, f"{rule}.more", listing=not ready.some)
        self._low, self._high, self._some = ready.low, ready.high, ready.some
        self.wide = False  # whether something is left for a guard

    def build(self) -> Node:
        """What stands between the brackets."""
        self._relax()
        cap = max(1, self._low, self._high or 0)  # counts above are all alike
        every: Open = frozenset(range(len(self._some)))
        waiting = [(0, 0, every)]
        rules = self._values.rules
        while waiting:
            state = i, c, p = waiting.pop()
            name = self._name(*state)
            if name in rules:
                continue
            if i == len(self._entries):
                rules[name] = self._end(c, p)
                continue
            moves = [((i + 1, min(c + 1, cap), left), node) for left, node in self._written(i, c, p)]
            options = [seq(node, Ref(self._name(*to))) for to, node in moves]
            if not self._entries[i].required:
                moves.append(((i + 1, c, p), EMPTY))
                options.append(Ref(self._name(i + 1, c, p)))
            rules[name] = alt(options)
            waiting += [to for to, _ in moves]
        return Ref(self._name(0, 0, every))

    def _relax(self) -> None:
        """Leave out what would take too many states."""
        if len(self._some) > _MAX_SOME:
            self._some, self.wide = (), True
        if self._some and max(self._low, self._high or 0) > _MAX_COUNT:
            self._low, self._high, self.wide = 0, None, True
        counts = min(max(1, self._low, self._high or 0), len(self._entries)) + 1
        if len(self._entries) * counts << len(self._some) > _MAX_STATES:
            self._low, self._high, self.wide = 0, None, True
        if len(self._entries) * 2 << len(self._some) > 2 * _MAX_STATES:
            self._some, self.wide = (), True

    def _name(self, i: int, c: int, p: Open) -> str:
        return f"{self._rule}.{i}.{c}.{_code(p)}"

    def _written(self, i: int, c: int, p: Open) -> Iterator[tuple[Open, Node]]:
        """Property i there: the demands open then, and what is written."""
        if self._high is not None and c >= self._high:
            return
        entry = self._entries[i]
        able = [k for k in sorted(p) if self._some[k].names.has(entry.name)]
        comma = self._values.layout.comma if c else EMPTY
        name = name_node(entry.name, self._values.layout)
        for left, value in self._meeting(p, able, entry.value):
            yield left, seq(comma, name, self._values.layout.colon, self._values.value(value))

    def _meeting(self, p: Open, able: list[int], value: Conjunction) -> Iterator[tuple[Open, Conjunction]]:
        """The demands left open by a value, and what it has to satisfy for that."""
        for count in range(len(able) + 1):
            for met in combinations(able, count):
                wanted = value
                for k in met:
                    wanted = both(wanted, self._some[k].value)
                yield p.difference(met), wanted

    def _end(self, c: int, p: Open) -> Node:
        low, high = max(0, self._low - c), None if self._high is None else self._high - c
        if p:
            return self._demanded(p, low, high, c == 0)
        if not c:
            return self._tail.alone(low, high)
        following = self._tail.following(low, high)
        return NOTHING if following == NOTHING else seq(following, self._values.layout.space)

    def _demanded(self, p: Open, low: int, high: int | None, first: bool) -> Node:
        """Undeclared properties while demands are open, as rules of (p, low, high, first)."""
        layout, rules = self._values.layout, self._values.rules
        start = (p, low, high, first)
        waiting = [start]
        while waiting:
            p, low, high, first = state = waiting.pop()
            name = self._tail_name(*state)
            if name in rules:
                continue
            rules[name] = NOTHING
            if not p:
                following = self._tail.following(low, high)
                rules[name] = NOTHING if following == NOTHING else seq(following, layout.space)
            elif high != 0:
                options = []
                for left, entry in self._undeclared(p):
                    to = (left, max(0, low - 1), None if high is None else high - 1, False)
                    waiting.append(to)
                    options.append(seq(EMPTY if first else layout.comma, entry, Ref(self._tail_name(*to))))
                rules[name] = alt(options)
        return Ref(self._tail_name(*start))

    def _tail_name(self, p: Open, low: int, high: int | None, first: bool) -> str:
        return f"{self._rule}.t{_code(p)}.{low}.{'' if high is None else high}.{int(first)}"

    def _undeclared(self, p: Open) -> Iterator[tuple[Open, Node]]:
        for cell in self._cells:
            name = Unique(cell.names.node(), cell.endless)
            for left, value in self._meeting(p, [k for k in cell.meets if k in p], cell.value):
                yield left, seq(name, self._values.layout.colon, self._values.value(value))


def _code(p: Open) -> int:
    return sum(1 << k for k in p)
