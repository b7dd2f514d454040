"""Partition: the classes of characters that no part of a regular expression tells apart."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from sglite.constrained.charset import EVERY, SURROGATES, Ranges
from sglite.constrained.grammar import Alt, And, Chars, Node, Not, Repeat, Seq, Text


class Partition:
    """Classes of characters: `starts[i]` begins an interval of class `classes[i]`; surrogates have class -1."""

    def __init__(self, node: Node) -> None:
        sets: dict[Ranges, None] = {}
        letters: set[str] = set()
        _collect(node, sets, letters)
        sets.pop(EVERY, None)
        points = {0, SURROGATES[0], SURROGATES[1] + 1}
        for ranges in sets:
            for low, high in ranges:
                points.add(low)
                points.add(high + 1)
        codes = [ord(c) for c in letters]
        points.update(codes)
        points.update(code + 1 for code in codes)
        points.discard(0x110000)
        self.starts = sorted(points)
        self._members: dict[Ranges, tuple[bool, frozenset[int]]] = {}
        self._letters: dict[str, int] = {}
        self._divide(sets, codes)

    def _divide(self, sets: dict[Ranges, None], codes: list[int]) -> None:
        starts = self.starts
        marks: list[tuple[int, ...]] = [()] * len(starts)
        spans: list[list[int]] = []
        for number, ranges in enumerate(sets):
            covered: list[int] = []
            for low, high in ranges:
                covered.extend(range(bisect_left(starts, low), bisect_left(starts, high + 1)))
            spans.append(covered)
            for i in covered:
                marks[i] += (number,)
        for code in codes:
            marks[bisect_left(starts, code)] += (-1 - code,)
        widths: dict[tuple[int, ...], int] = {}
        scalar = [not SURROGATES[0] <= start <= SURROGATES[1] for start in starts]
        for i, mark in enumerate(marks):
            if scalar[i]:
                end = starts[i + 1] if i + 1 < len(starts) else 0x110000
                widths[mark] = widths.get(mark, 0) + end - starts[i]
        order = sorted(widths, key=lambda mark: -widths[mark])
        numbers = {mark: number for number, mark in enumerate(order)}
        self.classes = [numbers[mark] if scalar[i] else -1 for i, mark in enumerate(marks)]
        self.sizes = [widths[mark] for mark in order]
        self.count = len(order)
        everything = frozenset(range(self.count))
        self._members[EVERY] = (True, frozenset())
        for ranges, covered in zip(sets, spans, strict=True):
            inside = frozenset(self.classes[i] for i in covered)
            self._members[ranges] = (True, everything - inside) if 0 in inside else (False, inside)

    def of(self, char: str) -> int:
        """The class of a character; that of a letter of the expression's texts is never 0, which is the widest."""
        found = self._letters.get(char)
        if found is None:
            found = self.classes[bisect_right(self.starts, ord(char)) - 1]
            if len(self._letters) < 4096:
                self._letters[char] = found
        return found

    def of_set(self, ranges: Ranges) -> tuple[bool, frozenset[int]]:
        """The classes of a set of the expression: (True, those outside it) when class 0 is inside it."""
        return self._members[ranges]

    def intervals(self) -> list[tuple[int, int, int]]:
        """(first, last, class) of every interval, ascending, surrogates left out."""
        ends = [*(start - 1 for start in self.starts[1:]), 0x10FFFF]
        return [(a, b, c) for a, b, c in zip(self.starts, ends, self.classes, strict=True) if c >= 0]

    def examples(self) -> list[str]:
        """One character of each class, a printable one where there is one."""
        best: dict[int, tuple[bool, int]] = {}
        for low, high, number in self.intervals():
            plain = next((c for c in range(max(low, 0x20), min(high, 0x7E) + 1) if c not in (0x22, 0x5C)), None)
            candidate = (plain is None, low if plain is None else plain)
            best[number] = min(best.get(number, candidate), candidate)
        return [chr(best[number][1]) for number in range(self.count)]


def _collect(node: Node, sets: dict[Ranges, None], letters: set[str]) -> None:
    if isinstance(node, Text):
        letters.update(node.text)
    elif isinstance(node, Chars):
        sets[node.ranges] = None
    elif isinstance(node, Seq | Alt | And):
        for item in node.items:
            _collect(item, sets, letters)
    elif isinstance(node, Repeat | Not):
        _collect(node.item, sets, letters)
    else:
        raise TypeError(f"{type(node).__name__} is not regular: only Text, Chars, Seq, Alt, Repeat, And and Not are")
