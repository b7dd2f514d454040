"""Derivatives of regular expressions, character by character: what may follow a character that was read."""

from __future__ import annotations

from collections.abc import Iterable

from sglite.constrained import charset
from sglite.constrained.grammar import Alt, And, Chars, Node, Not, Repeat, Seq, Text
from sglite.constrained.spec import ConstraintRefused

_MAX_SIZE = 500_000  # of all expressions that come up, in parts


class Expressions:
    """Regular expressions as numbers, equal ones under the same number, and their derivatives."""

    NOTHING = 0
    EMPTY = 1

    def __init__(self) -> None:
        self._keys: list[tuple[object, ...]] = []
        self._numbers: dict[tuple[object, ...], int] = {}
        self._derived: dict[tuple[int, int], int] = {}
        self._size = 0
        self._make("nothing")
        self._make("empty")

    def of(self, node: Node) -> int:
        if isinstance(node, Text):
            return self._seq([self._chars(charset.of(char)) for char in node.text])
        if isinstance(node, Chars):
            return self._chars(node.ranges)
        if isinstance(node, Seq):
            return self._seq([self.of(item) for item in node.items])
        if isinstance(node, Alt):
            return self._alt(self.of(item) for item in node.items)
        if isinstance(node, Repeat):
            return self._repeat(self.of(node.item), node.low, node.high)
        if isinstance(node, And):
            return self._and([self.of(item) for item in node.items])
        if isinstance(node, Not):
            return self._not(self.of(node.item))
        raise ConstraintRefused(f"{type(node).__name__} is not regular, so And, Not and JsonString cannot hold it")

    def nullable(self, number: int) -> bool:
        kind, *parts = self._keys[number]
        if kind == "seq" or kind == "and":
            return all(self.nullable(part) for part in parts)  # type: ignore[arg-type]
        if kind == "alt":
            return any(self.nullable(part) for part in parts)  # type: ignore[arg-type]
        if kind == "repeat":
            return parts[1] == 0 or self.nullable(parts[0])  # type: ignore[arg-type]
        return not self.nullable(parts[0]) if kind == "not" else kind == "empty"  # type: ignore[arg-type]

    def derive(self, number: int, code: int) -> int:
        """What may follow the character `code`."""
        key = (number, code)
        found = self._derived.get(key)
        if found is None:
            found = self._derived[key] = self._derive(number, code)
        return found

    def _derive(self, number: int, code: int) -> int:
        kind, *raw = self._keys[number]
        parts: list[int] = raw  # type: ignore[assignment]
        if kind == "chars":
            return self.EMPTY if charset.contains(raw[0], code) else self.NOTHING  # type: ignore[arg-type]
        if kind == "seq":
            head, tail = parts
            after = self._seq([self.derive(head, code), tail])
            return self._alt([after, self.derive(tail, code)]) if self.nullable(head) else after
        if kind == "repeat":
            item, low, high = parts
            rest = self._repeat(item, max(low - 1, 0), None if high is None else high - 1)
            return self._seq([self.derive(item, code), rest])
        derived = [self.derive(part, code) for part in parts]
        if kind == "alt":
            return self._alt(derived)
        if kind == "and":
            return self._and(derived)
        return self._not(derived[0]) if kind == "not" else self.NOTHING

    def _make(self, *key: object) -> int:
        number = self._numbers.setdefault(key, len(self._keys))
        if number == len(self._keys):
            self._keys.append(key)
            self._size += len(key)
            if self._size > _MAX_SIZE:
                raise ConstraintRefused("too large: a regular part needs too many derivatives; simplify it")
        return number

    def _chars(self, ranges: charset.Ranges) -> int:
        return self._make("chars", ranges) if ranges else self.NOTHING

    def _seq(self, items: list[int]) -> int:
        result = self.EMPTY
        for item in reversed(items):
            if item == self.NOTHING or result == self.NOTHING:
                return self.NOTHING
            result = self._joined(item, result)
        return result

    def _joined(self, left: int, right: int) -> int:
        if left == self.EMPTY or right == self.EMPTY:
            return right if left == self.EMPTY else left
        kind, *parts = self._keys[left]
        if kind == "seq":
            return self._make("seq", parts[0], self._joined(parts[1], right))  # type: ignore[arg-type]
        return self._make("seq", left, right)

    def _alt(self, items: Iterable[int]) -> int:
        return self._gathered("alt", items, self.NOTHING)

    def _and(self, items: Iterable[int]) -> int:
        listed = list(items)
        return self.NOTHING if self.NOTHING in listed else self._gathered("and", listed, None)

    def _gathered(self, kind: str, items: Iterable[int], unit: int | None) -> int:
        flat: set[int] = set()
        for item in items:
            head, *parts = self._keys[item]
            flat.update(parts if head == kind else [item])  # type: ignore[arg-type]
        flat.discard(-1 if unit is None else unit)
        if not flat:
            return self.NOTHING if kind == "alt" else self._not(self.NOTHING)
        return next(iter(flat)) if len(flat) == 1 else self._make(kind, *sorted(flat))

    def _not(self, item: int) -> int:
        kind, *parts = self._keys[item]
        return parts[0] if kind == "not" else self._make("not", item)  # type: ignore[return-value]

    def _repeat(self, item: int, low: int, high: int | None) -> int:
        if high is not None and high < low:
            return self.NOTHING
        if high == 0 or item == self.EMPTY:
            return self.EMPTY
        if item == self.NOTHING:
            return self.NOTHING if low else self.EMPTY
        return item if low == high == 1 else self._make("repeat", item, low, high)
