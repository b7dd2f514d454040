"""Pieces of number sets: a range, cut down to the multiples of a step, without some multiples and some values.

Decimals stand for exact numbers here: they are compared and taken apart, never added or rounded. A piece made by
`shaped` is canonical: its bounds are multiples of its step, and it is known to have a member.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from math import lcm

from sglite.constrained.json_schema.numbers_ranges import Bound
from sglite.constrained.json_values import is_multiple
from sglite.constrained.spec import ConstraintRefused

_SEARCHED = 256  # multiples looked at for one that is not excluded
_MAX_DIGITS = 400  # of a number taken apart


@dataclass(frozen=True, slots=True)
class Piece:
    """Numbers from `low` to `high` that are multiples of `step` (None: any) and of none of `without`, but not `but`."""

    low: Bound | None = None
    high: Bound | None = None
    step: Decimal | None = None
    without: frozenset[Decimal] = frozenset()
    but: frozenset[Decimal] = frozenset()

    def __contains__(self, value: Decimal) -> bool:
        return (
            inside(value, self.low, self.high)
            and (self.step is None or is_multiple(value, self.step))
            and not any(is_multiple(value, other) for other in self.without)
            and value not in self.but
        )

    def count(self) -> int | None:
        """Multiples of the step between the bounds, exclusions not counted; None when there is no end of them."""
        if self.step is None or self.low is None or self.high is None:
            return None
        return quotient(self.high.value, self.step) - quotient(self.low.value, self.step) + 1

    def members(self) -> Iterator[Decimal]:
        """The members, from the low end (or the high end, or 0) on. For pieces with a step."""
        assert self.step is not None
        end = self.low or self.high
        start = quotient(end.value, self.step) if end else 0
        turn = -1 if self.low is None and self.high is not None else 1
        count = self.count()
        at = 0
        while count is None or at < count:
            value = times(start + turn * at, self.step)
            if value in self:
                yield value
            at += 1


EVERYTHING = Piece()


def inside(value: Decimal, low: Bound | None, high: Bound | None) -> bool:
    """Whether a value is in a range."""
    above = low is None or value > low.value or (value == low.value and not low.exclusive)
    return above and (high is None or value < high.value or (value == high.value and not high.exclusive))


def shaped(piece: Piece) -> Piece | Decimal | None:
    """The piece in canonical form; a value when it is the only member; None when there is none."""
    low, high, step = piece.low, piece.high, piece.step
    if step is not None:
        low, high = _tightened(low, high, step)
    if low is not None and high is not None and low.value >= high.value:
        value = low.value
        alone = value == high.value and value in Piece(low, high, step, piece.without, piece.but)
        return value if alone else None
    without = piece.without
    if step is not None and without:
        without = frozenset(least_common(step, other) for other in without)
        if step in without:
            return None
    but = piece.but
    if but:
        bare = Piece(low, high, step, without)
        but = frozenset(value for value in but if value in bare)
    result = Piece(low, high, step, without, but)
    return result if _has_member(result) else None


def _has_member(piece: Piece) -> bool:
    if piece.step is None or not (piece.without or piece.but):
        return True
    count = piece.count()
    looked = _SEARCHED + len(piece.but)
    if count is None or count > looked:
        return True  # so many excluded in a row there cannot be, or nobody finds out
    return next(piece.members(), None) is not None


def meet(left: Piece, right: Piece) -> Piece:
    """What two pieces share, not yet in canonical form."""
    step = left.step if right.step is None else right.step
    if left.step is not None and right.step is not None:
        step = least_common(left.step, right.step)
    low, high = higher(left.low, right.low), lower(left.high, right.high)
    return Piece(low, high, step, left.without | right.without, left.but | right.but)


def rest(piece: Piece) -> tuple[list[Piece], frozenset[Decimal]]:
    """Every number that is not in a piece: pieces, and values."""
    found = []
    if piece.low is not None:
        found.append(Piece(high=Bound(piece.low.value, not piece.low.exclusive)))
    if piece.high is not None:
        found.append(Piece(low=Bound(piece.high.value, not piece.high.exclusive)))
    if piece.step is not None:
        found.append(Piece(piece.low, piece.high, without=frozenset([piece.step])))
    found += [Piece(piece.low, piece.high, step) for step in sorted(piece.without)]
    return found, piece.but


def joined(kept: Iterable[Piece], more: Iterable[Piece]) -> list[Piece]:
    """The numbers of all pieces, in fewer where that is plain to see; those of `kept` have been joined before."""
    kept = list(kept)
    for piece in more:
        merged = True
        while merged:
            merged = False
            for other in kept:
                union = _union(other, piece)
                if union is not None:
                    kept.remove(other)
                    piece, merged = union, True
                    break
        kept.append(piece)
    return kept


def _union(left: Piece, right: Piece) -> Piece | None:
    """Both as one piece, when one holds the other or they overlap or touch."""
    if _covers(left, right):
        return left
    if _covers(right, left):
        return right
    if (left.step, left.without) != (right.step, right.without) or left.but or right.but:
        return None
    if not (_meets(left.high, right.low, left.step) and _meets(right.high, left.low, left.step)):
        return None
    low = None if left.low is None or right.low is None else min(left.low, right.low, key=_low_key)
    high = None if left.high is None or right.high is None else max(left.high, right.high, key=_high_key)
    return Piece(low, high, left.step, left.without)


def _meets(high: Bound | None, low: Bound | None, step: Decimal | None) -> bool:
    """Whether no number is lost between the end of one piece and the start of another."""
    if high is None or low is None or high.value > low.value:
        return True
    if high.value == low.value:
        return not (high.exclusive and low.exclusive)
    return step is not None and quotient(low.value, step) - quotient(high.value, step) == 1


def _covers(outer: Piece, inner: Piece) -> bool:
    return (
        (outer.low is None or (inner.low is not None and _low_key(outer.low) <= _low_key(inner.low)))
        and (outer.high is None or (inner.high is not None and _high_key(outer.high) >= _high_key(inner.high)))
        and (outer.step is None or (inner.step is not None and is_multiple(inner.step, outer.step)))
        and outer.without <= inner.without
        and not any(value in inner for value in outer.but)
    )


def higher(left: Bound | None, right: Bound | None) -> Bound | None:
    """The stricter of two lower bounds."""
    return left if right is None else right if left is None else max(left, right, key=_low_key)


def lower(left: Bound | None, right: Bound | None) -> Bound | None:
    """The stricter of two upper bounds."""
    return left if right is None else right if left is None else min(left, right, key=_high_key)


def _low_key(bound: Bound) -> tuple[Decimal, bool]:
    return bound.value, bound.exclusive


def _high_key(bound: Bound) -> tuple[Decimal, bool]:
    return bound.value, not bound.exclusive


# exact arithmetic


def parts(value: Decimal) -> tuple[int, int]:
    """(n, e) with value = n * 10**e, n without trailing zeros."""
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    kept = len(digits)
    while kept > 1 and not digits[kept - 1]:
        kept -= 1
    whole = int("".join(map(str, digits[:kept])))
    return (-whole if sign else whole), exponent + len(digits) - kept if whole else 0


def number(whole: int, exponent: int) -> Decimal:
    """whole * 10**exponent."""
    return Decimal(whole) if not exponent else Decimal(f"{whole}E{exponent}")


def times(count: int, step: Decimal) -> Decimal:
    """count * step."""
    whole, exponent = parts(step)
    if exponent > 0:
        return Decimal(count * whole * 10**exponent)
    return number(count * whole, exponent)


def quotient(value: Decimal, step: Decimal) -> int:
    """The greatest whole number of steps that is not above `value`."""
    (whole, exponent), (unit, scale) = parts(value), parts(step)
    shift = exponent - scale
    if abs(shift) > _MAX_DIGITS * 2:
        raise ConstraintRefused(f"a bound of {value:.3E} beside a step of {step:.3E} is out of reach; use smaller ones")
    return int(whole * 10**shift // unit if shift >= 0 else whole // (unit * 10**-shift))


@lru_cache(maxsize=256)
def least_common(left: Decimal, right: Decimal) -> Decimal:
    """The least common multiple of two steps."""
    (one, exponent), (two, scale) = parts(left), parts(right)
    base = min(exponent, scale)
    result = lcm(one * 10 ** (exponent - base), two * 10 ** (scale - base))
    if len(str(result)) > _MAX_DIGITS:
        raise ConstraintRefused(f"multiples of {left:.3E} and of {right:.3E} at once are out of reach; round them")
    return number(*parts(number(result, base)))


def _tightened(low: Bound | None, high: Bound | None, step: Decimal) -> tuple[Bound | None, Bound | None]:
    """Both bounds moved to the nearest multiples inside."""
    if low is not None:
        count = quotient(low.value, step)
        if low.exclusive or not is_multiple(low.value, step):
            count += 1
        low = Bound(times(count, step))
    if high is not None:
        count = quotient(high.value, step)
        if high.exclusive and is_multiple(high.value, step):
            count -= 1
        high = Bound(times(count, step))
    return low, high


def first_members(piece: Piece, limit: int) -> list[Decimal] | None:
    """Every member when there are at most `limit`, else None."""
    count = piece.count()
    if count is None or count > limit + len(piece.but) + (limit + _SEARCHED if piece.without else 0):
        return None
    found = list(islice(piece.members(), limit + 1))
    return found if len(found) <= limit else None
