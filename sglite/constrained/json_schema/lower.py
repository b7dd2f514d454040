"""A JSON Schema becomes a grammar: one rule for each distinct conjunction of places that a value has to satisfy.

Promise: whatever the grammar generates is valid under the schema. Every keyword met is enforced, an annotation, or
refused with its pointer; with strict=False a refused one is left out and reported as unenforced. Properties come
in the order in which they are declared.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from sglite.constrained.grammar import EMPTY, NOTHING, Grammar, Node, Ref, Text, alt, optional, repeat, seq
from sglite.constrained.json_schema.arrays import array_node
from sglite.constrained.json_schema.disjoint import disjoint
from sglite.constrained.json_schema.document import Conjunction, Document, Place, conjunction
from sglite.constrained.json_schema.keywords import allowed_types, branches, check_keywords, identity, members
from sglite.constrained.json_schema.layout import Layout
from sglite.constrained.json_schema.numbers import any_number
from sglite.constrained.json_schema.objects import object_node
from sglite.constrained.json_schema.scalars import check_encodable, numeric, string
from sglite.constrained.json_schema.strings import constant, free_string
from sglite.constrained.json_schema.values import fits
from sglite.constrained.limits import Limits
from sglite.constrained.report import KeywordReport
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec, Whitespace, parse_json

_MAX_BRANCHES = 64  # of a oneOf whose branches are compared pair by pair


def lower_schema(spec: ConstraintSpec, limits: Limits) -> tuple[Grammar, KeywordReport]:
    """The grammar of a `json_schema` spec. Raises ConstraintError or ConstraintRefused."""
    schema = parse_json(spec.value, "JSON schema")
    return lower_parsed(schema, spec.whitespace, spec.strict, limits)


def lower_parsed(schema: Any, whitespace: Whitespace, strict: bool, limits: Limits) -> tuple[Grammar, KeywordReport]:
    """The same for a schema that has been parsed already."""
    lowering = _Lowering(Document(schema, strict, limits), Layout.of(whitespace))
    return lowering.run(), lowering.document.report()


class _Lowering:
    def __init__(self, document: Document, layout: Layout) -> None:
        self.document = document
        self._layout = layout
        self._rules: dict[str, Node] = {}
        self._names: dict[Conjunction, str] = {}
        self._waiting: deque[Conjunction] = deque()
        self._visited = 0

    def run(self) -> Grammar:
        root = self._ref(conjunction([self.document.root]))
        while self._waiting:
            places = self._waiting.popleft()
            self._rules[self._names[places]] = self._lower(places)
        return Grammar({"root": root, **self._rules})

    def _ref(self, places: Conjunction) -> Node:
        """The rule of a conjunction; the work is queued, so that nesting costs no stack."""
        if not places:
            return self._any()
        if places not in self._names:
            self._names[places] = f"s{len(self._names)}"
            self._waiting.append(places)
        return Ref(self._names[places])

    def _lower(self, places: Conjunction) -> Node:
        expanded = self._expand(places)
        if expanded is None:
            return NOTHING
        if not expanded:
            return self._any()
        for keyword in ("anyOf", "oneOf"):
            for place in expanded:
                if keyword in place:
                    return self._branch(expanded, place, keyword, self._names[places])
        if any("enum" in place or "const" in place for place in expanded):
            return self._listed(expanded)
        return self._by_type(expanded, self._names[places])

    def _expand(self, places: Conjunction) -> Conjunction | None:
        """Follow $ref and allOf until none is left. None when a member is `false`."""
        found: list[Place] = []

        def visit(place: Place, above: frozenset[str]) -> bool:
            if place.pointer in above and "$ref" in place:
                raise ConstraintError(f"{place.at('$ref')}: the reference leads back to itself")
            self._visited += 1
            if self._visited > self.document.limits.max_places:
                raise ConstraintRefused(
                    f"too large: over {self.document.limits.max_places} subschemas to visit; simplify it"
                )
            check_keywords(self.document, place)
            if place.schema is False:
                return False
            inner = [self.document.resolve(place)] if "$ref" in place else []
            inner += branches(self.document, place, "allOf") if "allOf" in place else []
            above |= {place.pointer}
            if len(above) > self.document.limits.max_depth:
                raise ConstraintRefused("references and allOf nested too deeply", pointer=place.pointer)
            found.append(place.without("$ref").without("allOf"))
            return all(visit(other, above) for other in inner)

        # a list first: every member is visited, so that each gets its verdicts
        alive = [visit(place, frozenset()) for place in places]
        return conjunction(found) if all(alive) else None

    def _branch(self, places: Conjunction, place: Place, keyword: str, name: str) -> Node:
        others = [place.without(keyword) if other is place else other for other in places]
        options = [conjunction([*others, branch]) for branch in branches(self.document, place, keyword)]
        if keyword == "oneOf" and len(options) > 1:
            reason = self._overlap(options)
            if reason is not None:
                self.document.refuse(place, "oneOf", reason)
        refs = [self._ref(option) for option in options]
        return alt(ref for ref in refs if ref != Ref(name))

    def _overlap(self, options: list[Conjunction]) -> str | None:
        if len(options) > _MAX_BRANCHES:
            return f"with more than {_MAX_BRANCHES} branches cannot be enforced; use anyOf"
        for j in range(len(options)):
            for i in range(j):
                if not disjoint(self.document, self._expand, options[i], options[j]):
                    return f"branches {i} and {j} may both match; use anyOf, or tell them apart by a required constant"
        return None

    def _listed(self, places: Conjunction) -> Node:
        """enum and const: the values that every other keyword accepts, each written out."""
        lists = []
        for place in places:
            if "const" in place:
                lists.append([place.schema["const"]])
            if "enum" in place:
                lists.append(members(self.document, place, "enum", list))
        others = [{identity(value) for value in values} for values in lists[1:]]
        kept = [v for v in lists[0] if all(identity(v) in other for other in others)]
        types = allowed_types(self.document, places)
        written = {identity(value): self._constant(value) for value in kept}
        return alt(written[identity(v)] for v in kept if fits(self.document, places, types, v))

    def _constant(self, value: Any) -> Node:
        if isinstance(value, str):
            check_encodable("a constant", value)
            return constant(value)
        if isinstance(value, list):
            items = [self._constant(item) for item in value]
            return self._bracketed("[", items, "]")
        if isinstance(value, dict):
            pairs = [seq(self._constant(k), self._layout.colon, self._constant(v)) for k, v in value.items()]
            return self._bracketed("{", pairs, "}")
        return Text(json.dumps(value))

    def _bracketed(self, opening: str, items: list[Node], closing: str) -> Node:
        parts: list[Node] = []
        for item in items:
            parts += [self._layout.comma, item] if parts else [item]
        inside = seq(*parts, self._layout.space) if items else EMPTY
        return seq(Text(opening), self._layout.space, inside, Text(closing))

    def _by_type(self, places: Conjunction, name: str) -> Node:
        types = allowed_types(self.document, places)
        options: list[Node] = []
        if "null" in types:
            options.append(Text("null"))
        if "boolean" in types:
            options += [Text("true"), Text("false")]
        if "string" in types:
            options.append(string(self.document, places))
        if "integer" in types or "number" in types:
            node, rules = numeric(self.document, places, "number" not in types, f"{name}.n")
            options.append(node)
            self._rules |= rules
        if "array" in types:
            node, rules = array_node(self.document, places, self._layout, self._ref, f"{name}.a")
            options.append(node)
            self._rules |= rules
        if "object" in types:
            node, rules = object_node(self.document, places, self._layout, self._ref, self._expand, f"{name}.o")
            options.append(node)
            self._rules |= rules
        return alt(options)

    def _any(self) -> Node:
        """Any JSON value."""
        if "any" not in self._rules:
            layout, value = self._layout, Ref("any")
            text = free_string(0, None)
            entry = seq(text, layout.colon, value)
            self._rules["any"] = alt(
                [
                    *(Text(word) for word in ("null", "true", "false")),
                    any_number(),
                    text,
                    seq(Text("["), layout.space, optional(_listing(value, layout)), Text("]")),
                    seq(Text("{"), layout.space, optional(_listing(entry, layout)), Text("}")),
                ]
            )
        return Ref("any")


def _listing(item: Node, layout: Layout) -> Node:
    return seq(item, repeat(seq(layout.comma, item), 0, None), layout.space)
