"""Languages against their definitions: regex against `re`, character sets against sets."""

from __future__ import annotations

import re

import pytest
from constrained_walks import small_vocabulary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglite.constrained import charset
from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.fsm import matches
from sglite.constrained.regex import match_expr, search_expr
from sglite.constrained.spec import ConstraintSpec

ATOMS = ["a", "b", "1", ".", r"\d", r"\w", "[ab]", "[^a]", r"[^\w]", r"[^\d]", "[a-c1]", r"\s", r"\W", "é", r"\."]
CLASSES = st.sampled_from(["[ab]", ".", "[^a]", r"[\s\S]", r"\w"])


def combine(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    counts = st.tuples(st.integers(0, 3), st.integers(0, 4)).map(lambda t: f"{{{t[0]},{t[0] + t[1]}}}")
    quantifiers = st.sampled_from(["*", "+", "?", "{2}", "{1,}", "*?"]) | counts
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: "(" + "|".join(parts) + ")"),
        st.tuples(inner, quantifiers).map(lambda t: f"(?:{t[0]}){t[1]}"),
        # long counts of one class: the engine takes another way for them
        st.tuples(CLASSES, st.integers(0, 3), st.integers(5, 9)).map(lambda t: f"{t[0]}{{{t[1]},{t[1] + t[2]}}}"),
    )


PATTERNS = st.recursive(st.sampled_from(ATOMS), combine, max_leaves=5)
TEXTS = st.text(alphabet="aab1c.é٣ \n", max_size=12)


@settings(max_examples=300, deadline=None)
@given(PATTERNS, st.lists(TEXTS, min_size=1, max_size=8))
def test_regex_language_is_that_of_re_where_dialects_agree(pattern: str, texts: list[str]) -> None:
    body = match_expr(pattern)
    for text in texts:
        if matches(body, text):
            assert re.fullmatch(pattern, text)
        elif text.isascii() and "\n" not in text:
            assert not re.fullmatch(pattern, text)


@settings(max_examples=200, deadline=None)
@given(PATTERNS, st.sampled_from(["", "^"]), st.sampled_from(["", "$"]), TEXTS)
def test_search_language_is_that_of_re_search(pattern: str, start: str, end: str, text: str) -> None:
    anchored = f"{start}(?:{pattern}){end}"
    found = matches(search_expr(anchored), text)
    if found:
        assert re.search(anchored, text)
    elif text.isascii() and "\n" not in text:
        assert not re.search(anchored, text)


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(small_vocabulary())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pattern=PATTERNS, texts=st.lists(TEXTS, min_size=1, max_size=6))
def test_the_engine_accepts_exactly_the_language(compiler: ConstraintCompiler, pattern: str, texts: list[str]) -> None:
    body = match_expr(pattern)
    compiled = compiler.compile(ConstraintSpec.regex(pattern))
    for text in texts:
        matcher = compiled.matcher()
        data = text.encode()
        accepted = matcher.accept_run(list(data)) == len(data) and matcher.accepting
        assert accepted == matches(body, text), (pattern, text)


RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda t: (t[0], t[0] + t[1])), max_size=5)


@given(RANGES, RANGES)
def test_charsets_are_sets(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    a, b = charset.make(left), charset.make(right)
    members = [{c for c in range(80) if charset.contains(s, c)} for s in (a, b)]
    assert charset.union(a, b) == charset.make([*left, *right])
    assert {c for c in range(80) if charset.contains(charset.intersect(a, b), c)} == members[0] & members[1]
    assert {c for c in range(80) if charset.contains(charset.difference(a, b), c)} == members[0] - members[1]
    assert charset.complement(charset.complement(a)) == a
    assert charset.size(a) == len(members[0])
