"""Arrays of a conjunction: the items that have a place of their own, then the ones that share a schema.

A list of `prefixItems` without `items` gets no further items unless `minItems` asks for them: as with objects, what
the schema does not speak of is not generated.
"""

from __future__ import annotations

from collections.abc import Callable

from sglite.constrained.grammar import EMPTY, NOTHING, Node, Ref, Text, alt, repeat, seq
from sglite.constrained.json_schema.document import Conjunction, Document, Place, conjunction
from sglite.constrained.json_schema.keywords import largest, smallest
from sglite.constrained.json_schema.layout import Layout


def array_node(
    document: Document, places: Conjunction, layout: Layout, lower: Callable[[Conjunction], Node], name: str
) -> tuple[Node, dict[str, Node]]:
    """The arrays of a conjunction, and the rules they refer to, named after `name`."""
    low, high = largest(document, places, "minItems"), smallest(document, places, "maxItems")
    _check_unique(document, places, high)
    lists = [_positional(document, place) for place in places]
    length = max(map(len, lists))
    tail = _tail(document, places, lists, low, length)
    rest = NOTHING if tail is None else seq(layout.comma, lower(tail))
    rules: dict[str, Node] = {}
    for i in range(length + 1):
        ends = [layout.space] if i >= low and i else [EMPTY] if i >= low else []
        following = Ref(f"{name}.{i + 1}")
        if high is not None and i >= high:
            rules[f"{name}.{i}"] = alt(ends) if i == high else NOTHING
        elif i < length:
            item = _item(document, places, lists, i)
            entry = NOTHING if item is None else seq(layout.comma if i else EMPTY, lower(item), following)
            rules[f"{name}.{i}"] = alt([*ends, entry])
        elif i:
            room = None if high is None else high - i
            rules[f"{name}.{i}"] = seq(repeat(rest, max(0, low - i), room), layout.space)
        else:
            first = NOTHING if tail is None else lower(tail)
            more = repeat(rest, max(0, low - 1), None if high is None else high - 1)
            rules[f"{name}.{i}"] = alt([*ends, seq(first, more, layout.space)])
    return seq(Text("["), layout.space, Ref(f"{name}.0"), Text("]")), rules


def _positional(document: Document, place: Place) -> list[Place]:
    """The schemas of the first items, in the spelling of 2020-12 or in that of the drafts before it."""
    for keyword in ("prefixItems", "items"):
        if keyword in place and isinstance(place.schema[keyword], list):
            return [place.sub(keyword, i) for i in range(len(place.schema[keyword]))]
        if keyword == "prefixItems" and keyword in place:
            document.broken(place, keyword, "expected an array of schemas")
    return []


def _rest_keyword(place: Place) -> str | None:
    """The keyword that speaks of the items after the positional ones."""
    old = "items" in place and isinstance(place.schema["items"], list)
    for keyword in ("additionalItems",) if old else ("items",):
        if keyword in place:
            return keyword
    return "unevaluatedItems" if place.schema.get("unevaluatedItems", True) is not True else None


def _item(document: Document, places: Conjunction, lists: list[list[Place]], i: int) -> Conjunction | None:
    found = []
    for place, positional in zip(places, lists, strict=True):
        rest = _rest_keyword(place)
        if i < len(positional):
            found.append(positional[i])
        elif rest is not None:
            found.append(place.sub(rest))
    return None if any(place.schema is False for place in found) else conjunction(found)


def _tail(
    document: Document, places: Conjunction, lists: list[list[Place]], low: int, length: int
) -> Conjunction | None:
    """What every further item has to satisfy, None when there is none."""
    for place in places:
        if _rest_keyword(place) == "unevaluatedItems" and len(places) > 1:
            document.refuse(place, "unevaluatedItems", "over several schemas cannot be enforced; merge them")
    if all(_rest_keyword(place) is None for place in places) and length and low <= length:
        return None
    return _item(document, places, lists, length)


def _check_unique(document: Document, places: Conjunction, high: int | None) -> None:
    for place in places:
        if "uniqueItems" in place and place.schema["uniqueItems"] is not False and (high is None or high > 1):
            document.refuse(place, "uniqueItems", "cannot be enforced; list the choices as properties, or drop it")
