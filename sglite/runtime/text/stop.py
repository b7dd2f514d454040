"""Stop strings and stop patterns, found in output as it grows.

Works on bytes and knows no tokenizer: the engine pushes the bytes of tokens, a presenter the bytes of text.
What it finds does not depend on how the output was cut into pieces:

    ... i n   t h e   e | n d .      stop "end." across a token border
                    ^start       ^end  offsets count all bytes pushed

The match that ends first wins; among those, the one that starts first. Strings take an Aho-Corasick
automaton (CACM 18(6), 1975), patterns a position automaton (`stop_regex`): both are linear in the output,
whatever the user wrote.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from sglite.runtime.text.stop_regex import PatternMatcher, StopError, StopPattern

__all__ = ["StopError", "StopHit", "StopMatcher"]

MAX_STOPS = 256
MAX_STOP_BYTES = 4096


@dataclass(frozen=True)
class StopHit:
    """A match: the stop string or pattern as given, and byte offsets in everything pushed so far (end exclusive)."""

    matched: str
    start: int
    end: int


class StopMatcher:
    """Finds the first stop in a sequence of bytes.

    Raises `StopError` at construction for an empty string, more than `MAX_STOPS` stops, a string over
    `MAX_STOP_BYTES` bytes, or a pattern that is broken, matches the empty string or uses what `stop_regex`
    does not enforce.
    """

    def __init__(self, stops: Sequence[str], stop_regex: Sequence[str] = ()) -> None:
        if len(stops) + len(stop_regex) > MAX_STOPS:
            raise StopError(f"{len(stops) + len(stop_regex)} stops are more than the {MAX_STOPS} allowed; send fewer")
        self._strings = _StringAutomaton(stops)
        self._node = 0
        self._patterns = [PatternMatcher(StopPattern(pattern)) for pattern in stop_regex]
        self._seen = 0

    def push(self, piece: bytes) -> StopHit | None:
        """Append `piece`; the first match that ends in it, or None.

        All of `piece` is consumed in either case: a caller that does not want to stop here (too few tokens
        yet) just goes on, and later pushes report later matches.
        """
        hits = [self._push_strings(piece)]
        for pattern in self._patterns:
            found = pattern.push(piece)
            hits.append(None if found is None else StopHit(pattern.source, *found))
        self._seen += len(piece)
        return min((hit for hit in hits if hit is not None), key=lambda hit: (hit.end, hit.start), default=None)

    def holdback(self) -> int:
        """How many bytes at the end of the output may still become part of a match; the rest is safe to show."""
        open_patterns = [pattern.holdback() for pattern in self._patterns]
        return max([self._strings.depth[self._node], *open_patterns])

    def fork(self) -> StopMatcher:
        """An independent matcher in the same state."""
        copy = StopMatcher.__new__(StopMatcher)
        copy._strings = self._strings
        copy._node = self._node
        copy._patterns = [pattern.fork() for pattern in self._patterns]
        copy._seen = self._seen
        return copy

    def _push_strings(self, piece: bytes) -> StopHit | None:
        automaton, node = self._strings, self._node
        hit: StopHit | None = None
        for offset, byte in enumerate(piece, self._seen + 1):
            node = automaton.step(node, byte)
            matched = automaton.longest[node]
            if matched is not None and hit is None:
                hit = StopHit(matched, offset - len(matched.encode("utf-8")), offset)
        self._node = node
        return hit


class _StringAutomaton:
    """Aho-Corasick over bytes. A node is the longest suffix of the output that begins some stop; `depth` its length."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._edges: list[dict[int, int]] = [{}]
        self._fail: list[int] = [0]
        self.depth: list[int] = [0]
        self.longest: list[str | None] = [None]  # the longest stop that ends at the node, so the earliest start
        for stop in stops:
            self._add(stop)
        self._link()

    def step(self, node: int, byte: int) -> int:
        """The node after one more byte; amortised constant time."""
        edges, fail = self._edges, self._fail
        while node and byte not in edges[node]:
            node = fail[node]
        return edges[node].get(byte, 0)

    def _add(self, stop: str) -> None:
        try:
            data = stop.encode("utf-8")
        except UnicodeEncodeError as error:
            raise StopError(f"stop {stop!r} has a lone surrogate at index {error.start}; send valid Unicode") from None
        if not 0 < len(data) <= MAX_STOP_BYTES:
            raise StopError(f"stop string of {len(data)} bytes; between 1 and {MAX_STOP_BYTES} are allowed")
        node = 0
        for byte in data:
            if byte not in self._edges[node]:
                self._edges[node][byte] = len(self._edges)
                self._edges.append({})
                self._fail.append(0)
                self.depth.append(self.depth[node] + 1)
                self.longest.append(None)
            node = self._edges[node][byte]
        self.longest[node] = stop

    def _link(self) -> None:
        queue = deque(self._edges[0].values())
        while queue:
            node = queue.popleft()
            if self.longest[node] is None:
                self.longest[node] = self.longest[self._fail[node]]
            for byte, child in self._edges[node].items():
                self._fail[child] = self.step(self._fail[node], byte)
                queue.append(child)
