"""Derivatives of a regular expression: what may follow once a character has been read, found out as it is asked.

A state is a set of terms, any of which the rest of the text must match. A term is an item and what comes after it
(Antimirov's partial derivatives); `And` and `Not` hold states of their operands. So intersection and complement cost
no more than the states that are visited, and nothing is built that nobody looks at.

Characters that no part of the expression tells apart form one class. Class 0 holds the most of them, and a row says
where class 0 leads and which other classes lead elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from sglite.constrained.charset import EVERY
from sglite.constrained.fsm_partition import Partition
from sglite.constrained.grammar import Alt, And, Chars, Node, Not, Repeat, Seq, Text
from sglite.constrained.spec import ConstraintRefused

MAX_TERMS = 100_000
MAX_WORK = 500_000

State: TypeAlias = frozenset[int]
Row: TypeAlias = tuple[State, dict[int, State]]  # where class 0 leads, and the classes that lead elsewhere
_Item: TypeAlias = "Node | _Both | _Neither"
Edge: TypeAlias = tuple[bool, frozenset[int], int]  # (True: every class but these, False: these), the term they lead to

END = 0
ALL = 1
NONE: State = frozenset()
EVERYTHING: State = frozenset((ALL,))


@dataclass(frozen=True, slots=True)
class _Both:
    """Every one of the states."""

    states: frozenset[State]


@dataclass(frozen=True, slots=True)
class _Neither:
    """What the state does not match."""

    state: State


class TooLarge(ConstraintRefused):
    """A regular expression needs more states or steps than are allowed."""


class Terms:
    """The terms of one expression, numbered as they turn up, and the rows of states.

    Raises TooLarge after MAX_TERMS terms or MAX_WORK steps.
    """

    def __init__(self, node: Node) -> None:
        self.partition = Partition(node)
        self._root = node  # terms name nodes by identity, so they must stay
        self._words: dict[tuple[str, ...], Alt] = {}
        self._nullable: dict[int, bool] = {}
        self._numbers: dict[tuple[object, ...], int] = {}
        # What a term is: an item, two counts (its place in a text, or low and high of a repetition), the term after it.
        nothing: tuple[_Item, int, int | None, int] = (Text(""), 0, 0, END)
        self._items = [nothing, nothing]
        self._accepts: list[bool] = [True, True]
        self._rows: list[Row | None] = [(NONE, {}), (EVERYTHING, {})]
        self._unions: dict[State, Row] = {}
        self.work = 0
        self.start = self._state((self._cons(node, END),))

    @property
    def size(self) -> int:
        """Terms and states remembered."""
        return len(self._items) + len(self._unions)

    def accepts(self, state: State) -> bool:
        """Whether the text may end here."""
        accepts = self._accepts
        return any(accepts[term] for term in state)

    def row(self, state: State) -> Row:
        """Where every class of characters leads."""
        if len(state) == 1:
            (term,) = state
            return self._rows[term] or self._term_row(term)
        row = self._unions.get(state)
        if row is None:
            row = self._unions[state] = self._union([self._rows[term] or self._term_row(term) for term in state])
        return row

    def _union(self, parts: list[Row]) -> Row:
        rest = self._state(term for part in parts for term in part[0])
        touched = {number for part in parts for number in part[1]}
        self._spend((len(touched) + 1) * sum(len(part[0]) + 1 for part in parts))
        by: dict[int, State] = {}
        for number in touched:
            target = self._state(term for part in parts for term in part[1].get(number, part[0]))
            if target != rest:
                by[number] = target
        return rest, by

    def _spend(self, steps: int) -> None:
        self.work += steps
        if self.work > MAX_WORK:
            raise TooLarge(f"too complex: more than {MAX_WORK} steps to work it out; simplify the patterns")

    def _state(self, terms: Iterable[int]) -> State:
        state = frozenset(terms)
        return EVERYTHING if ALL in state else state

    # Terms

    def _number(self, key: tuple[object, ...], item: tuple[_Item, int, int | None, int], accepts: bool) -> int:
        found = self._numbers.get(key)
        if found is None:
            found = len(self._items)
            if found >= MAX_TERMS:
                raise TooLarge(f"too complex: more than {MAX_TERMS} partial matches; lower the counts")
            self._items.append(item)
            self._accepts.append(accepts and self._accepts[item[3]])
            self._rows.append(None)
            self._numbers[key] = found
        return found

    def _cons(self, node: Node, after: int) -> int:
        """`node`, then `after`."""
        if isinstance(node, Repeat) and not _contradictory(node):
            return self._repeat(node, node.low, node.high, after)
        if isinstance(node, Text):
            return self._text(node, 0, after)
        return self._number((id(node), after), (node, 0, 0, after), self._is_nullable(node))

    def _text(self, node: Text, at: int, after: int) -> int:
        if at == len(node.text):
            return after
        return self._number((id(node), at, after), (node, at, 0, after), False)

    def _repeat(self, node: Repeat, low: int, high: int | None, after: int) -> int:
        if high == 0:
            return after
        if high is None and low == 0 and after == END and isinstance(node.item, Chars) and node.item.ranges == EVERY:
            return ALL
        key = (id(node), low, high, after)
        return self._number(key, (node, low, high, after), low == 0 or self._is_nullable(node.item))

    def _both(self, states: list[State], after: int) -> State:
        """Every one of `states`, then `after`."""
        if NONE in states:
            return NONE
        kept = frozenset(state for state in states if state != EVERYTHING)
        if not kept:
            return self._neither(NONE, after)
        if len(kept) == 1 and after == END:
            return next(iter(kept))
        accepts = all(self.accepts(state) for state in kept)
        return frozenset((self._number(("and", kept, after), (_Both(kept), 0, 0, after), accepts),))

    def _neither(self, state: State, after: int) -> State:
        """Whatever `state` does not match, then `after`."""
        if state == EVERYTHING:
            return NONE
        if not state and after == END:
            return EVERYTHING
        number = self._number(("not", state, after), (_Neither(state), 0, 0, after), not self.accepts(state))
        return frozenset((number,))

    def _is_nullable(self, node: Node) -> bool:
        found = self._nullable.get(id(node))
        if found is None:
            found = self._nullable[id(node)] = self._find_nullable(node)
        return found

    def _find_nullable(self, node: Node) -> bool:
        if isinstance(node, Text):
            return not node.text
        if isinstance(node, Seq | And):
            return all(self._is_nullable(item) for item in node.items)
        if isinstance(node, Alt):
            return any(self._is_nullable(item) for item in node.items)
        if isinstance(node, Repeat):
            return not _contradictory(node) and (node.low == 0 or self._is_nullable(node.item))
        return isinstance(node, Not) and not self._is_nullable(node.item)

    # Rows

    def _term_row(self, term: int) -> Row:
        item, _, _, after = self._items[term]
        if isinstance(item, _Both) and after == END:  # a state of an intersection: nothing else to join
            row = self._rows[term] = self._both_row(item.states, after)
            return row
        edges: list[Edge] = []
        at = term
        while at > ALL:
            item, low, high, after = self._items[at]
            if not self._edges(item, low, high, after, edges):
                break
            at = after
        if at == ALL:
            edges.append((True, NONE, ALL))
        row = self._rows[term] = self._gather(edges)
        return row

    def _gather(self, edges: list[Edge]) -> Row:
        rest = self._state(term for outside, _, term in edges if outside)
        by: dict[int, list[int]] = {number: [] for _, numbers, _ in edges for number in numbers}
        self._spend(len(edges) + len(by))
        for outside, numbers, term in edges:
            if outside:
                for number, terms in by.items():
                    if number not in numbers:
                        terms.append(term)
            else:
                for number in numbers:
                    by[number].append(term)
        rows = ((number, self._state(terms)) for number, terms in by.items())
        return rest, {number: state for number, state in rows if state != rest}

    def _edges(self, item: _Item, low: int, high: int | None, after: int, edges: list[Edge]) -> bool:
        """Append what reading one character of `item` leads to, `after` behind it; whether `item` may be empty."""
        if isinstance(item, Text):
            if low < len(item.text) and (number := self.partition.of(item.text[low])) > 0:
                edges.append((False, frozenset((number,)), self._text(item, low + 1, after)))
        elif isinstance(item, Chars):
            edges.append((*self.partition.of_set(item.ranges), after))
        elif isinstance(item, Seq):
            self._sequence_edges(item, after, edges)
        elif isinstance(item, Alt):
            self._choice_edges(item, after, edges)
        elif isinstance(item, Repeat):
            return self._repeat_edges(item, low, high, after, edges)
        else:
            states = _Both(frozenset(map(self._alone, item.items))) if isinstance(item, And) else item
            states = _Neither(self._alone(item.item)) if isinstance(item, Not) else states
            if isinstance(states, _Both):
                edges.extend(_row_edges(self._both_row(states.states, after)))
                return all(self.accepts(state) for state in states.states)
            assert isinstance(states, _Neither)
            edges.extend(_row_edges(self._neither_row(states.state, after)))
            return not self.accepts(states.state)
        return self._is_nullable(item)

    def _item_edges(self, node: Node, after: int, edges: list[Edge]) -> bool:
        low, high = (node.low, node.high) if isinstance(node, Repeat) else (0, 0)
        return self._edges(node, low, high, after, edges)

    def _repeat_edges(self, node: Repeat, low: int, high: int | None, after: int, edges: list[Edge]) -> bool:
        if _contradictory(node):
            return False
        nullable = self._is_nullable(node.item)
        if high != 0:
            # An item that may be empty makes any smaller number of them as good, so only the most counts.
            fewer = 0 if nullable else max(low - 1, 0)
            then = self._repeat(node, fewer, None if high is None else high - 1, after)
            self._item_edges(node.item, then, edges)
        return low == 0 or nullable

    def _sequence_edges(self, node: Seq, after: int, edges: list[Edge]) -> None:
        rest = [after]  # what comes after each item, the last one first
        for item in reversed(node.items[1:]):
            rest.append(self._cons(item, rest[-1]))
        for item in node.items:
            if not self._item_edges(item, rest.pop(), edges):
                break

    def _choice_edges(self, node: Alt, after: int, edges: list[Edge]) -> None:
        begins: dict[str, list[str]] = {}  # fixed strings by their first character, so that states stay small
        for item in node.items:
            if isinstance(item, Text):
                if item.text:
                    begins.setdefault(item.text[0], []).append(item.text[1:])
            else:
                self._item_edges(item, after, edges)
        for char, tails in begins.items():
            if (number := self.partition.of(char)) > 0:
                edges.append((False, frozenset((number,)), self._words_term(tuple(tails), after)))

    def _words_term(self, words: tuple[str, ...], after: int) -> int:
        if words == ("",):
            return after
        node = self._words.get(words)
        if node is None:
            node = self._words[words] = Alt(tuple(Text(word) for word in words))
        return self._cons(node, after)

    def _alone(self, node: Node) -> State:
        return self._state((self._cons(node, END),))

    def _both_row(self, states: frozenset[State], after: int) -> Row:
        rows = [self.row(state) for state in states]
        touched = {number for _, by in rows for number in by}
        self._spend(len(touched) * len(rows) + 1)
        end = self._both([rest for rest, _ in rows], after)
        found = ((number, self._both([by.get(number, rest) for rest, by in rows], after)) for number in touched)
        return end, {number: state for number, state in found if state != end}

    def _neither_row(self, state: State, after: int) -> Row:
        rest, by = self.row(state)
        self._spend(len(by) + 1)
        end = self._neither(rest, after)
        return end, {number: self._neither(target, after) for number, target in by.items()}


def _row_edges(row: Row) -> list[Edge]:
    rest, by = row
    touched = frozenset(by)
    edges: list[Edge] = [(True, touched, term) for term in rest]
    edges.extend((False, frozenset((number,)), term) for number, state in by.items() for term in state)
    return edges


def _contradictory(node: Repeat) -> bool:
    return node.high is not None and node.high < node.low
