"""Sets of Unicode scalar values as sorted, disjoint, non-adjacent ranges. Surrogates never belong to one."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache

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


def union(*sets: Ranges) -> Ranges:
    return make(r for s in sets for r in s)


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


def intersect(left: Ranges, right: Ranges) -> Ranges:
    return _intersect(left, right)


def difference(left: Ranges, right: Ranges) -> Ranges:
    return _intersect(left, complement(right))


def contains(ranges: Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


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


@cache
def unicode_digit() -> Ranges:
    return _where(lambda c: unicodedata.category(c) == "Nd")


@cache
def unicode_word() -> Ranges:
    return _where(lambda c: c.isalnum() or c == "_")


@cache
def unicode_space() -> Ranges:
    return union(_where(str.isspace), of("\ufeff"))


def ascii_case_variants(ranges: Ranges) -> Ranges:
    """The set and the other case of its ASCII letters: sure to match under every dialect's case folding."""
    letters = (chr(code) for code in range(0x80) if contains(ranges, code))
    return union(ranges, of("".join(c.lower() + c.upper() for c in letters)))


def all_case_variants(ranges: Ranges) -> Ranges:
    """The set and every character that some dialect may fold onto one of its members."""
    folds = {form for low, high in ranges for code in range(low, high + 1) for form in _folded(chr(code))}
    return union(ranges, _where(lambda c: not folds.isdisjoint(_folded(c))))


def _folded(char: str) -> set[str]:
    return {char.casefold(), char.lower(), char.upper()}


def _where(test: Callable[[str], bool]) -> Ranges:
    return make((code, code) for code in range(sys.maxunicode + 1) if test(chr(code)))
