"""What the keywords of one type say: `type`, and those of numbers, strings, arrays and objects, as a normal form."""

from __future__ import annotations

from decimal import Decimal

from sglite.constrained.json_schema.document import Place
from sglite.constrained.json_schema.keywords import (
    ARRAY_WORDS,
    NUMBER_WORDS,
    OBJECT_WORDS,
    STRING_WORDS,
    TYPES,
    check_encodable,
    count,
    limit,
    listing,
    mapping,
    names,
    number,
    text,
    types,
)
from sglite.constrained.json_schema.normal import (
    ALL,
    ANY_ARRAY,
    ANY_OBJECT,
    BOTH,
    IMPOSSIBLE,
    NEITHER,
    UNSEEN,
    ArrayShape,
    Conjunction,
    Contains,
    Names,
    Normal,
    ObjectShape,
    Rule,
    Seen,
    literal,
)
from sglite.constrained.json_schema.numbers import NumberSet
from sglite.constrained.json_schema.strings import StringSet
from sglite.constrained.spec import ConstraintError, ConstraintRefused

_NUMBER_WORDS = NUMBER_WORDS | {"format"}


def local_form(place: Place, property_names: StringSet | None) -> Normal:
    """The form of the keywords that speak of one type. `property_names` is what `propertyNames` leaves."""
    keywords = place.schema.keys()
    allowed = types(place)
    numbers = NumberSet.ALL if "number" in allowed else NumberSet.INTEGERS if "integer" in allowed else NumberSet.NONE
    if not numbers.is_empty() and not _NUMBER_WORDS.isdisjoint(keywords):
        numbers = numbers & _numbers(place)
    strings = StringSet.ALL if "string" in allowed else StringSet.NONE
    if not STRING_WORDS.isdisjoint(keywords):
        strings = strings & _strings(place)
    arrays = ANY_ARRAY if ARRAY_WORDS.isdisjoint(keywords) else _array(place)
    shape = ANY_OBJECT if OBJECT_WORDS.isdisjoint(keywords) else _object(place, property_names)
    said = (allowed, arrays, shape, numbers, strings)
    if said == (TYPES, ANY_ARRAY, ANY_OBJECT, NumberSet.ALL, StringSet.ALL):
        return ALL
    return Normal(
        "null" in allowed,
        BOTH if "boolean" in allowed else NEITHER,
        numbers,
        strings,
        (arrays,) if "array" in allowed else (),
        (shape,) if "object" in allowed else (),
    )


def _numbers(place: Place) -> NumberSet:
    schema = place.schema
    result = NumberSet.format(text(place, "format")) if "format" in schema else None
    result = NumberSet.ALL if result is None else result
    for plain, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        draft4 = isinstance(schema.get(exclusive), bool)
        if plain in schema:
            result = result & _range(plain, number(place, plain), draft4 and schema[exclusive])
        if exclusive in schema and not draft4:
            result = result & _range(plain, number(place, exclusive), True)
    if "multipleOf" in schema:
        step = number(place, "multipleOf")
        if step <= 0:
            place.document.broken(place, "multipleOf", "expected a number above 0")
        result = result & NumberSet.multiple_of(step)
    return result


def _range(plain: str, bound: Decimal, exclusive: bool) -> NumberSet:
    if plain == "minimum":
        return NumberSet.range(bound, None, exclusive_low=exclusive)
    return NumberSet.range(None, bound, exclusive_high=exclusive)


def _strings(place: Place) -> StringSet:
    schema, result = place.schema, StringSet.ALL
    if "minLength" in schema or "maxLength" in schema:
        result = StringSet.lengths(limit(place, "minLength") or 0, limit(place, "maxLength"))
    if "pattern" in schema:
        found = pattern(place, "pattern", place.at("pattern"), text(place, "pattern"))
        result = result if found is None else result & found
    if "format" in schema:
        known = StringSet.format(text(place, "format"))
        if known is not None:
            result = result & known
        elif NumberSet.format(schema["format"]) is None:
            place.document.mark(place, "format", "annotation")
    return result


def pattern(place: Place, keyword: str, pointer: str, source: str) -> StringSet | None:
    """The strings in which a pattern is found; None when it is refused and strict is off."""
    try:
        return StringSet.pattern(source, place.document.limits)
    except ConstraintError as error:
        raise ConstraintError(f"{pointer}: {error}") from None
    except ConstraintRefused as error:
        place.document.refuse(place, keyword, f"is not enforced: {error.reason}", pointer)
        return None


def _array(place: Place) -> ArrayShape:
    schema = place.schema
    prefix: tuple[Conjunction, ...] = ()
    rest: Conjunction = ()
    seen = 0
    listed = "prefixItems" if "prefixItems" in schema else "items" if isinstance(schema.get("items"), list) else None
    if listed is not None:
        prefix = tuple(literal(place.sub_in(listed, i)) for i in range(len(listing(place, listed))))
        seen = len(prefix)
    more = "additionalItems" if isinstance(schema.get("items"), list) else "items"
    if more in schema and more != listed:
        rest, seen = literal(place.sub(more)), -1
    if "uniqueItems" in schema and not isinstance(schema["uniqueItems"], bool):
        place.document.broken(place, "uniqueItems", "expected true or false")
    contains: tuple[Contains, ...] = ()
    if "contains" in schema:
        least = count(place, "minContains") if "minContains" in schema else 1
        contains = (Contains(0, literal(place.sub("contains")), least, limit(place, "maxContains")),)
    low, high = limit(place, "minItems") or 0, limit(place, "maxItems")
    counts = bool(contains) and place.resource.reading.contains_counts
    told = Seen(items=seen, loose=counts) if seen or counts else UNSEEN
    return ArrayShape(prefix, rest, low, high, schema.get("uniqueItems") is True, contains, told)


def _object(place: Place, property_names: StringSet | None) -> ObjectShape:
    schema = place.schema
    declared: dict[str, Conjunction] = {}
    if "properties" in schema:
        for name in mapping(place, "properties"):
            check_encodable(place.at("properties"), name)
            declared[name] = literal(place.sub_in("properties", name))
    rules: list[Rule] = []
    patterns: list[StringSet] = []
    if "patternProperties" in schema:
        for source in mapping(place, "patternProperties"):
            sub = place.sub_in("patternProperties", source)
            found = pattern(place, "patternProperties", sub.pointer, source)
            if found is not None:
                patterns.append(found)
                rules.append(Rule(Names(found), literal(sub)))
    more = "additionalProperties" in schema
    if more:
        rules.append(Rule(Names(None, declared, tuple(patterns)), literal(place.sub("additionalProperties"))))
    tracked = declared or patterns or more
    return ObjectShape(
        declared,
        dict.fromkeys(_required(place)),
        tuple(rule for rule in rules if rule.value),
        property_names,
        limit(place, "minProperties") or 0,
        limit(place, "maxProperties"),
        seen=Seen(frozenset(declared), tuple(patterns), more) if tracked else UNSEEN,
    )


def _required(place: Place) -> list[str]:
    value = place.schema.get("required", [])
    if isinstance(value, bool):
        place.document.refuse(place, "required", "as a boolean is draft 3; list the names in the object")
        return []
    return names(place, "required", value)


def absent(name: str) -> Normal:
    """Everything but the objects that have a property of that name."""
    return ALL._replace(objects=(ObjectShape(rules=(Rule(Names(None, only=name), IMPOSSIBLE),)),))
