"""Languages against their definitions: regex against `re`, ranges against arithmetic, name sets against sets."""

from __future__ import annotations

import json
import re
from decimal import Decimal

import pytest
from constrained_walks import small_vocabulary
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sglite.constrained import charset
from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.grammar import lengths
from sglite.constrained.json_schema.numbers import Bound, decimals, integers
from sglite.constrained.json_schema.strings import limit_length, plain_name, quoted
from sglite.constrained.matching import matches
from sglite.constrained.regex import check_regex, check_search
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
    body = check_regex(pattern).body
    for text in texts:
        if matches(body, text):
            assert re.fullmatch(pattern, text)
        elif text.isascii() and "\n" not in text:
            assert not re.fullmatch(pattern, text)


@settings(max_examples=200, deadline=None)
@given(PATTERNS, st.sampled_from(["", "^"]), st.sampled_from(["", "$"]), TEXTS)
def test_search_language_is_that_of_re_search(pattern: str, start: str, end: str, text: str) -> None:
    anchored = f"{start}(?:{pattern}){end}"
    found = matches(check_search(anchored).body, text)
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
    body = check_regex(pattern).body
    compiled = compiler.compile(ConstraintSpec.regex(pattern))
    for text in texts:
        matcher = compiled.matcher()
        data = text.encode()
        accepted = matcher.accept_run(list(data)) == len(data) and matcher.accepting
        assert accepted == matches(body, text), (pattern, text)


INTS = st.integers(-(10**6), 10**6) | st.integers(-30, 130)


@settings(max_examples=300, deadline=None)
@given(st.none() | INTS, st.none() | INTS, INTS)
def test_integer_ranges(low: int | None, high: int | None, value: int) -> None:
    inside = (low is None or low <= value) and (high is None or value <= high)
    assert matches(integers(low, high), str(value)) == inside
    for edge in (low, high):
        for near in (edge - 1, edge, edge + 1) if edge is not None else ():
            inside = (low is None or low <= near) and (high is None or near <= high)
            assert matches(integers(low, high), str(near)) == inside
    assert not matches(integers(low, high), f"0{value}") and not matches(integers(low, high), f"{value}.0")


DECIMALS = st.decimals(-1000, 1000, places=3) | st.integers(-20, 20).map(Decimal) | st.decimals(-1, 1, places=6)
BOUNDS = st.none() | st.builds(Bound, DECIMALS, st.booleans())


def within(low: Bound | None, high: Bound | None, value: Decimal) -> bool:
    above = low is None or value > low.value or (value == low.value and not low.exclusive)
    return above and (high is None or value < high.value or (value == high.value and not high.exclusive))


@settings(max_examples=400, deadline=None)
@given(BOUNDS, BOUNDS, DECIMALS, st.sampled_from([0, 1, 2, 3]))
def test_decimal_ranges(low: Bound | None, high: Bound | None, value: Decimal, zeros: int) -> None:
    node = decimals(low, high)
    edges = [b.value + step for b in (low, high) if b for step in (Decimal(0), Decimal("0.001"), Decimal("-0.001"))]
    for number in [value, *edges]:
        text = format(number.normalize(), "f")
        if zeros and "." in text:
            text += "0" * zeros
        if number == 0 and text.startswith("-"):
            continue  # minus zero is left out
        assert matches(node, text) == within(low, high, number), text


@settings(max_examples=200, deadline=None)
@given(PATTERNS, st.integers(0, 6), st.none() | st.integers(0, 10), TEXTS)
def test_limit_length_is_exact_or_refuses(pattern: str, low: int, high: int | None, text: str) -> None:
    body = check_regex(pattern).body
    limited = limit_length(body, low, high)
    assume(limited is not None)
    assert limited is not None
    inside = low <= len(text) and (high is None or len(text) <= high)
    assert matches(limited, text) == (matches(body, text) and inside)
    least, most = lengths(limited)
    if matches(limited, text):
        assert least <= len(text) and (most is None or len(text) <= most)


NAMES = st.lists(st.text(alphabet='ab"\\\n', max_size=4), max_size=5, unique=True)


@settings(max_examples=300, deadline=None)
@given(NAMES, st.text(alphabet="abc", max_size=5))
def test_an_undeclared_name_is_every_plain_name_but_the_declared(taken: list[str], name: str) -> None:
    assert matches(plain_name(taken), json.dumps(name)) == (name not in taken)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=8).filter(lambda t: all(not "\ud800" <= c <= "\udfff" for c in t)))
def test_a_quoted_string_is_json_of_the_text(text: str) -> None:
    node = quoted(check_regex(r"(?s).*").body)
    assert matches(node, json.dumps(text, ensure_ascii=False))
    assert json.loads(json.dumps(text, ensure_ascii=False)) == text


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
