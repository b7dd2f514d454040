"""Strings and numbers of a conjunction: what its keywords leave of them."""

from __future__ import annotations

from decimal import Decimal
from math import ceil, floor

from sglite.constrained.charset import SURROGATES
from sglite.constrained.grammar import NOTHING, Node, Ref, Text, alt, optional, seq
from sglite.constrained.json_schema import numbers
from sglite.constrained.json_schema.document import Conjunction, Document, Place
from sglite.constrained.json_schema.formats import FORMATS, HINTS
from sglite.constrained.json_schema.keywords import largest, number, smallest, text
from sglite.constrained.json_schema.numbers import Bound
from sglite.constrained.json_schema.strings import FREE_TEXT, free_string, limit_length, quoted
from sglite.constrained.regex import check_regex, check_search
from sglite.constrained.spec import ConstraintError, ConstraintRefused

_MAX_LISTED = 1024  # multiples of a bounded range written out one by one
_MAX_STEP = 256  # states of the automaton of an unbounded multipleOf
_INTEGER_FORMATS = {"int32": 31, "int64": 63}
_NUMBER_HINTS = ("float", "double")


def string(document: Document, places: Conjunction) -> Node:
    """The JSON strings of a conjunction, quotes included."""
    if not any(keyword in place for place in places for keyword in ("pattern", "format")):
        high = smallest(document, places, "maxLength")
        low = largest(document, places, "minLength")
        return NOTHING if high is not None and low > high else free_string(low, high)
    return quoted(characters(document, places))


def characters(document: Document, places: Conjunction) -> Node:
    """The values of the strings of a conjunction: the language of their characters, before JSON spells it."""
    low, high = largest(document, places, "minLength"), smallest(document, places, "maxLength")
    sources = _patterns(document, places)
    if not sources:
        return limit_length(FREE_TEXT, low, high) or NOTHING
    node = sources[0][2]
    for place, keyword, other in sources[1:]:
        if other != node:
            document.refuse(place, keyword, "together with another pattern or format cannot be enforced; keep one")
    limited = limit_length(node, low, high)
    if limited is None:
        for place in places:
            for keyword in ("minLength", "maxLength"):
                if keyword in place:
                    hint = "write the length into the pattern" if sources[0][1] == "pattern" else "drop one of them"
                    document.refuse(place, keyword, f"together with {sources[0][1]!r} cannot be enforced; {hint}")
        return node
    return limited


def _patterns(document: Document, places: Conjunction) -> list[tuple[Place, str, Node]]:
    found: list[tuple[Place, str, Node]] = []
    for place in places:
        if "pattern" in place:
            node = pattern_at(document, place.at("pattern"), text(document, place, "pattern"))
            if node is not None:
                found.append((place, "pattern", node))
        if "format" in place:
            name = text(document, place, "format")
            if name in FORMATS:
                found.append((place, "format", check_regex(FORMATS[name], document.limits).body))
            elif name in HINTS:
                document.mark(place, "format", "annotation")
            else:
                document.refuse(place, "format", f"{name!r:.60} is not one of {', '.join(FORMATS)}; use 'pattern'")
    return found


def pattern_at(document: Document, pointer: str, pattern: str) -> Node | None:
    """A pattern of the schema as a language of characters; None when it is refused and strict is off."""
    try:
        return check_search(pattern, document.limits).body
    except ConstraintError as error:
        raise ConstraintError(f"{pointer}: {error}") from None
    except ConstraintRefused as error:
        base, _, keyword = pointer.rpartition("/")
        document.refuse(Place({}, base), keyword, f"is not enforced: {error.reason}")
        return None


def check_encodable(where: str, value: str) -> None:
    """Half a surrogate pair is in no text that a model can write."""
    if any(SURROGATES[0] <= ord(c) <= SURROGATES[1] for c in value):
        raise ConstraintError(f"{where}: {value!r:.60} holds half a surrogate pair")


def numeric(document: Document, places: Conjunction, whole: bool, name: str) -> tuple[Node, dict[str, Node]]:
    """The JSON numbers of a conjunction, and rules the node refers to, named after `name`."""
    low, high = _bounds(document, places)
    for place in places:
        if "format" in place:
            whole = _numeric_format(document, place) or whole
            low, high = _integer_format_bounds(place, low, high)
    steps = [(place, number(document, place, "multipleOf")) for place in places if "multipleOf" in place]
    for place, step in steps:
        if step <= 0:
            document.broken(place, "multipleOf", "expected a number above 0")
    steps = [(place, step) for place, step in steps if not (whole and step == 1)]
    if steps:
        result = _multiples(document, steps, low, high, whole, name)
        if result is not None:
            return result
    if whole:
        return numbers.integers(_first_integer(low), _last_integer(high)), {}
    if low is None and high is None:
        return numbers.any_number(), {}
    return numbers.decimals(low, high), {}


def _bounds(document: Document, places: Conjunction) -> tuple[Bound | None, Bound | None]:
    lows: list[Bound] = []
    highs: list[Bound] = []
    for place in places:
        for found, plain, exclusive in ((lows, "minimum", "exclusiveMinimum"), (highs, "maximum", "exclusiveMaximum")):
            draft4 = exclusive in place and isinstance(place.schema[exclusive], bool)
            if plain in place:
                value = _bound_value(document, place, plain)
                found.append(Bound(value, draft4 and place.schema[exclusive]))
            if exclusive in place and not draft4:
                found.append(Bound(_bound_value(document, place, exclusive), True))
    low = max(lows, key=lambda b: (b.value, b.exclusive), default=None)
    high = min(highs, key=lambda b: (b.value, not b.exclusive), default=None)
    return low, high


def _bound_value(document: Document, place: Place, keyword: str) -> Decimal:
    value = number(document, place, keyword)
    digits, exponent = value.as_tuple().digits, int(value.as_tuple().exponent)
    # the second: a text strictly inside such a bound can still be read as the double that is the bound
    if max(len(digits) + exponent, -exponent) > 300 or (exponent < 0 and len(digits) > numbers.PRECISION):
        reason = f"{keyword!r} of {value} has more digits than are enforced; round it to {numbers.PRECISION}"
        raise ConstraintRefused(reason, pointer=place.at(keyword), keyword=keyword)
    return value


def _numeric_format(document: Document, place: Place) -> bool:
    name = text(document, place, "format")
    if name in _INTEGER_FORMATS:
        return True
    document.mark(place, "format", "enforced" if name in FORMATS else "annotation")
    return False


def _integer_format_bounds(place: Place, low: Bound | None, high: Bound | None) -> tuple[Bound | None, Bound | None]:
    bits = _INTEGER_FORMATS.get(place.schema["format"])
    if bits is None:
        return low, high
    least, most = Bound(Decimal(-(2**bits))), Bound(Decimal(2**bits - 1))
    low = least if low is None or low.value < least.value else low
    return low, most if high is None or high.value > most.value else high


def _first_integer(low: Bound | None) -> int | None:
    if low is None:
        return None
    return ceil(low.value) + int(low.exclusive and low.value == ceil(low.value))


def _last_integer(high: Bound | None) -> int | None:
    if high is None:
        return None
    return floor(high.value) - int(high.exclusive and high.value == floor(high.value))


def _multiples(
    document: Document,
    steps: list[tuple[Place, Decimal]],
    low: Bound | None,
    high: Bound | None,
    whole: bool,
    name: str,
) -> tuple[Node, dict[str, Node]] | None:
    (place, step), *others = steps
    for other, value in others:
        if value != step:
            document.refuse(other, "multipleOf", "together with another multipleOf cannot be enforced; keep one")
    shown = step.normalize()
    if shown.as_tuple().digits == (1,) and int(shown.as_tuple().exponent) < 0 and not whole:
        return numbers.decimals(low, high, places=-int(shown.as_tuple().exponent)), {}
    if step != int(step):
        document.refuse(place, "multipleOf", f"of {step} cannot be enforced; use a whole number or a power of ten")
        return None
    if step == 1:
        return numbers.integers(_first_integer(low), _last_integer(high)), {}
    return _whole_multiples(document, place, int(step), _first_integer(low), _last_integer(high), name)


def _whole_multiples(
    document: Document, place: Place, step: int, first: int | None, last: int | None, name: str
) -> tuple[Node, dict[str, Node]] | None:
    if first is not None and last is not None and (last - first) // step < _MAX_LISTED:
        return alt(Text(str(n)) for n in range(first + -first % step, last + 1, step)), {}
    if step > _MAX_STEP or first not in (None, 0) or last is not None:
        document.refuse(place, "multipleOf", f"of {step} over this range cannot be enforced; narrow or open the range")
        return None
    sign = optional(Text("-")) if first is None else Text("")
    return seq(sign, Ref(name)), numbers.multiples(step, name)
