"""Sets of Unicode scalar values as sorted, disjoint, non-adjacent ranges. Surrogates never belong to one."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from itertools import groupby

Ranges = tuple[tuple[int, int], ...]

MAX = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)
EVERY: Ranges = ((0, SURROGATES[0] - 1), (SURROGATES[1] + 1, MAX))


def make(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The normal form of inclusive ranges in any order."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return _intersect(tuple(merged), EVERY)


def of(characters: str) -> Ranges:
    """The set of the characters of a string."""
    return make((ord(c), ord(c)) for c in characters)


# The word characters of Unicode are 736 ranges, and one pattern takes the same few sets apart again and again.


@lru_cache(maxsize=2048)
def union(*sets: Ranges) -> Ranges:
    return make(r for s in sets for r in s)


@lru_cache(maxsize=2048)
def complement(ranges: Ranges) -> Ranges:
    result: list[tuple[int, int]] = []
    start = 0
    for low, high in ranges:
        if low > start:
            result.append((start, low - 1))
        start = high + 1
    if start <= MAX:
        result.append((start, MAX))
    return _intersect(tuple(result), EVERY)


@lru_cache(maxsize=2048)
def intersect(left: Ranges, right: Ranges) -> Ranges:
    return _intersect(left, right)


def difference(left: Ranges, right: Ranges) -> Ranges:
    return intersect(left, complement(right))


def contains(ranges: Ranges, code: int) -> bool:
    at = bisect_right(ranges, (code, MAX + 1)) - 1
    return at >= 0 and code <= ranges[at][1]


def size(ranges: Ranges) -> int:
    return sum(high - low + 1 for low, high in ranges)


def _intersect(left: Ranges, right: Ranges) -> Ranges:
    result: list[tuple[int, int]] = []
    i = j = 0
    while i < len(left) and j < len(right):
        low, high = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if low <= high:
            result.append((low, high))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return tuple(result)


# What a regex escape such as \d means differs between dialects: ECMA-262 says ASCII digits, Python every decimal
# digit. Two sets bracket the meaning: `ascii_*` is what every dialect includes, `unicode_*` what any dialect does.
# A positive class generates from the inner set, a negated one excludes the outer set: what comes out is right in both.

ASCII_DIGIT: Ranges = ((0x30, 0x39),)
ASCII_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
ASCII_SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))


# Of every dialect together: Unicode's White_Space, the byte order mark of ECMA-262, and U+001C to U+001F of Python.
UNICODE_SPACE: Ranges = (
    *((0x09, 0x0D), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)),
    *((0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)


@cache
def unicode_digit() -> Ranges:
    return _where(r"\d+")


@cache
def unicode_word() -> Ranges:
    return _where(r"\w+")


@cache
def category(name: str) -> Ranges:
    """A general category ("Lu") or a group of them ("L"), as this Python's Unicode version has it."""
    return union(*(found for full, found in _categories().items() if full.startswith(name)))


@cache
def _categories() -> dict[str, Ranges]:
    found: dict[str, list[tuple[int, int]]] = {}
    for first, last in _assigned():
        code = first
        for name, run in groupby(map(unicodedata.category, map(chr, range(first, last + 1)))):
            length = sum(1 for _ in run)
            found.setdefault(name, []).append((code, code + length - 1))
            code += length
    for low, high in _unassigned():
        found.setdefault(unicodedata.category(chr(low)), []).append((low, high))
    return {name: make(ranges) for name, ranges in found.items()}


def ascii_case_variants(ranges: Ranges) -> Ranges:
    """The set and the other case of its ASCII letters: sure to match under every dialect's case folding."""
    letters = (chr(code) for code in range(0x80) if contains(ranges, code))
    return union(ranges, of("".join(c.lower() + c.upper() for c in letters)))


def all_case_variants(ranges: Ranges) -> Ranges:
    """The set and every character that some dialect may fold onto one of its members."""
    return union(ranges, *(group for group in _case_groups() if intersect(group, ranges)))


@cache
def _case_groups() -> tuple[Ranges, ...]:
    """Characters that share a folded, lower or upper case form."""
    groups: dict[str, set[int]] = {}
    for first, last in _assigned():
        for char in map(chr, range(first, last + 1)):
            if not char == char.lower() == char.upper() == char.casefold():
                for form in (char.casefold(), char.lower(), char.upper()):
                    groups.setdefault(form, {ord(form)} if len(form) == 1 else set()).add(ord(char))
    return tuple(make((code, code) for code in group) for group in groups.values())


def _where(pattern: str) -> Ranges:
    """Where Python's own class matches."""
    return make(
        (first + found.start(), first + found.end() - 1)
        for first, last in _assigned()
        for found in re.finditer(pattern, "".join(map(chr, range(first, last + 1))))
    )


def _assigned() -> tuple[tuple[int, int], ...]:
    """The blocks in which characters differ; in a block of `_unassigned` they are all alike."""
    return (0, SURROGATES[0] - 1), (SURROGATES[1] + 1, 0x33FFF), (0xE0000, 0xE01FF)


def _unassigned() -> Iterator[tuple[int, int]]:
    yield 0x34000, 0xDFFFF
    yield 0xE0200, 0xEFFFF
    for plane in (0xF0000, 0x100000):  # for private use, but for the last two code points
        yield plane, plane + 0xFFFD
        yield plane + 0xFFFE, plane + 0xFFFF
