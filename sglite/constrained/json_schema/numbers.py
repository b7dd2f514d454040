"""Numbers as grammars: ranges of integers and of decimals, and multiples.

Every bounded language is a set of plain decimal spellings (no exponent, no leading zeros). A decimal has at most 15
significant digits where a bound is near, because two such decimals are never the same IEEE double: what is inside
the bound as text is inside it after a reader has rounded it.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from sglite.constrained.charset import make
from sglite.constrained.grammar import EMPTY, NOTHING, Chars, Node, Ref, Text, alt, optional, repeat, seq

MAX_DIGITS = 32  # of an integer part that no bound limits: enough for any id, and a model cannot loop in it
PRECISION = 15

DIGIT = Chars(make([(0x30, 0x39)]))


@dataclass(frozen=True)
class Bound:
    """One end of a range."""

    value: Decimal
    exclusive: bool = False


def digit(low: int, high: int) -> Node:
    """One decimal digit of a range; NOTHING when it is empty."""
    return NOTHING if low > high else Text(str(low)) if low == high else Chars(make([(48 + low, 48 + high)]))


def any_number() -> Node:
    """Any JSON number a double can hold."""
    sign = optional(Text("-"))
    exponent = seq(Chars(make([(0x45, 0x45), (0x65, 0x65)])), optional(Chars(make([(43, 43), (45, 45)]))))
    return seq(
        sign,
        natural(0, None),
        optional(seq(Text("."), repeat(DIGIT, 1, MAX_DIGITS))),
        optional(seq(exponent, repeat(DIGIT, 1, 2))),
    )


def integers(low: int | None, high: int | None) -> Node:
    """Integers of an inclusive range, None for no bound."""
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
    parts = []
    longest = max(MAX_DIGITS, len(str(low)) + 1) if high is None else len(str(high))
    if high is None:
        # one rule for everything longer than the bound, instead of one for each length
        parts.append(seq(digit(1, 9), repeat(DIGIT, len(str(low)), longest - 1)))
        longest = len(str(low))
    for length in range(len(str(low)), longest + 1):
        least = max(low, 10 ** (length - 1) if length > 1 else 0)
        most = 10**length - 1 if high is None else min(high, 10**length - 1)
        parts.append(_between(str(least), str(most)))
    return alt(parts)


def _between(low: str, high: str) -> Node:
    """Digit strings of one length between two of that length."""
    if not low:
        return EMPTY
    if set(low) == {"0"} and set(high) == {"9"}:
        return repeat(DIGIT, len(low), len(low))
    first, last = int(low[0]), int(high[0])
    if first == last:
        return seq(Text(low[0]), _between(low[1:], high[1:]))
    rest = len(low) - 1
    return alt(
        [
            seq(Text(low[0]), _between(low[1:], "9" * rest)),
            seq(digit(first + 1, last - 1), repeat(DIGIT, rest, rest)),
            seq(Text(high[0]), _between("0" * rest, high[1:])),
        ]
    )


def decimals(low: Bound | None, high: Bound | None, places: int | None = None) -> Node:
    """Decimals of a range with at most `places` fraction digits (None: as many as are safe)."""
    zero = Decimal(0)
    parts = []
    if low is None or low.value < 0:
        reach = None if low is None else Bound(-low.value, low.exclusive)
        nearest = Bound(-high.value, high.exclusive) if high and high.value < 0 else Bound(zero, True)
        parts.append(seq(Text("-"), _magnitude(nearest, reach, places)))
    if high is None or high.value >= 0:
        start = low if low and low.value >= 0 else Bound(zero)
        parts.append(_magnitude(start, high, places))
    return alt(parts)


def _magnitude(low: Bound, high: Bound | None, places: int | None) -> Node:
    """Unsigned decimals from `low` to `high`."""
    if high is not None and (high.value, 1) < (low.value, 1 + low.exclusive + high.exclusive):
        return NOTHING
    first, low_digits = _split(low.value)
    if high is None:
        n = _places(places, first, low_digits)
        ceiling = natural(first + 1, None)
        lowest = seq(Text(str(first)), _fraction(low_digits, None, low.exclusive, False, n))
        return alt([lowest, seq(ceiling, _fraction(None, None, False, False, n))])
    last, high_digits = _split(high.value)
    n = _places(places, last, max(low_digits, high_digits, key=len))
    if first == last:
        both = _fraction(low_digits, high_digits, low.exclusive, high.exclusive, n)
        return seq(Text(str(first)), both)
    return alt(
        [
            seq(Text(str(first)), _fraction(low_digits, None, low.exclusive, False, n)),
            seq(natural(first + 1, last - 1), _fraction(None, None, False, False, n)),
            seq(Text(str(last)), _fraction(None, high_digits, False, high.exclusive, n)),
        ]
    )


def _split(value: Decimal) -> tuple[int, str]:
    whole, _, fraction = format(value, "f").partition(".")
    return int(whole), fraction.rstrip("0")


def _places(places: int | None, whole: int, digits: str) -> int:
    return max(len(digits), PRECISION - len(str(whole))) if places is None else places


def _fraction(low: str | None, high: str | None, above: bool, below: bool, n: int) -> Node:
    """What may follow an integer part: nothing, or a point and up to n digits, between two digit strings.

    None is an end without a bound; `above` and `below` make an end exclusive.
    """
    ends = EMPTY if _may_end(low, high, above, below) else NOTHING
    more = _digits(low, high, above, below, n, first=True)
    return alt(part for part in (ends, seq(Text("."), more)) if part != NOTHING)


def _may_end(low: str | None, high: str | None, above: bool, below: bool) -> bool:
    """Whether zeros from here on lie between the rests of the two bounds."""
    low_ok = low is None or (not low.strip("0") and not above)
    return low_ok and not (high is not None and below and not high.strip("0"))


def _digits(low: str | None, high: str | None, above: bool, below: bool, n: int, *, first: bool = False) -> Node:
    if n == 0:
        return EMPTY if not first and _may_end(low, high, above, below) else NOTHING
    if low is None and high is None:
        return repeat(DIGIT, int(first), n)
    a = 0 if low is None else int(low[:1] or "0")
    b = 9 if high is None else int(high[:1] or "0")
    low_rest = None if low is None else low[1:]
    high_rest = None if high is None else high[1:]
    parts: list[Node] = [] if first or not _may_end(low, high, above, below) else [EMPTY]
    if low is not None and high is not None and a == b:
        parts.append(seq(Text(str(a)), _digits(low_rest, high_rest, above, below, n - 1)))
        return alt(parts)
    inner_low, inner_high = a + (low is not None), b - (high is not None)
    parts.append(seq(digit(inner_low, inner_high), repeat(DIGIT, 0, n - 1)))
    if low is not None and a <= b:
        parts.append(seq(Text(str(a)), _digits(low_rest, None, above, False, n - 1)))
    if high is not None and a <= b:
        parts.append(seq(Text(str(b)), _digits(None, high_rest, False, below, n - 1)))
    return alt(part for part in parts if part != NOTHING)


def multiples(step: int, name: str) -> dict[str, Node]:
    """Rules for the naturals that `step` divides, without leading zeros; `name` is the rule to use.

    A digit takes remainder r to (10 r + d) mod step; the text may end where the remainder is 0.
    """
    rules: dict[str, Node] = {}
    for remainder in range(step):
        moves: dict[int, list[int]] = {}
        for d in range(10):
            moves.setdefault((10 * remainder + d) % step, []).append(d)
        steps = [seq(Chars(make((48 + d, 48 + d) for d in ds)), Ref(f"{name}.{to}")) for to, ds in moves.items()]
        rules[f"{name}.{remainder}"] = alt([*([EMPTY] if remainder == 0 else []), *steps])
    starts = [seq(Text(str(d)), Ref(f"{name}.{d % step}")) for d in range(1, 10)]
    rules[name] = alt([Text("0"), *starts])
    return rules
