"""A JSON Schema becomes a grammar: one rule for each distinct conjunction that a value has to satisfy.

Promise: what the grammar generates, its guards included, is valid under the schema, and the other way round but for
the documented policies (the order of properties, numbers in plain spelling, known formats asserted, unique names).
Every keyword met is enforced, an annotation, or refused with its pointer; with strict=False a refused one is left
out and reported as unenforced. What no grammar says exactly is checked when the smallest enclosing value ends.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from sglite.constrained.grammar import Alt, Grammar, Node, Ref, Scope, Text, Unique, alt, seq
from sglite.constrained.json_schema.affordable import affordable
from sglite.constrained.json_schema.arrays import array_node
from sglite.constrained.json_schema.document import Document, Negation, Place
from sglite.constrained.json_schema.forms import Forms
from sglite.constrained.json_schema.guards import Guards
from sglite.constrained.json_schema.layout import Layout
from sglite.constrained.json_schema.listing import bracketed, listed, maybe_empty
from sglite.constrained.json_schema.normal import ALL, Conjunction, Normal, kind_of, surely_empty
from sglite.constrained.json_schema.numbers import NumberSet
from sglite.constrained.json_schema.objects import object_node
from sglite.constrained.json_schema.reading import read
from sglite.constrained.json_schema.scalars import constant
from sglite.constrained.json_schema.strings import StringSet
from sglite.constrained.limits import Limits
from sglite.constrained.report import KeywordReport
from sglite.constrained.spec import ConstraintRefused, ConstraintSpec, Order, Whitespace, parse_json

_MAX_DERIVED = 80  # arrays and objects with a negation that get a grammar of their own; further ones are checked


def lower_schema(spec: ConstraintSpec, limits: Limits) -> tuple[Grammar, KeywordReport]:
    """The grammar of a `json_schema` spec. Raises ConstraintError or ConstraintRefused."""
    schema = parse_json(spec.value, "JSON schema")
    return lower_parsed(schema, spec.whitespace, spec.strict, limits, spec.order)


def lower_parsed(
    schema: Any, whitespace: Whitespace, strict: bool, limits: Limits, order: Order = "schema"
) -> tuple[Grammar, KeywordReport]:
    """The same for a schema that has been parsed already."""
    lowering = Lowering(Document(schema, strict, limits), Layout.of(whitespace), order)
    return lowering.run(), lowering.document.report()


class Lowering:
    """The rules of one document, made as they are first referred to."""

    def __init__(self, document: Document, layout: Layout, order: Order = "schema") -> None:
        self.document = document
        self.layout = layout
        self.any_order = order == "any"
        self.forms = Forms(document, read)
        self.guards = Guards(document)
        self.rules: dict[str, Node] = {}
        self._nodes: dict[Conjunction, Node] = {}
        self._waiting: deque[tuple[str, Conjunction, Normal]] = deque()
        self._named = 0
        self._derived = 0

    def run(self) -> Grammar:
        root = self.value((self.document.root,))
        while self._waiting:
            name, terms, form = self._waiting.popleft()
            self.rules[name] = self._lower(name, terms, form)
            if len(self.rules) > self.document.limits.max_nodes:
                raise ConstraintRefused(f"too large: over {self.document.limits.max_nodes} rules; simplify it")
        root = self.guards.around_root(root)
        return Grammar({"root": root, **self.rules}, checks=self.guards.checks())

    def value(self, terms: Conjunction) -> Node:
        """The values of a conjunction: a rule, or what stands for it. Its work is queued: nesting costs no stack."""
        found = self._nodes.get(terms)
        if found is None:
            found = self._nodes[terms] = self._made(terms)
            if len(self._nodes) > self.document.limits.max_places:
                raise ConstraintRefused(f"too large: over {len(self._nodes) - 1} kinds of values; simplify it")
        return found

    def _made(self, terms: Conjunction) -> Node:
        form = self.form(terms)
        plain = self._plain(form)
        if plain is not None:
            return plain
        told = tuple(term for term in terms if not isinstance(term, Negation))
        if len(told) < len(terms) and (form.arrays or form.objects):
            self._derived += 1
            if self._derived > _MAX_DERIVED:
                return self.guards.around(self.value(told), terms)
        name = f"s{self._named}"
        self._named += 1
        self._waiting.append((name, terms, form))
        return Ref(name)

    def form(self, terms: Conjunction) -> Normal:
        """The normal form of a conjunction."""
        return self.forms.lowered(terms)

    def _plain(self, form: Normal) -> Node | None:
        """The node of a form that needs no rule of its own."""
        if form is ALL:
            return self._any()
        if form.arrays or form.objects or form.constants:
            return None
        if form.strings == StringSet.NONE:
            if form.numbers.is_empty():
                return alt(_words(form))
            if not (form.null or form.booleans) and form.numbers in (NumberSet.ALL, NumberSet.INTEGERS):
                return form.numbers.node("").node
        elif form.strings == StringSet.ALL and form.numbers.is_empty() and not (form.null or form.booleans):
            return form.strings.node()
        return None

    def _lower(self, name: str, terms: Conjunction, form: Normal) -> Node:
        options: list[Node] = _words(form)
        if not surely_empty(form.strings):
            strings, exact = affordable(form.strings)
            options.append(strings.node() if exact else self.guards.around(strings.node(), terms))
        if not form.numbers.is_empty():
            node, rules, exact = form.numbers.node(f"{name}.n")
            self.rules.update(rules)
            options.append(node if exact else self.guards.around(node, terms))
        options += self._structures(name, terms, "array", form)
        options += self._structures(name, terms, "object", form)
        return alt(options)

    def _structures(self, name: str, terms: Conjunction, kind: str, form: Normal) -> list[Node]:
        """The arrays or the objects of a form."""
        nodes = [constant(each.value, self.layout) for each in form.constants if kind_of(each) == kind]
        loose = kind in form.loose
        made = []
        if kind == "array":
            made = [array_node(self, shape, f"{name}.a{i}") for i, shape in enumerate(form.arrays)]
        else:
            made = [object_node(self, shape, f"{name}.o{i}", _pointer(terms)) for i, shape in enumerate(form.objects)]
        nodes += [node for node, _ in made]
        if not loose and not any(wide for _, wide in made):
            return nodes
        return [self.guards.around(alt(nodes), terms)] if nodes else []

    def _any(self) -> Node:
        """Any JSON value."""
        if "any" not in self.rules:
            layout, value, text = self.layout, Ref("any"), StringSet.ALL.node()
            entry = seq(Unique(text, safe=True), layout.colon, value)
            items = bracketed("[", maybe_empty(listed(value, layout, 1, None), layout, 0), "]", layout)
            members = bracketed("{", maybe_empty(listed(entry, layout, 1, None), layout, 0), "}", layout)
            self.rules["any"] = Alt((*_words(ALL), NumberSet.ALL.node("").node, text, items, Scope(members)))
        return Ref("any")


def _pointer(terms: Conjunction) -> str:
    """Of the first place of a conjunction, for messages."""
    bare = (term.of if isinstance(term, Negation) else term for term in terms)
    return next((term.pointer for term in bare if isinstance(term, Place)), "")


def _words(form: Normal) -> list[Node]:
    words = ["null"] if form.null else []
    words += [text for text, value in (("true", True), ("false", False)) if value in form.booleans]
    return [Text(word) for word in words]
