"""JSON text read strictly and exactly, and when two values are the same.

Strictly: one value, no name twice in an object, no NaN, no half surrogate pair. Exactly: a number is an int or, with
a fraction or an exponent, a Decimal, so that nothing is rounded. Objects are dicts, arrays lists.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

MAX_DIGITS = 4000  # of one number; beyond it Python refuses to convert, and nobody means it
_MAX_EXPONENT = 10**15  # Decimal's own bound is a little under 10**18 on 64-bit machines, less on others


def parse(text: str) -> Any:
    """The value of a JSON text. ValueError when it is not one, or nested too deeply to be read."""
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_pairs,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_decimal,
        )
        if "\\ud" in text.lower():  # half a surrogate pair can be spelled, but it is no character
            json.dumps(value, ensure_ascii=False, default=str).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def exact(value: Any) -> Any:
    """A value as `json.loads` gives it, its floats made exact: each the number it is written as."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, list):
        return [exact(item) for item in value]
    if isinstance(value, dict):
        return {name: exact(item) for name, item in value.items()}
    return value


def identity(value: Any) -> Hashable:
    """Equal for values that JSON Schema calls equal: 1 is 1.0, true is not 1, the order of names does not matter."""
    if isinstance(value, bool):
        return ("truth", value)
    if isinstance(value, list):
        return ("array", tuple(identity(item) for item in value))
    if isinstance(value, dict):
        return ("object", frozenset((name, identity(item)) for name, item in value.items()))
    plain: Hashable = value
    return plain  # int and Decimal of one value compare and hash alike; strings and None are themselves


def is_multiple(value: int | Decimal, of: int | Decimal) -> bool:
    """Whether value / of, of > 0, is whole: exact, and quick for every exponent."""
    (whole, exponent), (divisor, scale) = _scaled(value), _scaled(of)
    if not whole:
        return True
    shift = exponent - scale
    if shift >= 0:
        return whole * pow(10, shift, divisor) % divisor == 0
    if -shift > len(str(abs(whole))):
        return False  # too few digits to hold that power of ten
    return bool(whole % (divisor * 10**-shift) == 0)


def is_whole(value: int | Decimal) -> bool:
    """Whether a number has no fractional part, however it is written."""
    return isinstance(value, int) or is_multiple(value, 1)


def _scaled(value: int | Decimal) -> tuple[int, int]:
    """(n, e) with value = n * 10**e."""
    if isinstance(value, int):
        return value, 0
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"{value} is not a finite number")
    whole = int("".join(map(str, digits)) or "0")
    return -whole if sign else whole, exponent


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of more than {MAX_DIGITS} digits")
    return int(text)


def _decimal(text: str) -> Decimal:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of more than {MAX_DIGITS} digits")
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"the exponent of {text:.40} is too large") from None
    if abs(value.adjusted()) > _MAX_EXPONENT:
        raise ValueError(f"the exponent of {text:.40} is too large")
    return value
