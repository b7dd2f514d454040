"""Multiples as digits: by what their last digits are, or by rules that carry a remainder from digit to digit.

The rules are right-linear, so that an engine runs them without a stack. A state is the remainder so far, and how the
digits so far compare with both bounds: equal, or so many more digits needed, or room for so many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from sglite.constrained.charset import make
from sglite.constrained.grammar import EMPTY, NOTHING, Chars, Node, Ref, Text, alt, optional, repeat, seq
from sglite.constrained.json_schema.numbers_ranges import DIGIT, MAX_DIGITS

MAX_STATES = 2048
_SUFFIXES = 160  # endings written out
_CAPPED = 512  # states that an open range may have when the number of digits is limited too


def endings(modulus: int, places: int, *, zeros: bool) -> Node | None:
    """A regular language whose plain decimals with up to `places` fraction digits are the multiples of
    modulus * 10**-places; None when their last digits do not tell, or too many endings would do.

    `zeros` allows more fraction digits when they are zeros.
    """
    last = next((n for n in range(13) if 10**n % modulus == 0), None)
    if last is None or (places and last > places) or 10**last // modulus > _SUFFIXES:
        return None
    sign, digits = optional(Text("-")), repeat(DIGIT, 0, None)
    if not places:
        long = seq(digits, one_of(f"{n:0{last}d}" for n in range(0, 10**last, modulus))) if last else digits
        short = one_of(str(n) for n in range(0, 10**last, modulus))
        return seq(sign, alt([long, short]), optional(seq(Text("."), repeat(Text("0"), 1, None))) if zeros else EMPTY)
    fractions: list[Node] = []
    for length in range(1, places + 1):
        told = last - (places - length)  # of the digits, how many have to be looked at
        if told <= 0:
            fractions.append(repeat(DIGIT, length, length))
            continue
        power = 10 ** (places - length)
        ends = one_of(f"{n:0{told}d}" for n in range(10**told) if n * power % modulus == 0)
        fractions.append(seq(repeat(DIGIT, length - told, length - told), ends))
    more = repeat(Text("0"), 0, None) if zeros else EMPTY
    fraction = alt([*fractions[:-1], seq(fractions[-1], more)])
    return seq(sign, digits, optional(seq(Text("."), fraction)))


def one_of(texts: Iterable[str]) -> Node:
    """One of some texts, as a set of characters where they are single digits."""
    listed = list(dict.fromkeys(texts))
    single = [ord(text) for text in listed if len(text) == 1]
    longer = [Text(text) for text in listed if len(text) != 1]
    return alt([Chars(make((code, code) for code in single)), *longer]) if single else alt(longer)


class _State(NamedTuple):
    """Digits so far. `places` is how many fraction digits may follow, None before the point.

    `low` and `high`: the rest of the bound's digits while the digits so far equal it, a count of digits needed (low) or
    allowed (high) before the point, or None when the bound has nothing more to say.
    """

    remainder: int
    low: str | int | None
    high: str | int | None
    places: int | None = None


class DigitRules:
    """Unsigned plain decimals n * 10**-places with low <= n <= high and a remainder of n by `modulus` that `wanted`
    holds for. `high` None is for as many digits as are affordable."""

    def __init__(self, low: int, high: int | None, places: int, modulus: int, wanted: Callable[[int], bool]) -> None:
        self._low, self._high = low, high
        self._places, self._modulus, self._wanted = places, modulus, wanted
        self._unit = 10**places
        self._low_fraction = self._fraction_of(low)
        self._high_fraction = "" if high is None else self._fraction_of(high)

    def rules(self, name: str) -> dict[str, Node] | None:
        """The rules, the one of that name to start from; an empty dict when no number is left, None when there would
        be too many."""
        if self._modulus > MAX_STATES * 4:
            return None
        moves: dict[_State, list[tuple[str, _State]]] = {}
        first = self._first_moves()
        waiting = [state for _, state in first]
        while waiting:
            state = waiting.pop()
            if state in moves:
                continue
            if len(moves) >= MAX_STATES:
                return None
            moves[state] = self._moves(state)
            waiting.extend(target for _, target in moves[state] if target not in moves)
        return self._written(name, first, moves)

    def _written(
        self, name: str, first: list[tuple[str, _State]], moves: dict[_State, list[tuple[str, _State]]]
    ) -> dict[str, Node]:
        live = self._live(moves)
        names = {state: f"{name}.{i}" for i, state in enumerate(state for state in moves if state in live)}
        start = self._alternatives(first, names)
        if start == NOTHING:
            return {}
        rules = {name: start}
        for state, label in names.items():
            ends = [EMPTY] if self._accepts(state) else []
            rules[label] = alt([*ends, self._alternatives(moves[state], names)])
        return rules

    def _alternatives(self, moves: list[tuple[str, _State]], names: dict[_State, str]) -> Node:
        by_target: dict[_State, list[str]] = {}
        for text, target in moves:
            if target in names:
                by_target.setdefault(target, []).append(text)
        return alt(seq(one_of(texts), Ref(names[target])) for target, texts in by_target.items())

    def _live(self, moves: dict[_State, list[tuple[str, _State]]]) -> set[_State]:
        sources: dict[_State, list[_State]] = {}
        for state, following in moves.items():
            for _, target in following:
                sources.setdefault(target, []).append(state)
        live = {state for state in moves if self._accepts(state)}
        waiting = list(live)
        while waiting:
            for source in sources.get(waiting.pop(), ()):
                if source not in live:
                    live.add(source)
                    waiting.append(source)
        return live

    def _first_moves(self) -> list[tuple[str, _State]]:
        low, high = self._start()
        found = []
        for d in range(10):
            after = self._after_digit(_State(0, low, high), d)
            if after is not None and d == 0:  # nothing but a point may follow a leading zero
                after = None if isinstance(after.low, int) else _State(after.remainder, after.low, self._closed(after))
            if after is not None:
                found.append((str(d), after))
        return found

    def _closed(self, after: _State) -> str | int:
        return "" if after.high == "" else 0

    def _start(self) -> tuple[str | int | None, str | int | None]:
        low = str(self._low // self._unit)
        if self._high is not None:
            return low, str(self._high // self._unit)
        return low, MAX_DIGITS if self._modulus * MAX_DIGITS <= _CAPPED else None

    def _moves(self, state: _State) -> list[tuple[str, _State]]:
        if state.places is not None:
            return self._fraction_moves(state, state.places)
        found = (
            self._free_moves(state)
            if not isinstance(state.low, str) and not isinstance(state.high, str)
            else [(str(d), after) for d in range(10) if (after := self._after_digit(state, d)) is not None]
        )
        point = self._after_point(state) if self._places else None
        if point is not None:
            found.append((".", point))
        return found

    def _free_moves(self, state: _State) -> list[tuple[str, _State]]:
        """The next digit where no digit of a bound is compared with any more."""
        remainder, low, high, _ = state
        if high == 0:
            return []
        low = low - 1 or None if isinstance(low, int) else None
        high = high - 1 if isinstance(high, int) else None
        base, unit, modulus = 10 * remainder, self._unit, self._modulus
        return [(str(d), _State((base + d * unit) % modulus, low, high)) for d in range(10)]

    def _after_digit(self, state: _State, d: int) -> _State | None:
        low, high = self._low_after(state.low, str(d)), self._high_after(state.high, str(d))
        if high == -1:
            return None
        return _State((10 * state.remainder + d * self._unit) % self._modulus, low, high)

    def _low_after(self, low: str | int | None, d: str) -> str | int | None:
        if not low:
            return None
        if isinstance(low, int):
            return low - 1 or None
        if d != low[0]:
            return len(low) - (d > low[0]) or None
        rest = low[1:]
        if (rest + self._low_fraction).strip("0"):
            return rest
        return len(rest) or None  # whatever digits follow, they are enough

    def _high_after(self, high: str | int | None, d: str) -> str | int | None:
        """-1 when there is no room for the digit."""
        if high is None:
            return None
        if isinstance(high, int):
            return high - 1
        if not high or d != high[0]:
            return len(high) - 1 - (bool(high) and d > high[0])
        rest = high[1:]
        return rest if (rest + self._high_fraction).strip("9") else len(rest)

    def _after_point(self, state: _State) -> _State | None:
        """The state behind the integer part; None when it cannot end here."""
        if isinstance(state.low, int) or state.low:
            return None
        low = self._low_fraction if state.low == "" else None
        high = self._high_fraction if state.high == "" else None
        return _State(state.remainder, low, high, self._places)

    def _fraction_moves(self, state: _State, places: int) -> list[tuple[str, _State]]:
        found = []
        for d in range(10 if places else 0):
            low, high = state.low, state.high
            if isinstance(low, str):
                if str(d) < low[0]:
                    continue
                low = low[1:] if str(d) == low[0] and low[1:].strip("0") else None
            if isinstance(high, str):
                if str(d) > high[0]:
                    continue
                high = high[1:] if str(d) == high[0] else None
            remainder = (state.remainder + d * 10 ** (places - 1)) % self._modulus
            found.append((str(d), _State(remainder, low, high, places - 1)))
        return found

    def _accepts(self, state: _State) -> bool:
        if state.places == self._places:
            return False  # a point is followed by a digit
        end = self._after_point(state) if state.places is None else state
        if end is None or (isinstance(end.low, str) and end.low.strip("0")):
            return False
        return self._wanted(end.remainder)

    def _fraction_of(self, scaled: int) -> str:
        return f"{scaled % self._unit:0{self._places}d}" if self._places else ""
