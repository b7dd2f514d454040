"""Objects of a conjunction: a small automaton over the declared properties, in their order.

State (i, c): the first i properties are decided, c of them are present. It carries the comma, `required` and the
property counts. Properties that are not declared come last. An object that declares properties and does not speak
of additional ones gets none: JSON Schema would allow any, but the author of such a schema wants those properties.
`additionalProperties: true` opens it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from sglite.constrained.grammar import EMPTY, NOTHING, Node, Ref, Text, alt, repeat, seq
from sglite.constrained.json_schema.document import Conjunction, Document, Place, conjunction
from sglite.constrained.json_schema.keywords import largest, members, smallest
from sglite.constrained.json_schema.layout import Layout
from sglite.constrained.json_schema.scalars import characters, check_encodable, pattern_at
from sglite.constrained.json_schema.strings import constant, plain_name, quoted
from sglite.constrained.matching import matches
from sglite.constrained.spec import ConstraintRefused

_MAX_STATES = 20_000
_MAX_NAME = 256  # characters of a declared name that an additional one has to differ from

Lower = Callable[[Conjunction], Node]
Expand = Callable[[Conjunction], "Conjunction | None"]


@dataclass
class Shape:
    """What is known of the objects of one conjunction before they are laid out."""

    names: list[str]
    values: dict[str, Conjunction]  # names that may not appear are absent
    required: set[str]
    low: int
    high: int | None
    key: Node = NOTHING  # of an undeclared property
    value: Conjunction = ()


def object_node(
    document: Document, places: Conjunction, layout: Layout, lower: Lower, expand: Expand, name: str
) -> tuple[Node, dict[str, Node]]:
    """The objects of a conjunction, and the rules they refer to, named after `name`."""
    shape = _shape(document, places, expand)
    states = _States(shape, layout, lower, name)
    if not states.build():
        reason = (
            f"'maxProperties' over {len(shape.names)} properties has more than {_MAX_STATES} states; drop the count"
        )
        raise ConstraintRefused(reason, pointer=places[0].pointer, keyword="maxProperties")
    return seq(Text("{"), layout.space, Ref(f"{name}.0.0"), Text("}")), states.rules


class _States:
    """The automaton (i, c) of the module's docstring, as rules."""

    def __init__(self, shape: Shape, layout: Layout, lower: Lower, name: str) -> None:
        self._shape = shape
        self._layout = layout
        self._lower = lower
        self._name = name
        self._cap = max(1, shape.low, shape.high or 0)  # counts above are all alike
        self._more: Node = NOTHING
        self.rules: dict[str, Node] = {}
        if shape.key != NOTHING:
            self.rules[f"{name}.more"] = seq(shape.key, layout.colon, lower(shape.value))
            self._more = Ref(f"{name}.more")

    def build(self) -> bool:
        """Write the rules of every state that can be reached; False when there are too many."""
        waiting = [(0, 0)]
        while waiting:
            i, c = waiting.pop()
            rule = f"{self._name}.{i}.{c}"
            if rule in self.rules:
                continue
            if len(self.rules) > _MAX_STATES:
                return False
            if i == len(self._shape.names):
                self.rules[rule] = self._end(c)
                continue
            moves = self._moves(i, c)
            self.rules[rule] = alt(seq(*entry, Ref(f"{self._name}.{i + 1}.{to}")) for to, entry in moves)
            waiting.extend((i + 1, to) for to, _ in moves)
        return True

    def _moves(self, i: int, c: int) -> list[tuple[int, list[Node]]]:
        """Property i written, and left out: the count then, and what is written."""
        shape, prop = self._shape, self._shape.names[i]
        moves: list[tuple[int, list[Node]]] = []
        if prop in shape.values and (shape.high is None or c < shape.high):
            comma = self._layout.comma if c else EMPTY
            entry = [comma, constant(prop), self._layout.colon, self._lower(shape.values[prop])]
            moves.append((min(c + 1, self._cap), entry))
        if prop not in shape.required:
            moves.append((c, []))
        return moves

    def _end(self, count: int) -> Node:
        """After the declared properties: undeclared ones, as far as the counts allow, and the closing space."""
        missing = max(0, self._shape.low - count)
        room = None if self._shape.high is None else self._shape.high - count
        rest = seq(self._layout.comma, self._more)
        # Undeclared names may repeat, so of any number of them only one is sure to be a new property.
        if missing > 1:
            return NOTHING
        if count:
            return seq(repeat(rest, missing, room), self._layout.space)
        following = repeat(rest, 0, None if room is None else room - 1)
        filled = NOTHING if room == 0 else seq(self._more, following, self._layout.space)
        return filled if missing else alt([EMPTY, filled])


def _shape(document: Document, places: Conjunction, expand: Expand) -> Shape:
    places = _evaluated(document, places)
    required = _required(document, places)
    names = list(dict.fromkeys([*_declared(document, places), *required]))
    patterns = _patterns(document, places)
    naming = _naming(document, places, expand)
    values: dict[str, Conjunction] = {}
    for name in names:
        here = _value_of(places, patterns, name)
        if here is not None and (naming is None or matches(naming, name)):
            values[name] = here
    low, high = largest(document, places, "minProperties"), smallest(document, places, "maxProperties")
    shape = Shape(names, values, set(required), low, high)
    _undeclared(document, places, patterns, naming, shape)
    if shape.low <= len(required):
        shape.low = 0
    if shape.key == NOTHING and shape.high is not None and shape.high >= len(names):
        shape.high = None
    if shape.low > len(names) + 1 and shape.key != NOTHING:
        place = next(place for place in places if "minProperties" in place)
        document.refuse(place, "minProperties", "over names that are not declared cannot be enforced; declare them")
        shape.low = 0
    return shape


def _declared(document: Document, places: Conjunction) -> list[str]:
    names: list[str] = []
    for place in places:
        if "properties" in place:
            names.extend(members(document, place, "properties", dict))
            for name in place.schema["properties"]:
                check_encodable(place.at("properties"), name)
    return names


def _required(document: Document, places: Conjunction) -> list[str]:
    names: list[str] = []
    for place in places:
        if "required" not in place or isinstance(place.schema["required"], bool):
            if "required" in place:
                document.refuse(place, "required", "as a boolean is draft 3; list the names in the object")
            continue
        for name in members(document, place, "required", list):
            if not isinstance(name, str):
                document.broken(place, "required", "expected an array of names")
            check_encodable(place.at("required"), name)
            names.append(name)
    return list(dict.fromkeys(names))


def _patterns(document: Document, places: Conjunction) -> dict[str, Node]:
    """The pattern of every patternProperties, as a language of names."""
    found: dict[str, Node] = {}
    for place in places:
        if "patternProperties" in place:
            for pattern in members(document, place, "patternProperties", dict):
                node = pattern_at(document, place.sub("patternProperties", pattern).pointer, pattern)
                if node is not None:
                    found[pattern] = node
    return found


def _naming(document: Document, places: Conjunction, expand: Expand) -> Node | None:
    """The language of names that propertyNames leaves, None for all."""
    asked = [place.sub("propertyNames") for place in places if "propertyNames" in place]
    if not asked:
        return None
    expanded = expand(conjunction(asked))
    if expanded is None:
        return NOTHING
    listed: list[list[object]] = []
    for place in expanded:
        for keyword in ("anyOf", "oneOf"):
            if keyword in place:
                document.refuse(place, keyword, "in propertyNames cannot be enforced; use enum or pattern")
        if "const" in place:
            listed.append([place.schema["const"]])
        if "enum" in place:
            listed.append(members(document, place, "enum", list))
    node = characters(document, expanded)
    if not listed:
        return node
    names = [n for n in listed[0] if isinstance(n, str) and all(n in other for other in listed) and matches(node, n)]
    return alt(Text(name) for name in names)


def _value_of(places: Conjunction, patterns: dict[str, Node], name: str) -> Conjunction | None:
    """What a declared or required property has to satisfy, None when it is forbidden."""
    found: list[Place] = []
    for place in places:
        count = len(found)
        if "properties" in place and name in place.schema["properties"]:
            found.append(place.sub("properties", name))
        for pattern in place.schema["patternProperties"] if "patternProperties" in place else ():
            if pattern in patterns and matches(patterns[pattern], name):
                found.append(place.sub("patternProperties", pattern))
        if len(found) == count and "additionalProperties" in place:
            found.append(place.sub("additionalProperties"))
    return None if any(place.schema is False for place in found) else conjunction(found)


def _undeclared(
    document: Document, places: Conjunction, patterns: dict[str, Node], naming: Node | None, shape: Shape
) -> None:
    """Set the name and the value of a property that is not declared; leaves them closed when there can be none."""
    found: list[Place] = []
    for place in places:
        listed = place.schema["patternProperties"] if "patternProperties" in place else {}
        if any(pattern in patterns for pattern in listed):
            found += [place.sub("patternProperties", pattern) for pattern in listed if pattern in patterns]
        elif "additionalProperties" in place:
            found.append(place.sub("additionalProperties"))
    if patterns:
        shape.key = _patterned_name(document, places, patterns, naming, shape)
    elif found or not any("properties" in place for place in places):
        shape.key = _plain_name(document, places, naming, shape)
    shape.value = conjunction(found)
    if any(place.schema is False for place in found):
        shape.key = NOTHING


def _plain_name(document: Document, places: Conjunction, naming: Node | None, shape: Shape) -> Node:
    if naming is not None:
        if any(matches(naming, name) for name in shape.names):
            place = next(place for place in places if "propertyNames" in place)
            document.refuse(place, "propertyNames", "that fits declared names cannot be enforced; declare all names")
            return NOTHING
        return quoted(naming)
    if any(len(name) > _MAX_NAME for name in shape.names):
        reason = f"a property name longer than {_MAX_NAME} in an open object cannot be enforced; close the object"
        raise ConstraintRefused(reason, pointer=places[0].pointer, keyword="additionalProperties")
    return plain_name(shape.names)


def _patterned_name(
    document: Document, places: Conjunction, patterns: dict[str, Node], naming: Node | None, shape: Shape
) -> Node:
    speaking = [place for place in places if "patternProperties" in place and place.schema["patternProperties"]]
    schemas = {json.dumps(schema) for place in speaking for schema in place.schema["patternProperties"].values()}
    reason = None
    if len(schemas) > 1 or len({frozenset(place.schema["patternProperties"]) for place in speaking}) > 1:
        reason = "with several schemas cannot be enforced; a name may fit more than one"
    elif naming is not None:
        reason = "together with propertyNames cannot be enforced; keep one"
    elif any(matches(node, name) for node in patterns.values() for name in shape.names):
        reason = "that fits declared names cannot be enforced; rename them"
    if reason is None:
        return quoted(alt(patterns.values()))
    document.refuse(speaking[0], "patternProperties", reason)
    return NOTHING


def _evaluated(document: Document, places: Conjunction) -> Conjunction:
    """unevaluatedProperties read as additionalProperties, which it is where nothing else describes properties."""
    speaking = [p for p in places if any(k in p for k in ("properties", "patternProperties", "additionalProperties"))]
    result = []
    for place in places:
        if "unevaluatedProperties" in place and place.schema["unevaluatedProperties"] is not True:
            if any(other.pointer != place.pointer for other in speaking):
                document.refuse(place, "unevaluatedProperties", "over several schemas cannot be enforced; merge them")
            elif "additionalProperties" not in place:
                schema = {**place.schema, "additionalProperties": place.schema["unevaluatedProperties"]}
                place = Place(schema, place.pointer, place.done)
        result.append(place)
    return tuple(result)
