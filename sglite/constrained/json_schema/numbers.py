"""Sets of JSON numbers, exact: ranges, multiples, single values, and whatever `&`, `|` and `~` make of them.

Numbers are compared as JSON Schema compares them: by their mathematical value, 1 being 1.0. `NumberSet.node` writes a
set as a grammar; `numbers_spelling` says which of a number's many spellings that has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

from sglite.constrained.grammar import alt
from sglite.constrained.json_schema.numbers_pieces import (
    EVERYTHING,
    Piece,
    first_members,
    joined,
    meet,
    parts,
    rest,
    shaped,
)
from sglite.constrained.json_schema.numbers_ranges import Bound
from sglite.constrained.json_schema.numbers_spelling import Spelled, piece_node, values_node
from sglite.constrained.spec import ConstraintRefused

_MAX_PIECES = 128
_MAX_MAGNITUDE = 400  # decimal digits before or after the point of a bound or a step
_INTEGER_BITS = {"int8": 7, "int16": 15, "int32": 31, "int64": 63, "uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}

Number = int | float | Decimal


@dataclass(frozen=True, slots=True)
class NumberSet:
    """The numbers of `pieces`, and `values`. Immutable; made by the class methods and by `&`, `|` and `~`.

    Raises ConstraintRefused where a set would take too many pieces, or numbers of too many digits.
    """

    ALL: ClassVar[NumberSet]
    INTEGERS: ClassVar[NumberSet]
    NONE: ClassVar[NumberSet]

    pieces: tuple[Piece, ...] = ()
    values: frozenset[Decimal] = frozenset()

    @classmethod
    def of(cls, values: Iterable[Number]) -> NumberSet:
        """Just these numbers. A float is the number it is written as."""
        return cls((), frozenset(exact_decimal(value) for value in values))

    @classmethod
    def range(
        cls,
        low: Number | None = None,
        high: Number | None = None,
        *,
        exclusive_low: bool = False,
        exclusive_high: bool = False,
    ) -> NumberSet:
        """Numbers between two bounds, None for no bound."""
        least = None if low is None else Bound(_within_reach(low), exclusive_low)
        most = None if high is None else Bound(_within_reach(high), exclusive_high)
        return _made([Piece(least, most)], frozenset())

    @classmethod
    def multiple_of(cls, step: Number) -> NumberSet:
        """The multiples of `step`, which is above 0."""
        value = _within_reach(step)
        if value <= 0:
            raise ValueError(f"a step is a number above 0, got {step}")
        return _made([Piece(step=value)], frozenset())

    @classmethod
    def format(cls, name: str) -> NumberSet | None:
        """The integers of an OpenAPI or registry format such as int32; None for one that says nothing of the value."""
        bits = _INTEGER_BITS.get(name)
        if bits is None:
            return None
        least = 0 if name.startswith("u") else -(2**bits)
        return cls.INTEGERS & cls.range(least, 2**bits - 1)

    def __and__(self, other: NumberSet) -> NumberSet:
        if self == NumberSet.ALL or other == NumberSet.NONE:
            return other
        if other == NumberSet.ALL or self == NumberSet.NONE:
            return self
        values = {value for value in self.values if value in other} | {value for value in other.values if value in self}
        return _made((meet(a, b) for a in self.pieces for b in other.pieces), frozenset(values))

    def __or__(self, other: NumberSet) -> NumberSet:
        return _united(joined(self.pieces, other.pieces), self.values | other.values)

    def __invert__(self) -> NumberSet:
        result = _made([Piece(but=self.values)], frozenset())
        for piece in self.pieces:
            pieces, values = rest(piece)
            result &= _made(pieces, values)
        return result

    def __contains__(self, value: Number) -> bool:
        number = exact_decimal(value)
        return number in self.values or any(number in piece for piece in self.pieces)

    def contains(self, value: Number) -> bool:
        """Whether a number belongs to the set; a float is the number it is written as."""
        return value in self

    def is_empty(self) -> bool:
        return not self.pieces and not self.values

    def finite(self, limit: int) -> list[int | Decimal] | None:
        """Every member in ascending order, whole ones as int; None when there are more than `limit`."""
        found = set(self.values)
        for piece in self.pieces:
            members = first_members(piece, limit)
            if members is None:
                return None
            found.update(members)
        if len(found) > limit:
            return None
        return [int(value) if parts(value)[1] >= 0 and value.adjusted() < 400 else value for value in sorted(found)]

    def is_finite(self) -> bool:
        return all(piece.count() is not None for piece in self.pieces)

    def node(self, name: str) -> Spelled:
        """The set as JSON text: (node, the rules it refers to, named after `name`, exact).

        Where `exact` is False the node has texts of other numbers too, and a value has to be checked when it ends.
        """
        written = [Spelled(values_node(sorted(self.values)), {}, True)] if self.values else []
        written += [piece_node(piece, f"{name}.{i}") for i, piece in enumerate(self.pieces)]
        rules = {label: rule for part in written for label, rule in part.rules.items()}
        return Spelled(alt(part.node for part in written), rules, all(part.exact for part in written))


def exact_decimal(value: Number) -> Decimal:
    """The number itself; of a float, the shortest decimal that reads as it."""
    return value if isinstance(value, Decimal) else Decimal(value) if isinstance(value, int) else Decimal(repr(value))


def _within_reach(value: Number) -> Decimal:
    number = exact_decimal(value)
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int):
        raise ValueError(f"{value} is not a finite number")
    if number and (abs(number.adjusted()) > _MAX_MAGNITUDE or exponent < -_MAX_MAGNITUDE):
        raise ConstraintRefused(f"{number:.3E} is further from 1 than JSON readers can tell; use a double's range")
    return number


def _made(pieces: Iterable[Piece], values: frozenset[Decimal]) -> NumberSet:
    kept: list[Piece] = []
    single = set(values)
    for piece in pieces:
        shape = shaped(piece)
        if isinstance(shape, Piece):
            kept.append(shape)
        elif shape is not None:
            single.add(shape)
        _check_count(len(kept) // 2)  # joining them may still make them fewer
    return _united(joined((), kept), frozenset(single))


def _united(pieces: list[Piece], values: frozenset[Decimal]) -> NumberSet:
    _check_count(len(pieces))
    return NumberSet(tuple(pieces), frozenset(v for v in values if not any(v in piece for piece in pieces)))


def _check_count(count: int) -> None:
    if count > _MAX_PIECES:
        raise ConstraintRefused(f"more than {_MAX_PIECES} ranges of numbers at once; combine fewer conditions")


NumberSet.ALL = NumberSet((EVERYTHING,))
NumberSet.NONE = NumberSet()
NumberSet.INTEGERS = NumberSet.multiple_of(1)
