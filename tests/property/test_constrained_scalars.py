"""Sets of numbers and strings against their plain meaning, and their grammars against the sets."""

from __future__ import annotations

import ipaddress
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from fractions import Fraction
from itertools import product
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from constrained_texts import reads, sample, walk
from hypothesis import given, settings
from hypothesis import strategies as st

from sglite.constrained import fsm
from sglite.constrained.json_schema.formats import NAMES
from sglite.constrained.json_schema.numbers import NumberSet
from sglite.constrained.json_schema.numbers_ranges import Bound, integers, plain
from sglite.constrained.json_schema.strings import StringSet

idna = pytest.importorskip("idna")
jsonschema = pytest.importorskip("jsonschema")


# Ranges.

INTS = st.integers(-(10**6), 10**6) | st.integers(-30, 130)


@settings(max_examples=300, deadline=None)
@given(st.none() | INTS, st.none() | INTS, INTS)
def test_integer_ranges(low: int | None, high: int | None, value: int) -> None:
    inside = (low is None or low <= value) and (high is None or value <= high)
    assert fsm.matches(integers(low, high), str(value)) == inside
    for edge in (low, high):
        for near in (edge - 1, edge, edge + 1) if edge is not None else ():
            inside = (low is None or low <= near) and (high is None or near <= high)
            assert fsm.matches(integers(low, high), str(near)) == inside
    assert not fsm.matches(integers(low, high), f"0{value}") and not fsm.matches(integers(low, high), f"{value}.0")


DECIMALS = st.decimals(-1000, 1000, places=3) | st.integers(-20, 20).map(Decimal) | st.decimals(-1, 1, places=6)
BOUNDS = st.none() | st.builds(Bound, DECIMALS, st.booleans())


def within(low: Bound | None, high: Bound | None, value: Decimal) -> bool:
    above = low is None or value > low.value or (value == low.value and not low.exclusive)
    return above and (high is None or value < high.value or (value == high.value and not high.exclusive))


@settings(max_examples=250, deadline=None)
@given(BOUNDS, BOUNDS, DECIMALS, st.sampled_from([0, 1, 2]))
def test_decimal_ranges(low: Bound | None, high: Bound | None, value: Decimal, zeros: int) -> None:
    node = plain(low, high)
    edges = [b.value + step for b in (low, high) if b for step in (Decimal(0), Decimal("0.001"), Decimal("-0.001"))]
    for number in [value, *edges]:
        text = format(number.normalize(), "f")
        if zeros and "." in text:
            text += "0" * zeros
        if number == 0 and text.startswith("-"):
            continue  # minus zero is left out
        assert fsm.matches(node, text) == within(low, high, number), text


# Numbers.


@dataclass(frozen=True)
class Said:
    """A set beside what it means."""

    shown: str
    numbers: NumberSet
    means: Callable[[Fraction], bool]


_VALUES = st.one_of(
    st.integers(-120, 120).map(Decimal),
    st.decimals(-60, 60, places=1),
    st.decimals(-5, 5, places=3),
    st.sampled_from([Decimal("1e-7"), Decimal("1e16"), Decimal("-2.5e20"), Decimal(2**53)]),
)
_STEPS = st.sampled_from(
    [
        *map(
            Decimal,
            [
                "1",
                "2",
                "3",
                "5",
                "7",
                "10",
                "12",
                "40",
                "0.1",
                "0.5",
                "0.25",
                "1.5",
                "0.01",
                "0.05",
                "2.5",
                "0.7",
                "0.125",
            ],
        )
    ]
)


def _at_least(value: Decimal, strict: bool) -> Said:
    edge = Fraction(value)
    numbers = NumberSet.range(value, exclusive_low=strict)
    return Said(f"{'>' if strict else '>='}{value}", numbers, lambda n: n > edge if strict else n >= edge)


def _at_most(value: Decimal, strict: bool) -> Said:
    edge = Fraction(value)
    numbers = NumberSet.range(None, value, exclusive_high=strict)
    return Said(f"{'<' if strict else '<='}{value}", numbers, lambda n: n < edge if strict else n <= edge)


def _multiple(step: Decimal) -> Said:
    unit = Fraction(step)
    return Said(f"*{step}", NumberSet.multiple_of(step), lambda n: n % unit == 0)


def _listed(values: list[Decimal]) -> Said:
    exact = {Fraction(value) for value in values}
    return Said(f"{{{values}}}", NumberSet.of(values), lambda n: n in exact)


def _and(a: Said, b: Said) -> Said:
    return Said(f"({a.shown} & {b.shown})", a.numbers & b.numbers, lambda n: a.means(n) and b.means(n))


def _or(a: Said, b: Said) -> Said:
    return Said(f"({a.shown} | {b.shown})", a.numbers | b.numbers, lambda n: a.means(n) or b.means(n))


def _not(a: Said) -> Said:
    return Said(f"~{a.shown}", ~a.numbers, lambda n: not a.means(n))


SAID = st.recursive(
    st.one_of(
        st.builds(_at_least, _VALUES, st.booleans()),
        st.builds(_at_most, _VALUES, st.booleans()),
        st.builds(_multiple, _STEPS),
        st.builds(_listed, st.lists(_VALUES, max_size=3)),
    ),
    lambda sets: st.one_of(st.builds(_and, sets, sets), st.builds(_or, sets, sets), st.builds(_not, sets)),
    max_leaves=5,
)

POOL = sorted(
    {Decimal(n) for n in range(-130, 131)}
    | {Decimal(n) / 8 for n in range(-40, 41)}
    | {Decimal(n) / 100 for n in range(-210, 211, 7)}
    | {Decimal(n) / 10 for n in range(-130, 131)}
    | {
        Decimal(text)
        for text in ("1e-7", "-1e-7", "1.5e16", "-2.5e20", "0.0001", "59.999", "60.001", "9007199254740993")
    }
)
TEXTS = [json.dumps(int(value) if value == value.to_integral_value() else float(value)) for value in POOL]


@settings(max_examples=150, deadline=None)
@given(SAID)
def test_the_algebra_of_numbers_is_that_of_their_meanings(said: Said) -> None:
    for value in POOL:
        assert (value in said.numbers) == said.means(Fraction(value)), (said.shown, value)
    listed = said.numbers.finite(300)
    if listed is not None:
        assert all(said.means(Fraction(value)) for value in listed)
        assert {value for value in POOL if value in said.numbers} <= set(listed)
        assert said.numbers.is_empty() == (not listed)


@settings(max_examples=80, deadline=None)
@given(SAID, st.randoms(use_true_random=False))
def test_the_grammar_of_numbers_is_the_documented_spelling_of_the_set(said: Said, rng: random.Random) -> None:
    spelled = said.numbers.node("n")
    if said.numbers.is_empty():
        return
    for text in rng.sample(TEXTS, 40):
        if Decimal(text) in said.numbers:
            assert "e" in text or sum(map(str.isdigit, text)) > 15 or reads(spelled.node, spelled.rules, text), (
                said.shown,
                text,
            )
        elif spelled.exact:
            assert not reads(spelled.node, spelled.rules, text), (said.shown, text)
    if not spelled.exact:
        return
    for _ in range(20):
        text = sample(spelled.node, spelled.rules, rng)
        value = json.loads(text)
        assert Decimal(text) in said.numbers, (said.shown, text)
        assert value in said.numbers, (said.shown, text)


# Strings.


@dataclass(frozen=True)
class Told:
    """A set of strings beside what it means."""

    strings: StringSet
    means: Callable[[str], bool]


def _lengths(low: int, more: int | None) -> Told:
    high = None if more is None else low + more
    return Told(StringSet.lengths(low, high), lambda text: low <= len(text) and (high is None or len(text) <= high))


def _pattern(pattern: str) -> Told:
    return Told(StringSet.pattern(pattern), lambda text: re.search(pattern, text) is not None)


def _texts(values: list[str]) -> Told:
    return Told(StringSet.of(values), lambda text: text in values)


WORDS = st.text(alphabet="ab1é\n😀", max_size=4)
TOLD = st.recursive(
    st.one_of(
        st.builds(_lengths, st.integers(0, 3), st.one_of(st.none(), st.integers(0, 3))),
        st.sampled_from(["a", "^a", "b$", "^(ab|1)*$", "^[^a]*$", r"^\S+$", "a.b|1", "^$", ""]).map(_pattern),
        st.builds(_texts, st.lists(WORDS, max_size=3)),
    ),
    lambda sets: st.one_of(
        st.tuples(sets, sets).map(
            lambda t: Told(t[0].strings & t[1].strings, lambda s: t[0].means(s) and t[1].means(s))
        ),
        st.tuples(sets, sets).map(
            lambda t: Told(t[0].strings | t[1].strings, lambda s: t[0].means(s) or t[1].means(s))
        ),
        sets.map(lambda told: Told(~told.strings, lambda s: not told.means(s))),
    ),
    max_leaves=5,
)
# Texts on which `$` and `.` of Python and ECMA-262 agree.
AGREED = [text for n in range(4) for text in map("".join, product("ab1é😀", repeat=n))]


@settings(max_examples=150, deadline=None)
@given(TOLD)
def test_the_algebra_of_strings_is_that_of_their_meanings(told: Told) -> None:
    for text in AGREED:
        assert told.strings.contains(text) == told.means(text), text
        assert fsm.matches(told.strings.expr, text) == told.means(text), text
    listed = told.strings.finite(200)
    if listed is not None:
        assert {text for text in AGREED if told.means(text)} <= set(listed)
        assert told.strings.is_empty() == (not listed)
    elif told.strings.is_empty():
        raise AssertionError("an empty set is a finite one")


@settings(max_examples=150, deadline=None)
@given(TOLD)
def test_an_extendable_set_goes_on_from_every_prefix(told: Told) -> None:
    if not told.strings.extendable:
        return
    table = fsm.compile_expr(told.strings.expr)
    onward = {state: {target for _, target in table.targets(state)} for state in range(len(table.accepting))}
    for state in onward:  # no dead states: without an end to its loops every state has infinitely many texts
        reached, waiting = {state}, [state]
        while waiting:
            for target in onward[waiting.pop()] - reached:
                reached.add(target)
                waiting.append(target)
        assert any(other in onward[other] or _loops(onward, other) for other in reached)


def _loops(onward: dict[int, set[int]], state: int) -> bool:
    reached: set[int] = set()
    waiting = list(onward[state])
    while waiting:
        at = waiting.pop()
        if at == state:
            return True
        if at not in reached:
            reached.add(at)
            waiting.extend(onward[at])
    return False


# Formats.

_DRAFT = jsonschema.Draft202012Validator.FORMAT_CHECKER


@pytest.mark.parametrize("name", sorted(NAMES))
def test_generated_texts_of_a_format_pass_other_checkers(name: str) -> None:
    rng = random.Random(name)
    strings = StringSet.format(name)
    assert strings is not None
    for _ in range(60):
        text = walk(strings.expr, rng)
        assert strings.contains(text)
        assert _DRAFT.conforms(text, name), text
        assert name not in READERS or READERS[name](text), text


def _date_exists(text: str) -> bool:
    return date(int(text[:4]), int(text[5:7]), int(text[8:])).isoformat() == text


def _time_exists(text: str) -> bool:
    clock = text.upper().replace(":60", ":59").replace("Z", "+00:00")
    whole, _, zone = clock.replace("-", "+").partition("+")
    return time.fromisoformat(f"{whole.partition('.')[0]}+{zone}") is not None


READERS: dict[str, Callable[[str], bool]] = {
    "date": _date_exists,
    "time": _time_exists,
    "date-time": lambda text: _date_exists(text[:10]) and text[10] in "Tt" and _time_exists(text[11:]),
    "ipv6": lambda text: ipaddress.IPv6Address(text) is not None,
    "regex": lambda text: re.compile(text) is not None,
    "uri": lambda text: urlsplit(text).scheme != "",
    "uuid": lambda text: str(UUID(text)) == text.lower(),
    "hostname": lambda text: len(text) <= 253 and all(0 < len(part) <= 63 for part in text.split(".")),
    "idn-hostname": lambda text: len(idna.encode(text)) <= 253,
}
