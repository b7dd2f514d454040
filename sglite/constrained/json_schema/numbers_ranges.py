"""Numbers between two bounds, as digits: integers, plain decimals, and decimals with an exponent.

Promise: a text lies inside its bounds as it is written, and also after a reader has made an IEEE double of it. Rounding
is monotone, so an inclusive bound of up to `PRECISION` significant digits, which a double tells apart from every
other such number, holds for any number of digits. Beside an exclusive bound a text with more than `PRECISION` digits
stays one unit of the last of them away, so that it is not rounded onto the bound; a longer bound is drawn inwards to
`PRECISION` digits, but for texts that are integers, which readers keep exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from functools import lru_cache
from typing import TypeAlias

from sglite.constrained.charset import make
from sglite.constrained.grammar import EMPTY, NOTHING, Chars, Node, Text, alt, optional, repeat, seq

MAX_DIGITS = 32  # of an integer part that no bound limits: enough for any id, and a model cannot loop in it
MAX_PLACES = 20  # fraction digits between bounds; a double written without exponent has no more
MAX_MANTISSA = 16  # fraction digits before an exponent between bounds; a double has no more
PRECISION = 15
_ZEROS = 2  # that may follow an upper bound's own digits
_EXPONENTS = (-290, 275)  # of any number: what is written stays a normal double
_LARGEST = 307  # exponent beside a single digit before the point
_PLAIN = (-4, 15)  # exponents of the doubles that are written without one

DIGIT = Chars(make([(0x30, 0x39)]))
_POINT = Text(".")
_E = Chars(make([(0x45, 0x45), (0x65, 0x65)]))
_SHARP = Context(prec=60, Emax=10**6, Emin=-(10**6))


@dataclass(frozen=True, slots=True)
class Bound:
    """One end of a range."""

    value: Decimal
    exclusive: bool = False


_ZERO, _ABOVE_ZERO = Bound(Decimal(0)), Bound(Decimal(0), True)
_ONE, _TEN = Bound(Decimal(1)), Bound(Decimal(10), True)


def digit(low: int, high: int) -> Node:
    """One decimal digit of a range; NOTHING when it is empty."""
    return NOTHING if low > high else Text(str(low)) if low == high else Chars(make([(48 + low, 48 + high)]))


@lru_cache(maxsize=1)
def any_number() -> Node:
    """Any JSON number that a double can hold, an integer or fraction part of at most MAX_DIGITS digits."""
    mantissa = seq(natural(0, None), optional(seq(_POINT, repeat(DIGIT, 1, MAX_DIGITS))))
    scientific = seq(digit(1, 9), optional(seq(_POINT, repeat(DIGIT, 1, MAX_DIGITS))))
    usual = seq(mantissa, optional(seq(_E, _exponents(*_EXPONENTS))))
    return seq(optional(Text("-")), alt([usual, seq(scientific, _E, _exponents(_EXPONENTS[1], _LARGEST))]))


@lru_cache(maxsize=512)
def integers(low: int | None, high: int | None) -> Node:
    """Integers of an inclusive range, None for no bound; zero has no sign."""
    parts = []
    if low is None or low < 0:
        least = 1 if high is None or high >= 0 else -high
        parts.append(seq(Text("-"), natural(least, None if low is None else -low)))
    if high is None or high >= 0:
        parts.append(natural(max(low or 0, 0), high))
    return alt(parts)


def natural(low: int, high: int | None) -> Node:
    """Integers from `low` >= 0 to `high`, None for as far as MAX_DIGITS goes."""
    if high is not None and high < low:
        return NOTHING
    shortest = len(str(low))
    if high is not None and len(str(high)) == shortest:
        return _between(str(low), str(high))
    longest = max(MAX_DIGITS, shortest + 1) if high is None else len(str(high)) - 1
    parts = [_between(str(low), "9" * shortest)]
    if longest > shortest:
        parts.append(seq(digit(1, 9), repeat(DIGIT, shortest, longest - 1)))
    if high is not None:
        parts.append(_between("1" + "0" * longest, str(high)))
    return alt(parts)


def _between(low: str, high: str) -> Node:
    """Digit strings of one length between two of that length."""
    if not low:
        return EMPTY
    if set(low) == {"0"} and set(high) == {"9"}:
        return repeat(DIGIT, len(low), len(low))
    first, last = int(low[0]), int(high[0])
    rest = len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return seq(digit(first, last), repeat(DIGIT, rest, rest))
    if first == last:
        return seq(Text(low[0]), _between(low[1:], high[1:]))
    return alt(
        part
        for part in (
            seq(Text(low[0]), _between(low[1:], "9" * rest)),
            seq(digit(first + 1, last - 1), repeat(DIGIT, rest, rest)),
            seq(Text(high[0]), _between("0" * rest, high[1:])),
        )
        if part != NOTHING
    )


@lru_cache(maxsize=512)
def reals(low: Bound | None, high: Bound | None) -> Node:
    """Numbers of a range: integers, plain decimals, and the exponent form of very small and very large ones."""
    sharp_low, sharp_high = _drawn_in(low, ROUND_CEILING), _drawn_in(high, ROUND_FLOOR)
    parts = [_signed(sharp_low, sharp_high, _decimal_magnitude), _signed(sharp_low, sharp_high, _scientific)]
    if (sharp_low, sharp_high) != (low, high):
        parts.append(integers(first_integer(low), last_integer(high)))
    return alt(part for part in parts if part != NOTHING)


@lru_cache(maxsize=512)
def decimals(low: Bound | None, high: Bound | None, places: int) -> Node:
    """Plain decimals of a range with at most `places` fraction digits; inclusive bounds have no more themselves."""
    return _signed(low, high, lambda least, most: _magnitude(least, most, places))


@lru_cache(maxsize=512)
def plain(low: Bound | None, high: Bound | None) -> Node:
    """Numbers of a range without exponents, as `reals` has them."""
    sharp_low, sharp_high = _drawn_in(low, ROUND_CEILING), _drawn_in(high, ROUND_FLOOR)
    parts = [_signed(sharp_low, sharp_high, _decimal_magnitude)]
    if (sharp_low, sharp_high) != (low, high):
        parts.append(integers(first_integer(low), last_integer(high)))
    return alt(part for part in parts if part != NOTHING)


def first_integer(low: Bound | None) -> int | None:
    """The least integer that a bound allows."""
    if low is None:
        return None
    whole = int(low.value.to_integral_value(ROUND_CEILING))
    return whole + int(low.exclusive and low.value == whole)


def last_integer(high: Bound | None) -> int | None:
    """The greatest integer that a bound allows."""
    if high is None:
        return None
    whole = int(high.value.to_integral_value(ROUND_FLOOR))
    return whole - int(high.exclusive and high.value == whole)


_Magnitude: TypeAlias = Callable[[Bound, Bound | None], Node]  # the unsigned texts from a bound of at least 0 on


def _signed(low: Bound | None, high: Bound | None, magnitude: _Magnitude) -> Node:
    """Both signs of a range; zero has none."""
    parts = []
    if low is None or low.value < 0:
        reach = None if low is None else Bound(low.value.copy_abs(), low.exclusive)
        nearest = Bound(high.value.copy_abs(), high.exclusive) if high and high.value < 0 else _ABOVE_ZERO
        parts.append(seq(Text("-"), magnitude(nearest, reach)))
    if high is None or high.value >= 0:
        parts.append(magnitude(low if low and low.value >= 0 else _ZERO, high))
    return alt(part for part in parts if part != NOTHING)


def _drawn_in(bound: Bound | None, rounding: str) -> Bound | None:
    if bound is None or len(bound.value.as_tuple().digits) <= PRECISION:
        return bound
    drawn = Context(PRECISION, rounding).create_decimal(bound.value)
    return Bound(drawn, bound.exclusive and drawn == bound.value)


def _decimal_magnitude(low: Bound, high: Bound | None) -> Node:
    if low.value.adjusted() >= MAX_DIGITS:
        return NOTHING
    if high is not None and high.value.adjusted() >= MAX_DIGITS:
        high = None
    return _careful(low, high, MAX_PLACES)


def _careful(low: Bound, high: Bound | None, places: int) -> Node:
    """Plain decimals, with fewer digits where more of them could be rounded onto an exclusive bound."""
    near = [b for b in (low, high) if b is not None and b.exclusive and b.value]
    if not near:
        return _magnitude(low, high, places)
    # the place of the last digit that a double keeps; without fraction digits a text is an integer, which is exact
    exact = min(places, *(max(0, PRECISION - 1 - b.value.adjusted()) for b in near))
    inner_low = _beside(low, 1) if low in near else low
    inner_high = _beside(high, -1) if high is not None and high in near else high
    return alt([_magnitude(low, high, exact), _magnitude(inner_low, inner_high, places)])


def _beside(bound: Bound, sign: int) -> Bound:
    """One unit of the last digit that a double keeps, off a bound."""
    unit = Decimal((int(sign < 0), (1,), bound.value.adjusted() - PRECISION + 1))
    return Bound(_SHARP.add(bound.value, unit))


def _scientific(low: Bound, high: Bound | None) -> Node:
    """One digit that is not 0, perhaps a fraction, and an exponent outside _PLAIN, as a double of that size is written.

    The exponent decides, but beside those of the bounds.
    """
    least = low.value.adjusted() if low.value else _EXPONENTS[0] - 1
    most = _LARGEST + 2 if high is None else high.value.adjusted() if high.value else _EXPONENTS[0]
    free = []
    for first, last in ((_EXPONENTS[0], _PLAIN[0] - 1), (_PLAIN[1] + 1, _LARGEST)):
        first, last = max(first, least + 1), min(last, most - 2)
        if first <= last:
            free.append(_exponents(first, last))
    parts = [seq(digit(1, 9), optional(seq(_POINT, repeat(DIGIT, 1, MAX_MANTISSA))), _E, alt(free))] if free else []
    if high is not None and high.value:
        if most - 1 > least:  # so many nines could be rounded onto the bound
            parts.append(_at_exponent(_ONE, _TEN, most - 1))
        parts.append(_at_exponent(_mantissa(low) if least == most else _ONE, _mantissa(high), most))
    if low.value and (high is None or least < most):
        parts.append(_at_exponent(_mantissa(low), _TEN, least))
    return alt(part for part in parts if part != NOTHING)


def _mantissa(bound: Bound) -> Bound:
    return Bound(_SHARP.scaleb(bound.value, -bound.value.adjusted()), bound.exclusive)


def _at_exponent(low: Bound, high: Bound, exponent: int) -> Node:
    if _PLAIN[0] <= exponent <= _PLAIN[1] or not _EXPONENTS[0] <= exponent <= _LARGEST:
        return NOTHING
    return seq(_careful(low, high, MAX_MANTISSA), _E, _exponents(exponent, exponent))


def _exponents(low: int, high: int) -> Node:
    """Exponents of an inclusive range, with or without a sign and a leading 0."""
    zero, parts = optional(Text("0")), []
    if low < 0:
        parts.append(seq(Text("-"), zero, natural(max(1, -high), -low)))
    if high >= 0:
        parts.append(seq(optional(Text("+")), zero, natural(max(0, low), high)))
    return alt(parts)


def _magnitude(low: Bound, high: Bound | None, places: int) -> Node:
    """Unsigned plain decimals from `low` to `high`."""
    if high is not None and (high.value, 1) < (low.value, 1 + low.exclusive + high.exclusive):
        return NOTHING
    first, low_digits = _split(low.value)
    lowest = _fraction(low_digits, None, low.exclusive, False, places)
    free = _fraction(None, None, False, False, places)
    if high is None:
        return alt([seq(Text(str(first)), lowest), seq(natural(first + 1, None), free)])
    last, high_digits = _split(high.value)
    if first == last:
        return seq(Text(str(first)), _fraction(low_digits, high_digits, low.exclusive, high.exclusive, places))
    highest = _fraction(None, high_digits, False, high.exclusive, places)
    middle = [seq(natural(first + 1, last - 1), free)] if first + 1 < last else []
    ends = [seq(Text(str(first)), lowest), *middle, seq(Text(str(last)), highest)]
    return alt(part for part in ends if part != NOTHING)


def _split(value: Decimal) -> tuple[int, str]:
    whole, _, fraction = format(value, "f").partition(".")
    return int(whole), fraction.rstrip("0")


def _fraction(low: str | None, high: str | None, above: bool, below: bool, n: int) -> Node:
    """What may follow an integer part: nothing, or a point and up to n digits, between two digit strings.

    None is an end without a bound; `above` and `below` make an end exclusive.
    """
    ends = EMPTY if _may_end(low, high, above, below) else NOTHING
    more = _digits(low, high, above, below, n, first=True)
    return alt(part for part in (ends, seq(_POINT, more)) if part != NOTHING)


def _may_end(low: str | None, high: str | None, above: bool, below: bool) -> bool:
    """Whether zeros from here on lie between the rests of the two bounds."""
    low_ok = low is None or (not low.strip("0") and not above)
    return low_ok and not (high is not None and below and not high.strip("0"))


def _digits(low: str | None, high: str | None, above: bool, below: bool, n: int, *, first: bool = False) -> Node:
    if n == 0:
        return EMPTY if not first and _may_end(low, high, above, below) else NOTHING
    if low is not None and not above and not low.strip("0"):
        low = None  # every digit from here on is at least that
    if high == "":
        n = min(n, _ZEROS)
    if low is None and high is None:
        return repeat(DIGIT, int(first), n)
    a = 0 if low is None else int(low[:1] or "0")
    b = 9 if high is None else int(high[:1] or "0")
    low_rest = None if low is None else low[1:]
    high_rest = None if high is None else high[1:]
    parts: list[Node] = [] if first or not _may_end(low, high, above, below) else [EMPTY]
    if low is not None and high is not None and a == b:
        parts.append(seq(Text(str(a)), _digits(low_rest, high_rest, above, below, n - 1)))
        return alt(part for part in parts if part != NOTHING)
    inner_low, inner_high = a + (low is not None), b - (high is not None)
    parts.append(seq(digit(inner_low, inner_high), repeat(DIGIT, 0, n - 1)))
    if low is not None and a <= b:
        parts.append(seq(Text(str(a)), _digits(low_rest, None, above, False, n - 1)))
    if high is not None and a <= b:
        parts.append(seq(Text(str(b)), _digits(None, high_rest, False, below, n - 1)))
    return alt(part for part in parts if part != NOTHING)
