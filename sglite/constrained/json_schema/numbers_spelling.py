"""Number sets as JSON text: which spelling each piece has, and whether it is exactly that set.

Everything: any JSON number that a double can hold. A range: plain decimals, and one digit with a fraction and an
exponent. Multiples: integers without fraction or exponent where the step is whole, else plain decimals with no more
fraction digits than the step, of at most PRECISION digits in all unless the step is a power of ten. Numbers with
multiples left out: the integers among them, and plain decimals of at most PRECISION digits.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from sglite.constrained.grammar import EMPTY, NOTHING, And, Node, Not, Ref, Text, alt, optional, repeat, seq
from sglite.constrained.json_schema import numbers_ranges as ranges
from sglite.constrained.json_schema.numbers_multiples import DigitRules, endings
from sglite.constrained.json_schema.numbers_pieces import EVERYTHING, Piece, first_members, least_common, parts, shaped
from sglite.constrained.json_schema.numbers_ranges import DIGIT, MAX_DIGITS, MAX_PLACES, PRECISION, Bound
from sglite.constrained.json_values import is_multiple
from sglite.constrained.spec import ConstraintRefused

_LISTED = 256  # multiples of a bounded range written out one by one
_SPLIT = 64  # values cut out of a range
_LONGEST = 100  # digits of an integer that has to be that long
_SHORT = seq(optional(Text("-")), repeat(seq(DIGIT, optional(Text("."))), 1, PRECISION))


class Spelled(NamedTuple):
    """The texts of a number set: a node, the rules it refers to, and whether they are exactly the set's spellings;
    if not, texts of other numbers are among them."""

    node: Node
    rules: dict[str, Node]
    exact: bool


def spellings(value: Decimal) -> list[str]:
    """The ways to write one number: plain, as `json.dumps` writes the double, and with ".0" when it was a float."""
    exponent = value.as_tuple().exponent
    if value == 0:
        return ["0"] if exponent == 0 else ["0", "0.0"]
    whole, scale = parts(value)
    found = []
    if scale >= 0 and value.adjusted() < 2 * MAX_DIGITS:
        found.append(str(whole * 10**scale))
        if isinstance(exponent, int) and exponent < 0:
            found.append(f"{found[0]}.0")
    elif scale < 0 and value.adjusted() >= -MAX_PLACES:
        found.append(f"{value:f}".rstrip("0"))
    if exponent:
        shortest = repr(float(value))
        if "inf" not in shortest and Decimal(shortest) == value:
            found.append(shortest)
    return list(dict.fromkeys(found)) or [str(value).lower()]


def values_node(values: list[Decimal]) -> Node:
    """Some numbers, each in every way `spellings` has."""
    return alt(Text(text) for value in values for text in spellings(value))


def piece_node(piece: Piece, name: str) -> Spelled:
    """The texts of one piece; rules are named after `name`."""
    if piece.step is None:
        return _dense(piece, name)
    _check_reach(piece)
    whole, exponent = parts(piece.step)
    plain = (whole, exponent) == (1, 0) and not piece.without
    listed = None if plain else first_members(piece, _LISTED)
    if listed is not None:
        texts = (text for value in listed for text in spellings(value))
        dotted = (f"{int(value)}.0" for value in listed if exponent < 0 and parts(value)[1] >= 0)
        return Spelled(alt(Text(text) for text in (*texts, *dotted)), {}, True)
    return _Stepped(piece, whole, exponent).spelled(name)


def _check_reach(piece: Piece) -> None:
    for bound, sign in ((piece.low, 1), (piece.high, -1)):
        if bound is not None and bound.value * sign > 0 and bound.value.adjusted() >= _LONGEST:
            raise ConstraintRefused(f"multiples beyond {bound.value:.3E} have too many digits to be written; lower it")


def _dense(piece: Piece, name: str) -> Spelled:
    if piece == EVERYTHING:
        return Spelled(ranges.any_number(), {}, True)
    cut = sorted(piece.but) if len(piece.but) <= _SPLIT else []
    exact = len(cut) == len(piece.but)
    lows = [piece.low, *(Bound(value, True) for value in cut)]
    highs = [*(Bound(value, True) for value in cut), piece.high]
    spans = list(zip(lows, highs, strict=True))
    if not piece.without:
        return Spelled(alt(_span(low, high, ranges.reals) for low, high in spans), {}, exact)
    node = alt(_span(low, high, ranges.plain) for low, high in spans)
    return _with_whole(piece, _fractional(node, piece.without), name, exact)


def _fractional(node: Node, without: frozenset[Decimal]) -> Spelled:
    """The texts of `node` with a fraction that are no multiples of any of `without`."""
    conditions: list[Node] = [_SHORT]  # more digits could be rounded onto a multiple
    exact = True
    for step in {Decimal(1), *(step for step in without if not is_multiple(step, 1))}:
        whole, exponent = parts(step)
        ends = endings(whole, -exponent, zeros=True)
        if ends is None:
            exact = False  # such multiples have no ending of their own
        else:
            conditions.append(Not(ends))
    return Spelled(And((node, *conditions)), {}, exact)


def _with_whole(piece: Piece, fractional: Spelled, name: str, exact: bool) -> Spelled:
    whole = shaped(Piece(piece.low, piece.high, Decimal(1), piece.without, piece.but))
    if whole is None:
        return fractional._replace(exact=exact and fractional.exact)
    written = piece_node(whole, name) if isinstance(whole, Piece) else Spelled(values_node([whole]), {}, True)
    both = exact and fractional.exact and written.exact
    return Spelled(alt([written.node, fractional.node]), written.rules, both)


def _span(low: Bound | None, high: Bound | None, spell: Callable[[Bound | None, Bound | None], Node]) -> Node:
    if low is not None and high is not None and low.value == high.value:
        return NOTHING
    return spell(low, high)


class _Stepped:
    """A piece with a step of unit * 10**exponent, seen as the multiples of `unit` among the integers it scales to."""

    def __init__(self, piece: Piece, unit: int, exponent: int) -> None:
        self._piece, self._unit = piece, unit
        self._places, self._zeros = max(0, -exponent), max(0, exponent)
        self._without = [self._scaled(least_common(piece.step or Decimal(1), other)) for other in piece.without]
        self._low = None if piece.low is None else self._scaled(piece.low.value)
        self._high = None if piece.high is None else self._scaled(piece.high.value)
        if self._places and unit != 1:  # a double of more digits can be another number
            most = (10**PRECISION - 1) // unit * unit
            self._low = -most if self._low is None else max(self._low, -most)
            self._high = most if self._high is None else min(self._high, most)

    def spelled(self, name: str) -> Spelled:
        parts = [self._span(low, high, f"{name}.{i}") for i, (low, high) in enumerate(self._spans())]
        rules = {label: rule for part in parts for label, rule in part.rules.items()}
        return Spelled(alt(part.node for part in parts), rules, all(part.exact for part in parts))

    def _scaled(self, value: Decimal) -> int:
        whole, exponent = parts(value)
        return int(whole * 10 ** (exponent + self._places - self._zeros))

    def _spans(self) -> list[tuple[int | None, int | None]]:
        """The ranges left when single values are cut out."""
        cut = sorted(self._scaled(value) for value in self._piece.but)
        lows = [self._low, *(value + self._unit for value in cut)]
        highs = [*(value - self._unit for value in cut), self._high]
        spans = zip(lows, highs, strict=True)
        return [(low, high) for low, high in spans if low is None or high is None or low <= high]

    def _span(self, low: int | None, high: int | None, name: str) -> Spelled:
        node = self._range(low, high)
        kept = self._endings(self._unit)
        excluded = [self._endings(other) for other in self._without]
        if kept is not None and None not in excluded:
            conditions = [kept] if self._unit != 1 else []
            conditions += [Not(ends) for ends in excluded if ends is not None]
            return Spelled(self._followed(And((node, *conditions)) if conditions else node, low, high), {}, True)
        return self._by_rules(low, high, name) or Spelled(self._followed(node, low, high), {}, False)

    def _endings(self, modulus: int) -> Node | None:
        return endings(modulus, self._places, zeros=False)

    def _range(self, low: int | None, high: int | None) -> Node:
        if not self._places:
            return ranges.integers(low, high)
        bounds = [None if end is None else Bound(Decimal(f"{end}E-{self._places}")) for end in (low, high)]
        return ranges.decimals(bounds[0], bounds[1], self._places)

    def _followed(self, node: Node, low: int | None, high: int | None) -> Node:
        """The texts with the zeros behind them that all of them have in common; zero itself has one digit."""
        if not self._zeros:
            return node
        zero = (low is None or low <= 0) and (high is None or high >= 0) and not self._without
        nonzero = And((node, Not(Text("0")))) if zero else node
        return alt([*([Text("0")] if zero else []), seq(nonzero, Text("0" * self._zeros))])

    def _by_rules(self, low: int | None, high: int | None, name: str) -> Spelled | None:
        rules: dict[str, Node] = {}
        nodes: list[Node] = []
        if (low is None or low <= 0) and (high is None or high >= 0) and self._wanted(0):
            dotted = [seq(Text("0."), repeat(Text("0"), 1, self._places))] if self._places else []
            nodes += [Text("0"), *dotted]
        tail = Text("0" * self._zeros)
        sides: list[tuple[Node, int | None, int | None]] = [
            (EMPTY, low, high),
            (Text("-"), _negated(high), _negated(low)),
        ]
        if sides[0][1:] == sides[1][1:]:
            sides = [(optional(Text("-")), low, high)]
        for i, (sign, nearest, farthest) in enumerate(sides):
            if farthest is not None and farthest <= 0:
                continue
            label = f"{name}.{i}"
            made = self._rules(max(1, nearest or 0), farthest, label)
            if made is None:
                return None
            rules |= made
            if made:
                nodes.append(seq(sign, Ref(label), tail))
        return Spelled(alt(nodes), rules, True)

    def _rules(self, low: int, high: int | None, name: str) -> dict[str, Node] | None:
        modulus = self._unit
        for other in self._without:
            modulus = int(least_common(Decimal(modulus), Decimal(other)))
        return DigitRules(low, high, self._places, modulus, self._wanted).rules(name)

    def _wanted(self, remainder: int) -> bool:
        return remainder % self._unit == 0 and all(remainder % other for other in self._without)


def _negated(value: int | None) -> int | None:
    return None if value is None else -value
