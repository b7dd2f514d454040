"""Stop matching against its definition, for any stops, output and cuts."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglite.runtime.text.stop import StopError, StopHit, StopMatcher

WORD = st.text("ab\né", min_size=1, max_size=4)
OUTPUT = st.text("ab\néc", max_size=30)
CUTS = st.lists(st.integers(0, 60), max_size=6)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[a:b] for a, b in pairwise(edges)]


def patterns() -> st.SearchStrategy[str]:
    leaf = st.sampled_from(["a", "b", "é", ".", "[ab]", "[^a]", r"\s", r"\w"])

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map(lambda p: f"(?:{p[0]}|{p[1]})"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?"])).map(
                lambda p: f"({p[0]}){p[1]}"
            ),
        )

    return st.recursive(leaf, grow, max_leaves=6)


PATTERN = patterns().filter(lambda pattern: re.fullmatch(pattern, "") is None)
FEW = st.text("ab", min_size=1, max_size=5)


def by_definition(stops: list[str], compiled: list[re.Pattern[str]], text: str) -> StopHit | None:
    """The earliest end, then the earliest start, of any match of anything; offsets in bytes."""
    for end in range(1, len(text) + 1):
        found: list[tuple[int, int, str]] = []
        for order, stop in enumerate(stops):
            if text[:end].endswith(stop):
                found.append((end - len(stop), order, stop))
        for order, pattern in enumerate(compiled, len(stops)):
            start = next((s for s in range(end) if pattern.fullmatch(text, s, end)), None)
            if start is not None:
                found.append((start, order, pattern.pattern))
        if found:
            start, _, matched = min(found)
            return StopHit(matched, len(text[:start].encode()), len(text[:end].encode()))
    return None


def first_hit(matcher: StopMatcher, text: str, cuts: list[int]) -> StopHit | None:
    return next((hit for piece in pieces(text.encode(), cuts) if (hit := matcher.push(piece))), None)


@settings(max_examples=200)
@given(st.lists(WORD, max_size=2, unique=True), st.lists(PATTERN, max_size=2), OUTPUT, CUTS)
def test_equals_the_definition_however_it_is_cut(
    stops: list[str], regexes: list[str], text: str, cuts: list[int]
) -> None:
    expected = by_definition(stops, [re.compile(pattern) for pattern in regexes], text)
    assert first_hit(StopMatcher(stops, regexes), text, cuts) == expected


@settings(max_examples=300)
@given(st.lists(FEW, min_size=2, max_size=4, unique=True), st.text("ab", max_size=12), CUTS)
def test_strings_inside_strings_are_found(stops: list[str], text: str, cuts: list[int]) -> None:
    assert first_hit(StopMatcher(stops), text, cuts) == by_definition(stops, [], text)


@given(patterns())
def test_a_pattern_is_refused_exactly_when_it_matches_nothing_at_all(pattern: str) -> None:
    if re.fullmatch(pattern, ""):
        with pytest.raises(StopError, match="matches the empty string"):
            StopMatcher([], [pattern])
    else:
        StopMatcher([], [pattern])


@given(st.lists(WORD, min_size=1, max_size=4), st.lists(PATTERN, max_size=1), OUTPUT, CUTS)
def test_what_is_shown_is_never_part_of_a_later_match(
    stops: list[str], regexes: list[str], text: str, cuts: list[int]
) -> None:
    matcher = StopMatcher(stops, regexes)
    shown = seen = 0
    for piece in pieces(text.encode(), cuts):
        hit = matcher.push(piece)
        if hit:
            assert hit.start >= shown
            return
        seen += len(piece)
        assert 0 <= matcher.holdback() <= seen
        shown = max(shown, seen - matcher.holdback())


@given(st.lists(WORD, min_size=1, max_size=4), OUTPUT)
def test_strings_hold_back_exactly_their_longest_open_beginning(stops: list[str], text: str) -> None:
    matcher, data = StopMatcher(stops), text.encode()
    matcher.push(data)
    starts = {stop.encode()[:n] for stop in stops for n in range(len(stop.encode()) + 1)}
    assert matcher.holdback() == max(n for n in range(len(data) + 1) if data[len(data) - n :] in starts)


@given(st.lists(WORD, max_size=3), st.lists(PATTERN, max_size=1), st.binary(max_size=30), st.binary(max_size=30))
def test_any_bytes_and_any_fork(stops: list[str], regexes: list[str], before: bytes, after: bytes) -> None:
    one = StopMatcher(stops, regexes)
    one.push(before)
    fork = one.fork()
    one.push(after[::-1])
    fresh = StopMatcher(stops, regexes)
    fresh.push(before)
    assert fork.push(after) == fresh.push(after)
    assert fork.holdback() == fresh.holdback()
