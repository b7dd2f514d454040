"""Sets of numbers: what they simplify to, which texts they have, and what that costs."""

from __future__ import annotations

import json
import random
from decimal import Decimal

import pytest
from constrained_texts import reads, sample

from sglite.constrained import fsm
from sglite.constrained.grammar import NOTHING
from sglite.constrained.json_schema.layout import Layout
from sglite.constrained.json_schema.numbers import NumberSet
from sglite.constrained.json_schema.scalars import constant
from sglite.constrained.spec import ConstraintRefused

ALL, INTEGERS, NONE = NumberSet.ALL, NumberSet.INTEGERS, NumberSet.NONE


def written(numbers: NumberSet, text: str) -> bool:
    spelled = numbers.node("n")
    return reads(spelled.node, spelled.rules, text)


@pytest.mark.parametrize("numbers", [ALL, INTEGERS, NONE, NumberSet.range(0, 10), NumberSet.of([1, 2.5])])
def test_laws_that_cost_nothing(numbers: NumberSet) -> None:
    assert numbers & ALL == numbers
    assert numbers | NONE == numbers
    assert numbers & numbers == numbers | numbers == ~~numbers == numbers
    assert (numbers & ~numbers).is_empty()
    assert (numbers & NONE).is_empty()


def test_ranges_that_meet_are_one() -> None:
    assert NumberSet.range(5) | NumberSet.range(None, 10) == ALL
    assert INTEGERS & (NumberSet.range(1, 5) | NumberSet.range(6, 9)) == INTEGERS & NumberSet.range(1, 9)
    assert NumberSet.range(0, 1) | NumberSet.range(0.25, 0.5) == NumberSet.range(0, 1)


@pytest.mark.parametrize(
    ("numbers", "members"),
    [
        (INTEGERS & NumberSet.range(0.5, 3.5), [1, 2, 3]),
        (NumberSet.multiple_of(0.5) & NumberSet.range(0, 1), [0, Decimal("0.5"), 1]),
        (NumberSet.multiple_of(4) & NumberSet.multiple_of(6) & NumberSet.range(1, 30), [12, 24]),
        (INTEGERS & NumberSet.range(1, 9) & ~NumberSet.multiple_of(3) & ~NumberSet.of([4]), [1, 2, 5, 7, 8]),
        (INTEGERS & NumberSet.range(3, 4, exclusive_low=True, exclusive_high=True), []),
        (NumberSet.range(3, 3), [3]),
        (NumberSet.of([1.0, 1, 2.5]), [1, Decimal("2.5")]),
    ],
)
def test_small_sets_are_listed(numbers: NumberSet, members: list[int | Decimal]) -> None:
    assert numbers.finite(10) == members
    assert numbers.is_empty() == (not members)


def test_large_sets_are_not_listed() -> None:
    assert (INTEGERS & NumberSet.range(0, 10)).finite(10) is None
    assert INTEGERS.finite(10**6) is None
    assert NumberSet.range(0, 1).finite(10**6) is None


@pytest.mark.parametrize(
    ("numbers", "yes", "no"),
    [
        (ALL, "0 -0 -0.0 1.50 1e5 1E-07 1e+300 9.99e307 1.2345678901234567e-290", "01 .5 5. +1 1e309 1e-400"),
        (INTEGERS, "0 -1 7 12345678901234567890123456789012", "-0 1.0 1e2 00 123456789012345678901234567890123"),
        (NumberSet.range(0), "0 0.0 1e-07 1.5e+30 4.94 0.12345678901234567", "-1 -1e-07 -0.1"),
        (NumberSet.range(0, exclusive_low=True), "1e-07 0.00001 2", "0 0.0 0.00 -1"),
        (NumberSet.range(-90, 90), "-90 90 90.0 89.99999999999999999 45.12345678901234", "90.1 -90.0001 91 1e16"),
        (NumberSet.range(None, 5, exclusive_high=True), "4.99999999999999 0.8473920473829104", "5 4.99999999999999999"),
        (NumberSet.range(None, 9007199254740991), "9007199254740991 1.5", "9007199254740992 9007199254740991.5"),
        (NumberSet.range(None, 1.7976931348623157e308), "1e300 5 -2.5", "1.8e308"),
        (NumberSet.range(1e-6, 1e-5), "0.000001 1e-06 9.5e-06 0.000005", "1.1e-05 9e-07 0 1"),
        (~NumberSet.of([5]), "4 6 4.99999999999999 -3.25 50", "5 5.0 5.00"),
        (~INTEGERS, "0.5 -1.25 3.10", "3 3.0 -2.00"),
        (ALL & ~NumberSet.multiple_of(3), "1 -2 3.5 10", "3 0 -9 3.0 6.00"),
        (NumberSet.multiple_of(0.01), "0 3 1.25 1.2 -0.05 200.0", "1.255 1e2"),
        (NumberSet.multiple_of(0.25) & NumberSet.range(0, 10**6), "0.25 999999.75 1.5 7", "0.3 1000000.25 -0.25"),
        (NumberSet.multiple_of(1.5), "0 1.5 3 3.0 -4.5 1000000.5", "1 2.5 0.0000"),
        (NumberSet.multiple_of(7) & NumberSet.range(0, 10**6), "0 7 999999 14", "8 1000006 -7 07"),
        (NumberSet.multiple_of(3600), "0 3600 -7200 36000000", "360 3601 00 3600.0"),
        (NumberSet.multiple_of(8) & NumberSet.range(0, 2**32 - 1), "0 8 4294967288", "4 4294967296"),
        (NumberSet.multiple_of(1e300), "0", "1"),
    ],
)  # fmt: skip
def test_spellings(numbers: NumberSet, yes: str, no: str) -> None:
    for text in yes.split():
        assert written(numbers, text), text
    for text in no.split():
        assert not written(numbers, text), text


@pytest.mark.parametrize(
    ("numbers", "states"),
    [
        (ALL, 130),
        (INTEGERS, 70),
        (NumberSet.range(0), 120),
        (NumberSet.range(0, 1), 80),
        (INTEGERS & NumberSet.range(0, 100), 6),
        (INTEGERS & NumberSet.range(-(2**31), 2**31 - 1), 200),
        (NumberSet.multiple_of(0.01), 80),
    ],
)
def test_automata_stay_small(numbers: NumberSet, states: int) -> None:
    spelled = numbers.node("n")
    assert spelled.exact
    assert not spelled.rules
    assert len(fsm.compile_expr(spelled.node).accepting) <= states


@pytest.mark.parametrize(
    ("numbers", "rules"),
    [
        (NumberSet.multiple_of(7), 220),
        (NumberSet.multiple_of(251), 253),
        (NumberSet.multiple_of(3) & NumberSet.range(0, 10**9), 30),
        (NumberSet.multiple_of(60) & NumberSet.range(0, 86400 * 7), 60),
    ],
)
def test_rules_of_multiples_are_few_and_right(numbers: NumberSet, rules: int) -> None:
    spelled = numbers.node("n")
    assert spelled.exact
    assert 0 < len(spelled.rules) <= rules
    rng = random.Random(7)
    for _ in range(30):
        text = sample(spelled.node, spelled.rules, rng) if rules != 253 else str(rng.randint(-(10**9), 10**9) * 251)
        assert int(text) in numbers
        assert reads(spelled.node, spelled.rules, text)
        assert not reads(spelled.node, spelled.rules, str(int(text) + 1))


def test_what_takes_too_many_rules_is_wider_and_says_so() -> None:
    numbers = NumberSet.multiple_of(0.123456789)
    spelled = numbers.node("n")
    assert not spelled.exact
    assert reads(spelled.node, spelled.rules, "0.246913578")
    assert 1 not in numbers
    assert 0.246913578 in numbers


def test_numbers_out_of_reach_are_refused() -> None:
    for bound in (Decimal("1e1000000"), Decimal("1e-1000000")):
        with pytest.raises(ConstraintRefused, match="further from 1"):
            NumberSet.range(bound)
        with pytest.raises(ConstraintRefused, match="further from 1"):
            NumberSet.multiple_of(bound)
        assert bound in ALL
        assert bound in NumberSet.range(0)
    with pytest.raises(ConstraintRefused, match="too many digits"):
        (INTEGERS & NumberSet.range(Decimal("1e200"))).node("n")
    with pytest.raises(ConstraintRefused, match="ranges"):
        numbers = NONE
        for n in range(0, 2000, 2):
            numbers |= NumberSet.range(n, n + 1)
    with pytest.raises(ValueError, match="above 0"):
        NumberSet.multiple_of(0)


def test_integer_formats() -> None:
    assert NumberSet.format("int32") == INTEGERS & NumberSet.range(-(2**31), 2**31 - 1)
    assert NumberSet.format("uint8") == INTEGERS & NumberSet.range(0, 255)
    assert NumberSet.format("double") is None
    assert NumberSet.format("email") is None


def test_constants_are_written_as_json_writes_them() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"x\n": 'é"', "": []}, "c": -1e-7}
    assert reads(constant(value, Layout.of("fixed")), {}, json.dumps(value))
    assert reads(constant(value, Layout.of("compact")), {}, json.dumps(value, separators=(",", ":")))
    assert reads(constant(value, Layout.of("flexible")), {}, json.dumps(value, indent=2))
    assert not reads(constant(value, Layout.of("fixed")), {}, json.dumps(value, sort_keys=True))
    compact = constant([1, 2.0, 1e30], Layout.of("compact"))
    for text in ("[1,2,1e+30]", "[1,2.0,1000000000000000000000000000000]"):
        assert reads(compact, {}, text)
    assert not reads(compact, {}, "[1.0,2,1e+30]")
    assert constant(["\ud800"], Layout.of("compact")) == NOTHING


def test_every_json_number_written_by_json_is_read() -> None:
    rng = random.Random(3)
    node = ALL.node("n").node
    for _ in range(300):
        value = rng.choice([rng.uniform(-1, 1), rng.uniform(-1e6, 1e6), 10 ** rng.uniform(-280, 300)])
        assert fsm.matches(node, json.dumps(value)), value
