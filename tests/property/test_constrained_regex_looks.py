"""Patterns with lookaround, boundaries, anchors and atomic parts mean what the `regex` module says they mean."""

from __future__ import annotations

import itertools
import re

import pytest
import regex
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sglite.constrained.fsm import matches
from sglite.constrained.regex import match_expr, search_expr
from sglite.constrained.spec import ConstraintRefused

ATOMS = ["a", "b", " ", "[ab]", "[^a]", ".", r"\w", r"\W", "ab", "ba", r"\s", r"\b", r"\B", "^", "$"]
LOOKS = ["(?={})", "(?!{})", "(?<={})", "(?<!{})"]
QUANTIFIERS = ["*", "+", "?", "{2}", "{1,2}", "*?", "{0,2}"]
TEXTS = ["".join(text) for n in range(5) for text in itertools.product("ab ", repeat=n)]


def combine(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=2).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(st.sampled_from(LOOKS), inner).map(lambda t: t[0].format(t[1])),
        st.tuples(inner, st.sampled_from(QUANTIFIERS)).map(lambda t: f"(?:{t[0]}){t[1]}"),
        st.tuples(inner, st.sampled_from(["*+", "++", "?+", "{1,2}+"])).map(lambda t: f"(?:{t[0]}){t[1]}"),
        inner.map(lambda part: f"(?>{part})"),
    )


PATTERNS = st.recursive(st.sampled_from(ATOMS), combine, max_leaves=5)


def check(pattern: str, lower: object, found: object) -> None:
    try:
        node = lower(pattern)  # type: ignore[operator]
    except ConstraintRefused:
        assume(False)
    for text in TEXTS:
        if text or r"\B" not in pattern:  # dialects differ on whether the empty text has a place that is no boundary
            assert matches(node, text) == bool(found(text)), (pattern, text)  # type: ignore[operator]


@settings(max_examples=150, deadline=None)
@given(PATTERNS)
def test_a_whole_match_is_one_of_the_regex_module(pattern: str) -> None:
    check(pattern, match_expr, regex.compile(pattern).fullmatch)


@settings(max_examples=150, deadline=None)
@given(PATTERNS)
def test_a_search_is_one_of_the_regex_module(pattern: str) -> None:
    check(pattern, search_expr, regex.compile(pattern).search)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["a|b", "a|ab", "[ab]", "(?:aa|b)?"]), PATTERNS, st.sampled_from(["", "x?", ".*"]))
def test_backreferences_that_are_lowered_mean_what_they_say(group: str, middle: str, after: str) -> None:
    pattern = f"({group}){middle}\\1{after}"
    check(pattern, match_expr, regex.compile(pattern).fullmatch)


LETTERS = ["a", "é", "1", "٣", "_", " ", "\u3000", "\n", "\u2028", "k", "K", "\u212a"]
WORDS = ["".join(text) for n in range(3) for text in itertools.product(LETTERS, repeat=n)]
CLASSES = [
    r"\w",
    r"\W",
    r"\d",
    r"\D",
    r"\s",
    r"\S",
    r"[^\w]",
    r"[\s\S]",
    r"[\W_]",
    r"[^\S1]",
    ".",
    "a",
    "k",
    r"\b",
    "$",
]


def mixed(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.tuples(st.sampled_from(LOOKS[:3]), inner).map(lambda t: t[0].format(t[1])),
        inner.map(lambda part: f"(?:{part})?"),
    )


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.sampled_from(CLASSES), mixed, max_leaves=4), st.sampled_from(["", "(?i)", "(?m)"]))
def test_inner_texts_match_in_both_dialects_and_outer_ones_are_all_that_do_in_any(pattern: str, flags: str) -> None:
    assume(flags != "(?i)" or r"\b" not in pattern)
    try:
        dialects = [re.compile(flags + pattern), re.compile(flags + pattern, re.ASCII)]
    except re.error:  # lookbehind of several lengths
        assume(False)
    inner, outer = search_expr(flags + pattern), search_expr(flags + pattern, sense="outer")
    for text in WORDS:
        found = [dialect.search(text) is not None for dialect in dialects]
        assert all(found) or not matches(inner, text), text
        assert not any(found) or matches(outer, text), text


@pytest.mark.slow
@settings(max_examples=4000, deadline=None)
@given(st.recursive(st.sampled_from(ATOMS), combine, max_leaves=9))
def test_larger_patterns_too(pattern: str) -> None:
    check(pattern, match_expr, regex.compile(pattern).fullmatch)
    check(pattern, search_expr, regex.compile(pattern).search)
