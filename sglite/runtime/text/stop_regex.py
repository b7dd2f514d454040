"""Stop patterns that cannot hang: a regular expression as a position automaton (Glushkov, 1961).

One step per character over a bounded set of positions, so a hostile pattern costs what a friendly one does,
and the result does not depend on how the output arrives. Because a stop ends generation at the first
position where a match is complete, greedy and lazy repetition mean the same here: `\\d+` stops at the first
digit.

Syntax and the meaning of single characters are those of Python's `re` on text. Understood: alternation,
groups, classes and escapes, `* + ? {m,n}`, flags i, s, a, u, `^` or `\\A` at the start of a top-level alternative,
and `$` or `\\Z` at its end: the end of the text so far, where every match ends. Everything else (lookaround,
back-references, `\\b`, ...) is refused with its position.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

MAX_PATTERN_CHARS = 1024
MAX_POSITIONS = 256
MAX_EDGES = 8192


class StopError(ValueError):
    """A stop string or pattern that cannot be used."""


class StopPattern:
    """One compiled pattern, immutable.

    Raises `StopError` when it is broken, refused, too large or matches the empty string.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_PATTERN_CHARS:
            raise StopError(f"stop pattern of {len(source)} characters; {MAX_PATTERN_CHARS} are allowed")
        try:
            re.compile(source)
            branches = _Parser(source).parse()
            automaton = _Automaton(source)
            nodes = [(automaton.build(tree), anchored) for tree, anchored in branches]
        except (re.error, RecursionError, OverflowError) as error:
            raise StopError(f"stop pattern {source!r} does not compile: {error}") from None
        if any(node.nullable for node, _ in nodes):
            raise StopError(f"stop pattern {source!r} matches the empty string; it would stop every output at once")
        self.source = source
        self.atoms = automaton.atoms
        self.follow = [frozenset(targets) for targets in automaton.follow]
        self.last = _union(node.last for node, _ in nodes)
        self.first = _union(node.first for node, anchored in nodes if not anchored)
        self.first_at_start = _union(node.first for node, _ in nodes)


class PatternMatcher:
    """The state of one pattern in one output: live positions, each with the earliest start that reaches it."""

    def __init__(self, pattern: StopPattern) -> None:
        self._pattern = pattern
        self._live: dict[int, int] = {}
        self._offset = 0  # bytes read as characters
        self._rest = b""  # an unfinished character

    @property
    def source(self) -> str:
        """The pattern as the user wrote it."""
        return self._pattern.source

    def push(self, piece: bytes) -> tuple[int, int] | None:
        """Append bytes; (start, end) of the first match that ends in them, or None."""
        hit: tuple[int, int] | None = None
        chars, self._rest = _split_utf8(self._rest + piece)
        for char, size in chars:
            found = self._step(char, size)
            hit = hit or found
        return hit

    def holdback(self) -> int:
        """Bytes from the earliest start that is still alive to the end; an unfinished character counts."""
        start = min(self._live.values(), default=self._offset)
        return self._offset - start + len(self._rest)

    def fork(self) -> PatternMatcher:
        """An independent matcher in the same state."""
        copy = PatternMatcher(self._pattern)
        copy._live, copy._offset, copy._rest = dict(self._live), self._offset, self._rest
        return copy

    def _step(self, char: str, size: int) -> tuple[int, int] | None:
        pattern, atoms = self._pattern, self._pattern.atoms
        reached: dict[int, int] = {}
        rejected: set[int] = set()
        entries = pattern.first if self._offset else pattern.first_at_start
        sources = sorted(((start, pattern.follow[at]) for at, start in self._live.items()), key=lambda item: item[0])
        # Earliest start first, so the first to reach a position owns it.
        for start, targets in (*sources, (self._offset, entries)):
            for target in targets:
                if target in reached or target in rejected:
                    continue
                if atoms[target].match(char):
                    reached[target] = start
                else:
                    rejected.add(target)
        self._live = reached
        self._offset += size
        starts = [start for at, start in reached.items() if at in pattern.last]
        return (min(starts), self._offset) if starts else None


def _split_utf8(data: bytes) -> tuple[list[tuple[str, int]], bytes]:
    """Characters with their length in bytes, and the unfinished rest. A broken run reads as one U+FFFD."""
    chars: list[tuple[str, int]] = []
    while data:
        try:
            text, bad, data_after = data.decode("utf-8"), 0, b""
        except UnicodeDecodeError as error:
            text = data[: error.start].decode("utf-8")
            if error.reason == "unexpected end of data":
                chars += [(char, len(char.encode("utf-8"))) for char in text]
                return chars, data[error.start :]
            bad, data_after = error.end - error.start, data[error.end :]
        chars += [(char, len(char.encode("utf-8"))) for char in text]
        if bad:
            chars.append(("\ufffd", bad))
        data = data_after
    return chars, b""


@dataclass(frozen=True)
class _Char:
    """One character, tested by a pattern of one character."""

    test: re.Pattern[str]


@dataclass(frozen=True)
class _Sequence:
    parts: tuple[_Tree, ...]


@dataclass(frozen=True)
class _Choice:
    options: tuple[_Tree, ...]


@dataclass(frozen=True)
class _Repeat:
    part: _Tree
    low: int
    high: int | None  # None: no bound


_Tree: TypeAlias = "_Char | _Sequence | _Choice | _Repeat"


@dataclass(frozen=True)
class _Node:
    """A built part: the positions it may begin and end with, and whether it may be empty."""

    first: frozenset[int]
    last: frozenset[int]
    nullable: bool


_EMPTY = _Node(frozenset(), frozenset(), True)


def _union(sets: Iterable[frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*sets)


class _Automaton:
    """Positions and who may follow whom. Every copy of a repeated part has positions of its own."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._edges = 0
        self.atoms: list[re.Pattern[str]] = []
        self.follow: list[set[int]] = []

    def build(self, tree: _Tree) -> _Node:
        """Add the positions of `tree`. Raises `StopError` past `MAX_POSITIONS` or `MAX_EDGES`."""
        if isinstance(tree, _Char):
            return self._char(tree)
        if isinstance(tree, _Sequence):
            node = _EMPTY
            for part in tree.parts:
                node = self._concat(node, self.build(part))
            return node
        if isinstance(tree, _Choice):
            nodes = [self.build(option) for option in tree.options]
            first, last = _union(n.first for n in nodes), _union(n.last for n in nodes)
            return _Node(first, last, any(n.nullable for n in nodes))
        return self._repeat(tree)

    def _char(self, tree: _Char) -> _Node:
        position = len(self.atoms)
        if position == MAX_POSITIONS:
            raise StopError(
                f"stop pattern {self._source!r} has more than {MAX_POSITIONS} characters once its repetitions "
                "are written out; shorten it"
            )
        self.atoms.append(tree.test)
        self.follow.append(set())
        here = frozenset([position])
        return _Node(here, here, False)

    def _concat(self, left: _Node, right: _Node) -> _Node:
        self._connect(left.last, right.first)
        first = left.first | right.first if left.nullable else left.first
        last = left.last | right.last if right.nullable else right.last
        return _Node(first, last, left.nullable and right.nullable)

    def _connect(self, sources: frozenset[int], targets: frozenset[int]) -> None:
        self._edges += len(sources) * len(targets)
        if self._edges > MAX_EDGES:
            raise StopError(f"stop pattern {self._source!r} is too ambiguous to follow; simplify its repetitions")
        for source in sources:
            self.follow[source] |= targets

    def _repeat(self, tree: _Repeat) -> _Node:
        if tree.high == 0:
            return _EMPTY
        count = max(tree.low, 1) if tree.high is None else tree.high
        copies: list[_Node] = []
        while len(copies) < count:
            copies.append(self.build(tree.part))
            if not copies[-1].first:
                return _EMPTY  # repeating nothing
        if tree.high is None:
            self._connect(copies[-1].last, copies[-1].first)
        node = _EMPTY
        for index in reversed(range(count)):  # x{1,3} is x(x(x)?)?, so edges grow with the count, not its square
            node = self._concat(copies[index], node)
            if index >= tree.low:
                node = _Node(node.first, node.last, True)
        return node


_FLAGS = {"i": re.IGNORECASE, "s": re.DOTALL, "a": re.ASCII, "u": re.UNICODE}
_LEADING_FLAGS = re.compile(r"\(\?([a-zA-Z]+)\)")
_GROUP = re.compile(r"\((?:\?P<\w+>|\?([a-zA-Z]*)(?:-([a-zA-Z]+))?:|(?!\?))")
_COMMENT = re.compile(r"\(\?#[^)]*\)")
_CLASS = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]", re.DOTALL)
_ESCAPE = re.compile(
    r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^}]*\}|0[0-7]{0,2}|[1-3][0-7]{2}|[^0-9AbBZ])",
    re.DOTALL,
)
_END = re.compile(r"(?:\$|\\Z)(?=\||\Z)")
_COUNT = re.compile(r"\{(?:([0-9]+)|([0-9]*),([0-9]*))\}")


class _Parser:
    """Recursive descent over a pattern that `re` has accepted, so only what is refused needs a message."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._flags = re.RegexFlag(0)

    def parse(self) -> list[tuple[_Tree, bool]]:
        """The top-level alternatives, each with whether it is anchored at the start of the output."""
        if match := _LEADING_FLAGS.match(self._source):
            self._flags = self._with_flags(match[1])
            self._at = match.end()
        branches: list[tuple[_Tree, bool]] = []
        while True:
            anchored = self._take("^") or self._take("\\A")
            branches.append((self._sequence(top=True), anchored))
            if end := _END.match(self._source, self._at):
                self._at = end.end()
            if not self._take("|"):
                return branches

    def _take(self, text: str) -> bool:
        if self._source.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _sequence(self, top: bool = False) -> _Tree:
        parts: list[_Tree] = []
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            if top and _END.match(self._source, self._at):
                break
            if comment := _COMMENT.match(self._source, self._at):
                self._at = comment.end()
                continue
            part = self._atom()
            while (bounds := self._quantifier()) is not None:
                part = _Repeat(part, *bounds)
            parts.append(part)
        return _Sequence(tuple(parts))

    def _atom(self) -> _Tree:
        char = self._source[self._at]
        if char == "(":
            return self._group()
        if char in "^$*+?":
            hint = {"^": " ('^' may only start a top-level alternative)", "$": " ('$' may only end one at the top)"}
            self._refuse(f"{char!r} is not understood here{hint.get(char, '')}")
        if char in "[\\":
            match = (_CLASS if char == "[" else _ESCAPE).match(self._source, self._at)
            if match is None:
                self._refuse(f"{self._source[self._at : self._at + 2]!r} is not understood; only characters are")
            text = match[0]
        else:
            text = char if char == "." else re.escape(char)
            match = None
        self._at = match.end() if match else self._at + 1
        return _Char(re.compile(text, self._flags))

    def _group(self) -> _Tree:
        match = _GROUP.match(self._source, self._at)
        if match is None:
            self._refuse(
                f"{self._source[self._at : self._at + 3]!r}: only plain groups and (?flags:...) are understood"
            )
        outer = self._flags
        self._flags = self._with_flags(match[1] or "", match[2] or "")
        self._at = match.end()
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        self._take(")")
        self._flags = outer
        return options[0] if len(options) == 1 else _Choice(tuple(options))

    def _quantifier(self) -> tuple[int, int | None] | None:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        bounds = simple.get(self._source[self._at : self._at + 1])
        count = None if bounds else _COUNT.match(self._source, self._at)
        if count and count[0] != "{,}":
            low = int(count[1] or count[2] or 0)
            bounds = (low, low if count[1] else int(count[3]) if count[3] else None)
        if bounds is None:
            return None
        self._at += len(count[0]) if count else 1
        if self._take("+"):
            self._refuse("possessive repetition is not understood")
        self._take("?")  # lazy: the first complete match wins either way
        return bounds

    def _with_flags(self, on: str, off: str = "") -> re.RegexFlag:
        for letter in on + off:
            if letter not in _FLAGS:
                self._refuse(f"flag {letter!r} is not understood; i, s, a and u are")
        flags = self._flags
        for letter in on:
            flags |= _FLAGS[letter]
        for letter in off:
            flags &= ~_FLAGS[letter]
        return flags

    def _refuse(self, reason: str) -> NoReturn:
        raise StopError(
            f"stop pattern {self._source!r} at {self._at}: {reason}; rewrite the pattern or use a stop string"
        )
