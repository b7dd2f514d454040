"""Regular languages of characters: questions about nodes of Text, Chars, Seq, Alt, Repeat, And and Not.

This is the specification of `csrc/automaton.cpp`, which builds the automata that run, and what front ends ask to find
contradictions, to subtract and to list. What the structure of a node tells is answered from it; for the rest the
derivatives of `fsm_terms` are followed as far as the answer needs. Every question is bounded: TooLarge, a
ConstraintRefused, is raised instead of an answer that would take too many states or steps.

Other nodes (Ref, JsonString and so on) raise TypeError. All functions may be called from several threads.
"""

from __future__ import annotations

import threading
from functools import lru_cache

from sglite.constrained import fsm_native
from sglite.constrained.fsm_bytes import ByteFsm
from sglite.constrained.fsm_plain import (
    is_plain,
    plain_finite,
    plain_is_empty,
    plain_lengths,
    plain_matches,
    plain_shortest,
)
from sglite.constrained.fsm_table import Fsm
from sglite.constrained.fsm_terms import State, Terms, TooLarge
from sglite.constrained.grammar import Alt, And, Node, Not, Text

__all__ = [
    "ByteFsm",
    "Fsm",
    "TooLarge",
    "compile_expr",
    "finite",
    "includes",
    "intersects",
    "is_empty",
    "lengths",
    "matches",
    "shortest",
]

MAX_STATES = 10_000
_SIMULATED = 256  # characters; following positions takes quadratic time, so longer texts go through the automaton
_FEW = 1_000  # texts that are better tried one by one
_KEPT = 1_000  # terms a remembered expression may hold


class _Lazy:
    """The derivatives of one expression, remembered for the next question about it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._terms = Terms(node)
        self._lock = threading.Lock()

    def matches(self, text: str) -> bool:
        with self._lock:
            terms = self._fresh()
            state = terms.start
            for char in text:
                number = terms.partition.of(char)
                if number < 0 or not state:
                    return False
                rest, by = terms.row(state)
                state = by.get(number, rest)
            return terms.accepts(state)

    def shortest(self) -> str | None:
        with self._lock:
            return _search(self._fresh())

    def table(self, max_states: int) -> Fsm:
        with self._lock:
            return Fsm(self._fresh(), max_states)

    def _fresh(self) -> Terms:
        if self._terms.size > _KEPT:
            self._terms = Terms(self._node)
        self._terms.work = 0
        return self._terms


@lru_cache(maxsize=48)
def _lazy(node: Node) -> _Lazy:
    return _Lazy(node)


@lru_cache(maxsize=32)
def compile_expr(node: Node, max_states: int = MAX_STATES) -> Fsm:
    """The automaton of a node. Raises TooLarge when it needs more than `max_states` states."""
    return _lazy(node).table(max_states)


def matches(node: Node, text: str) -> bool:
    """Whether `text` is a text of `node`. One with a lone surrogate is a text of nothing."""
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        return False
    return _matches(node, text)


def _matches(node: Node, text: str) -> bool:
    if isinstance(node, And):
        return all(_matches(item, text) for item in node.items)
    if isinstance(node, Not):
        return not _matches(node.item, text)
    if isinstance(node, Alt):
        return any(_matches(item, text) for item in node.items)
    if isinstance(node, Text):
        return node.text == text
    if is_plain(node) and len(text) <= _SIMULATED:
        return plain_matches(node, text)
    return _lazy(node).matches(text)


def is_empty(node: Node) -> bool:
    """Whether `node` has no text."""
    if is_plain(node):
        return plain_is_empty(node)
    if isinstance(node, Alt):
        return all(is_empty(item) for item in node.items)
    if isinstance(node, And) and (texts := _listed(node, _FEW)) is not None:
        return not texts
    if _has_obvious_text(node):
        return False
    known = fsm_native.is_empty(node)
    return _lazy(node).shortest() is None if known is None else known


def _listed(node: And, limit: int) -> list[str] | None:
    """The texts of an intersection one of whose items has at most `limit`."""
    for item in node.items:
        texts = plain_finite(item, limit) if is_plain(item) else None
        if texts is not None:
            others = [other for other in node.items if other is not item]
            return [text for text in texts if all(_matches(other, text) for other in others)]
    return None


def _has_obvious_text(node: Node) -> bool:
    """Whether one of a few texts that come to mind belongs to `node`. Cheap, and most often enough."""
    if isinstance(node, Not):
        return any(not _matches(node.item, text) for text in ("", "a", "0"))
    if not isinstance(node, And):
        return False
    try:
        guesses = [plain_shortest(item) for item in node.items if is_plain(item)]
    except TooLarge:
        return False
    texts = dict.fromkeys(["", "a", *(guess for guess in guesses if guess is not None and len(guess) <= _SIMULATED)])
    return any(all(_matches(item, text) for item in node.items) for text in texts)


def intersects(left: Node, right: Node) -> bool:
    """Whether some text belongs to both."""
    return not is_empty(And((left, right)))


def includes(outer: Node, inner: Node) -> bool:
    """Whether every text of `inner` is a text of `outer`."""
    return outer == inner or is_empty(And((inner, Not(outer))))


def shortest(node: Node) -> str | None:
    """A shortest text, of printable characters where some would do; None when there is no text."""
    return plain_shortest(node) if is_plain(node) else _lazy(node).shortest()


def _search(terms: Terms) -> str | None:
    """Breadth first: the first accepting state."""
    examples: list[str] | None = None
    reached: dict[State, tuple[State, int] | None] = {terms.start: None}
    waiting = [terms.start]
    for state in waiting:  # grows while it is read
        if terms.accepts(state):
            return _spelled(state, reached, examples or [])
        if examples is None:
            examples = terms.partition.examples()
        rest, by = terms.row(state)
        free = next((number for number in range(terms.partition.count) if number not in by), None)
        for number, target in sorted([*by.items()] if free is None else [(free, rest), *by.items()]):
            if target and target not in reached:
                reached[target] = (state, number)
                waiting.append(target)
        if len(waiting) > MAX_STATES:
            raise TooLarge(f"too complex: more than {MAX_STATES} states; lower the counts or simplify the patterns")
    return None


def _spelled(state: State, reached: dict[State, tuple[State, int] | None], examples: list[str]) -> str:
    text: list[str] = []
    step = reached[state]
    while step is not None:
        text.append(examples[step[1]])
        step = reached[step[0]]
    return "".join(reversed(text))


def finite(node: Node, limit: int) -> list[str] | None:
    """Every text of `node`, each once; None when there are more than `limit`.

    In the order written where the node has neither And nor Not, else the shorter first.
    """
    if is_plain(node):
        return plain_finite(node, limit)
    if isinstance(node, And) and (listed := _listed(node, max(limit, _FEW))) is not None:
        return sorted(listed, key=_by_length) if len(listed) <= limit else None
    table = compile_expr(node)
    order = [] if table.is_empty() else table.topological()
    if order is None or _count(table, order) > limit:
        return None
    return sorted(_texts(table), key=_by_length) if order else []


def _by_length(text: str) -> tuple[int, str]:
    return len(text), text


def _count(table: Fsm, order: list[int]) -> int:
    counts = [0] * len(table.accepting)
    for state in reversed(order):
        following = sum(counts[target] * table.partition.sizes[number] for number, target in table.targets(state))
        counts[state] = following + table.accepting[state]
    return counts[0]


def _texts(table: Fsm) -> list[str]:
    found: list[str] = []
    waiting = [("", 0)]
    while waiting:
        text, state = waiting.pop()
        if table.accepting[state]:
            found.append(text)
        for low, high, target in table.ranges(state):
            waiting.extend((text + chr(code), target) for code in range(low, high + 1))
    return found


def lengths(node: Node) -> tuple[int, int | None]:
    """Fewest and most characters of a text, the most being None without a bound; (1, 0) when there is no text."""
    if is_plain(node):
        return plain_lengths(node) or (1, 0)
    table = compile_expr(node)
    if table.is_empty():
        return 1, 0
    low = len(_lazy(node).shortest() or "")
    order = table.topological()
    if order is None:
        return low, None
    highs = [0] * len(table.accepting)
    for state in reversed(order):
        highs[state] = max((highs[target] + 1 for _, target in table.targets(state)), default=0)
    return low, highs[0]
