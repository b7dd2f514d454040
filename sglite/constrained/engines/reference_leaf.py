"""Regular pieces of a grammar for the reference engine: by derivatives, character by character, then byte by byte.

Everything here is the plainest thing that is right: the automaton of characters is built whole, made minimal, and
what cannot be finished is cut off; bytes are followed by asking which spelled characters begin like what was read.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterator

from sglite.constrained import charset
from sglite.constrained.engines.reference_derivatives import Expressions
from sglite.constrained.grammar import Alt, And, Chars, JsonString, Node, Not, Repeat, Seq, Text
from sglite.constrained.spec import ConstraintRefused

State = tuple[int, bytes]
"""A state of the automaton of characters, and the bytes of a character that has been begun. A JSON string is in
state (-1, b"") before its first quote and in (-2, b"") after its last."""

_MAX_STATES = 2_000
_OPEN: State = (-1, b"")
_DONE: State = (-2, b"")
_SHORT = {'"': b'\\"', "\\": b"\\\\", "\b": b"\\b", "\f": b"\\f", "\n": b"\\n", "\r": b"\\r", "\t": b"\\t"}
_HEX = b"0123456789abcdefABCDEF"


class Letters:
    """The automaton of characters: every state that can be finished.

    `rows[s]` maps the number of an interval of characters to the next state; an interval that is missing is dead.
    """

    def __init__(self, node: Node) -> None:
        self.firsts = sorted(_points(node))
        lasts = [*(first - 1 for first in self.firsts[1:]), charset.MAX]
        self.intervals = list(zip(self.firsts, lasts, strict=True))
        rows, self.accepting = self._explore(node)
        live = _reach_acceptance(rows, self.accepting)
        self.rows = [{i: to for i, to in enumerate(row) if to in live} for row in rows]
        self.start = 0 if 0 in live else -1

    def _explore(self, node: Node) -> tuple[list[list[int]], list[bool]]:
        expressions = Expressions()
        numbers = {expressions.of(node): 0}
        waiting = list(numbers)
        rows: list[list[int]] = []
        for number in waiting:
            row = []
            for first, _ in self.intervals:
                if charset.SURROGATES[0] <= first <= charset.SURROGATES[1]:
                    row.append(-1)
                    continue
                to = expressions.derive(number, first)
                if to not in numbers:
                    numbers[to] = len(waiting)
                    waiting.append(to)
                row.append(numbers[to])
            rows.append(row)
            if len(waiting) > _MAX_STATES:
                raise ConstraintRefused(f"too large: a regular part needs more than {_MAX_STATES} states; simplify it")
        return rows, [expressions.nullable(number) for number in waiting]

    def alike(self) -> bool:
        """Whether no character is treated unlike another: a text belongs to the language by its length alone."""
        whole = sum(not 0xD800 <= first <= 0xDFFF for first in self.firsts)
        for row in self.rows:
            if row and (len(row) < whole or not all(self._same(row[0], to) for to in set(row.values()))):
                return False
        return True

    def _same(self, left: int, right: int) -> bool:
        """Whether two states accept the same texts."""
        assumed, waiting = set(), [(left, right)]
        while waiting:
            pair = left, right = waiting.pop()
            if left == right or pair in assumed:
                continue
            assumed.add(pair)
            ours, theirs = self.rows[left], self.rows[right]
            if self.accepting[left] != self.accepting[right] or ours.keys() != theirs.keys():
                return False
            waiting += [(ours[i], theirs[i]) for i in ours]
        return True

    def to(self, state: int, code: int) -> int | None:
        return self.rows[state].get(bisect_right(self.firsts, code) - 1)

    def between(self, state: int, low: int, high: int) -> Iterator[tuple[int, int]]:
        """(first character, next state) of what may follow from `low` to `high`."""
        for i in range(bisect_right(self.firsts, low) - 1, len(self.intervals)):
            first, last = max(self.intervals[i][0], low), min(self.intervals[i][1], high)
            if first > high:
                break
            if first <= last and i in self.rows[state]:
                yield first, self.rows[state][i]


def _points(node: Node) -> set[int]:
    """Where intervals of characters begin that the expression does not tell apart; spelling tells some more."""
    points = {0, 0x20, 0x22, 0x23, 0x5C, 0x5D, 0x80, 0x800, 0xD800, 0xE000, 0x10000}
    waiting: list[Node] = [node]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Text | Chars):
            ranges = item.ranges if isinstance(item, Chars) else tuple((ord(char), ord(char)) for char in item.text)
            points |= {p for low, high in ranges for p in (low, high + 1) if p <= charset.MAX}
        elif isinstance(item, Seq | Alt | And):
            waiting.extend(item.items)
        elif isinstance(item, Repeat | Not):
            waiting.append(item.item)
    return points


def _reach_acceptance(rows: list[list[int]], accepting: list[bool]) -> set[int]:
    users: dict[int, list[int]] = {}
    for state, row in enumerate(rows):
        for to in row:
            users.setdefault(to, []).append(state)
    waiting = [state for state, accepts in enumerate(accepting) if accepts]
    live = set(waiting)
    while waiting:
        more = [user for user in users.get(waiting.pop(), ()) if user not in live]
        live.update(more)
        waiting += more
    return live


class Leaf:
    """A regular node, or a JsonString, over bytes. Every state it gives can be finished; None is dead."""

    def __init__(self, node: Node) -> None:
        self.json = isinstance(node, JsonString)
        self._letters = Letters(node.item if isinstance(node, JsonString) else node)
        self._escapes: dict[int, list[tuple[bytes, int]]] = {}
        self._any_escape = self.json and self._letters.alike()
        self._next: dict[tuple[State, int], State | None] = {}
        self._least = self._distances()
        first = self._letters.start
        self.start: State | None = None if first < 0 else _OPEN if self.json else (first, b"")

    def accepting(self, state: State) -> bool:
        if self.json:
            return state == _DONE
        return not state[1] and self._letters.accepting[state[0]]

    def over(self, state: State) -> bool:
        """Whether no byte can follow."""
        return state == _DONE or (not self.json and not state[1] and not self._letters.rows[state[0]])

    def next(self, state: State, byte: int) -> State | None:
        key = (state, byte)
        if key not in self._next:
            self._next[key] = self._find_next(state, byte)
        return self._next[key]

    def distance(self, state: State) -> int:
        """Fewest bytes to acceptance."""
        if state == _DONE:
            return 0
        if state == _OPEN:
            return 1 + self._least[self._letters.start]
        at, begun = state
        if not begun:
            return self._least[at]
        return min(len(rest) + self._least[to] for rest, to in self._endings(at, begun))

    def _find_next(self, state: State, byte: int) -> State | None:
        if state == _DONE:
            return None
        if state == _OPEN:
            return (self._letters.start, b"") if byte == 0x22 else None
        at, begun = state
        if self.json and byte == 0x22 and not begun:
            return _DONE if self._letters.accepting[at] else None
        read = begun + bytes([byte])
        for rest, to in self._endings(at, read):
            return (at, read) if rest else (to, b"")
        return None

    def _distances(self) -> dict[int, int]:
        """Fewest bytes from each state between characters to acceptance."""
        letters = self._letters
        least: dict[int, int] = {}
        users: dict[int, set[tuple[int, int]]] = {}
        for state in range(len(letters.rows)):
            for spelling, to in self._spelled(state):
                users.setdefault(to, set()).add((len(spelling), state))
        queue = [(int(self.json), state) for state, accepts in enumerate(letters.accepting) if accepts]
        while queue:
            cost, state = heapq.heappop(queue)
            if state not in least:
                least[state] = cost
                for more, user in users.get(state, ()):
                    heapq.heappush(queue, (cost + more, user))
        return least

    def _spelled(self, state: int) -> Iterator[tuple[bytes, int]]:
        """For each interval of characters one spelling, the shortest."""
        for first, to in self._letters.between(state, 0, charset.MAX):
            if not self.json or (first >= 0x20 and first not in (0x22, 0x5C)):
                yield chr(first).encode(), to
        yield from self._escaped(state)

    def _escaped(self, state: int) -> list[tuple[bytes, int]]:
        """The escapes of the characters that may follow; where all characters are alike there are more."""
        if not self.json:
            return []
        if state not in self._escapes:
            found = self._escapes[state] = []
            for code in (*range(0x20), *(ord(char) for char in _SHORT if char >= " ")):
                to = self._letters.to(state, code)
                if to is not None:
                    ways = {b"\\u%04x" % code, b"\\u%04X" % code} if code < 0x20 else set()
                    short = _SHORT.get(chr(code))
                    found += [
                        (way, to) for way in sorted(ways | ({short} if short else set()), key=lambda w: (len(w), w))
                    ]
        return self._escapes[state]

    def _endings(self, state: int, begun: bytes) -> Iterator[tuple[bytes, int]]:
        """How a character that begins with these bytes may go on, and where it leads; shortest first of each kind."""
        escaped = self.json and begun[0] == 0x5C
        if escaped:
            for spelling, to in self._escaped(state):
                if spelling.startswith(begun):
                    yield spelling[len(begun) :], to
            rest = _any_escape(begun) if self._any_escape else None
            alike = self._letters.to(state, 0)
            if rest is not None and alike is not None:
                yield rest, alike
            return
        bounds = _code_bounds(begun)
        if bounds is None:
            return
        low, high, missing = bounds
        for first, to in self._letters.between(state, low, high):
            if not self.json or (first >= 0x20 and first not in (0x22, 0x5C)):
                yield b"\x80" * missing, to


def _any_escape(begun: bytes) -> bytes | None:
    """The shortest way to end an escape of any character; None when it cannot be one."""
    if len(begun) == 1:
        return b"n"
    if begun[1:2] != b"u":
        return b"" if len(begun) == 2 and begun[1] in b'"\\/bfnrt' else None
    digits = begun[2:6]
    if any(digit not in _HEX for digit in digits):
        return None
    if digits[:1] not in b"dD" or digits[1:2] not in (
        *(bytes([d]) for d in b"89abAB"),
        *(bytes([d]) for d in b"cdefCDEF"),
    ):
        return None if len(begun) > 6 else b"0" * (4 - len(digits))
    if digits[1:2] in b"cdefCDEF" and len(digits) > 1:
        return None  # the second half of a pair cannot come first
    return _second_half(begun[6:], 4 - len(digits))


def _second_half(begun: bytes, missing: int) -> bytes | None:
    whole = b"\\udc00"
    for i, byte in enumerate(begun):
        fits = (b"\\", b"u", b"dD", b"cdefCDEF", _HEX, _HEX)[i] if i < 6 else b""
        if byte not in fits:
            return None
    return b"0" * missing + whole[len(begun) :]


def _code_bounds(begun: bytes) -> tuple[int, int, int] | None:
    """(lowest, highest, missing bytes) of the characters whose UTF-8 begins like this; None when there is none."""
    first = begun[0]
    length = 1 if first < 0x80 else 2 if 0xC2 <= first <= 0xDF else 3 if 0xE0 <= first <= 0xEF else 4
    if 0x80 <= first < 0xC2 or first > 0xF4 or len(begun) > length:
        return None
    if any(not 0x80 <= byte <= 0xBF for byte in begun[1:]):
        return None
    code = first if length == 1 else first & (0x7F >> length)
    for byte in begun[1:]:
        code = code << 6 | byte & 0x3F
    missing = length - len(begun)
    least = (0, 0x80, 0x800, 0x10000)[length - 1]
    low, high = code << 6 * missing, (code + 1 << 6 * missing) - 1
    low, high = max(low, least), min(high, charset.MAX)
    return (low, high, missing) if low <= high else None
