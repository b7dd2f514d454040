"""Proof that two conjunctions share no instance, so that `oneOf` may be read as `anyOf`.

Sound, not complete: types, constants, and a property that both describe in ways that exclude each other.
"""

from __future__ import annotations

from collections.abc import Callable

from sglite.constrained.json_schema.document import Conjunction, Document, Place, conjunction
from sglite.constrained.json_schema.keywords import TYPES, identity

Expand = Callable[[Conjunction], "Conjunction | None"]
_MAX_DEPTH = 4


def disjoint(document: Document, expand: Expand, left: Conjunction, right: Conjunction, depth: int = 0) -> bool:
    """Whether no value satisfies both. `expand` follows references and allOf; None from it means nothing fits."""
    a, b = expand(left), expand(right)
    if a is None or b is None:
        return True
    if not _types(a) & _types(b):
        return True
    first, second = _constants(a), _constants(b)
    if first is not None and second is not None:
        return not first & second
    if depth >= _MAX_DEPTH or (_types(a) & _types(b)) - {"object"}:
        return False
    for one, other in ((a, b), (b, a)):
        for name in sorted(_required(one)):
            here, there = _property(one, name), _property(other, name)
            if there is None or disjoint(document, expand, here or (), there, depth + 1):
                return True
    return False


def _types(places: Conjunction) -> set[str]:
    """Types a value may have; "number" includes the whole ones. Never narrowed by what keywords suggest."""
    allowed = set(TYPES)
    for place in places:
        if "type" in place:
            names = place.schema["type"]
            names = set(names) if isinstance(names, list) else {names}
            allowed &= names | {"integer"} if "number" in names else names
    constants = _constants(places)
    return allowed if constants is None else {t for t in allowed if any(_is(t, c) for c in constants)}


def _is(name: str, constant: str) -> bool:
    starts = {"null": "n", "boolean": "tf", "string": '"', "array": "[", "object": "{"}
    return constant[0] in starts.get(name, "-0123456789")


def _constants(places: Conjunction) -> set[str] | None:
    found: set[str] | None = None
    for place in places:
        for keyword in ("const", "enum"):
            if keyword in place:
                value = place.schema[keyword]
                values = {identity(v) for v in (value if keyword == "enum" else [value])}
                found = values if found is None else found & values
    return found


def _required(places: Conjunction) -> set[str]:
    lists = [place.schema["required"] for place in places if "required" in place]
    return {name for names in lists if isinstance(names, list) for name in names if isinstance(name, str)}


def _property(places: Conjunction, name: str) -> Conjunction | None:
    """What a property has to satisfy; None when it is forbidden."""
    found: list[Place] = []
    for place in places:
        declared = "properties" in place and isinstance(place.schema["properties"], dict)
        if declared and name in place.schema["properties"]:
            found.append(place.sub("properties", name))
        elif "patternProperties" not in place and place.schema.get("additionalProperties") is False:
            return None
    return conjunction(found)
