"""Where a schema's references lead: resources (`$id`), anchors, JSON pointers, and how a draft spells them.

A document is one tree of resources: its root, and every subschema with an `$id`. What a reference means depends on
the resource it stands in. Nothing is ever fetched: besides the document itself only the standard's own metaschemas
are known. A later draft's keyword is read in an older document too; only where two drafts give one spelling two
meanings does `$schema` decide (`Reading`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from sglite.constrained.spec import ConstraintError, ConstraintRefused

# Where subschemas stand, in any draft: as the value, in an array, in an object of names.
IN_VALUE = (
    "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
IN_ARRAY = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
IN_NAMES = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties", "dependencies")
_OLD = ("draft-03", "draft-04", "draft-05", "draft-06", "draft-07")
_METASCHEMAS = ("http://json-schema.org/", "https://json-schema.org/")


@dataclass(frozen=True, slots=True)
class Reading:
    """What depends on the draft. `ref_alone`: a `$ref` hides its siblings (up to draft 7). `id_word`: "id" in
    drafts 3 and 4. `contains_counts`: an item that `contains` matched is evaluated (2020-12). `whole_by_spelling`:
    1.0 is no integer (drafts 3 and 4)."""

    id_word: str = "$id"
    ref_alone: bool = False
    contains_counts: bool = True
    whole_by_spelling: bool = False

    @classmethod
    def of(cls, dialect: str | None, default: Reading | None = None) -> Reading:
        """By the URI of `$schema`; an unknown one, or none, reads as `default` or draft 2020-12."""
        if dialect is not None:
            if any(name in dialect for name in _OLD):
                oldest = "draft-03" in dialect or "draft-04" in dialect
                return cls("id" if oldest else "$id", True, False, oldest)
            if "2019-09" in dialect:
                return cls(contains_counts=False)
            if "2020-12" in dialect:
                return cls()
        return default or cls()


@dataclass(eq=False, slots=True)
class Resource:
    """A schema with a URI of its own: references inside it are relative to that."""

    uri: str
    root: Any
    pointer: str
    """From the root of the document `tree`."""
    tree: Any
    reading: Reading
    anchors: dict[str, str] = field(default_factory=dict)
    dynamic: dict[str, str] = field(default_factory=dict)
    """`$dynamicAnchor`s, as pointers from the root of `tree`, like `anchors`; "" is a `$recursiveAnchor`."""


class Resources:
    """Every resource of a document, and of the metaschemas it refers to."""

    def __init__(self, document: Any, dialect: str | None, max_depth: int) -> None:
        self._max_depth = max_depth
        self._by_uri: dict[str, Resource] = {}
        self._at: dict[tuple[int, str], Resource] = {}  # (tree, pointer of the resource's root)
        self.root = self._add(document, "", Reading.of(dialect))

    def resource_at(self, tree: Resource, pointer: str) -> tuple[Resource, ...]:
        """The resources around a place, outermost first. `tree` is any resource of the same document."""
        found = []
        steps = pointer.split("/")
        for n in range(1, len(steps) + 1):
            resource = self._at.get((id(tree.tree), "/".join(steps[:n])))
            if resource is not None:
                found.append(resource)
        return tuple(found)

    def lookup(self, reference: str, origin: Resource, place: str) -> tuple[Resource, str, str | None]:
        """What a reference at `place` in `origin` leads to: the resource, the pointer from the root of its document,
        and the name when the target is a `$dynamicAnchor`. Raises ConstraintError or ConstraintRefused."""
        target, fragment = origin, unquote(reference[1:])
        if not reference.startswith("#"):
            uri, fragment = urldefrag(urljoin(origin.uri, reference))
            fragment = unquote(fragment)
            found = self._by_uri.get(uri) or self._metaschema(uri)
            if found is None:
                raise ConstraintRefused(
                    f"a reference to {reference!r:.80} leads outside this document; copy the target into $defs",
                    pointer=place,
                    keyword="$ref",
                )
            target = found
        if not fragment:
            return target, target.pointer, None
        if fragment.startswith("/"):
            pointer = target.pointer + fragment
            return self.resource_at(target, pointer)[-1], pointer, None
        if fragment not in target.anchors:
            raise ConstraintError(f"{place}: nothing is called {fragment!r:.80} in {target.uri or 'this schema'!r:.80}")
        return target, target.anchors[fragment], fragment if fragment in target.dynamic else None

    def dynamic_anchors(self, name: str) -> list[tuple[Resource, str]]:
        """Every place a dynamic anchor of that name has, in any resource known so far."""
        return [(each, each.dynamic[name]) for each in self._at.values() if name in each.dynamic]

    def value_at(self, tree: Resource, pointer: str, place: str) -> Any:
        """What stands at a pointer. ConstraintError, naming `place`, when nothing does."""
        value = tree.tree
        for step in pointer.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and name in value:
                value = value[name]
            elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            else:
                raise ConstraintError(f"{place}: a reference to {pointer!r:.80}, but nothing is at {name!r:.40}")
        return value

    def adopt(self, schema: Any, pointer: str, around: Resource) -> Resource:
        """The resource of a schema that is used although it stands under a keyword nobody knows."""
        named = isinstance(schema, dict) and isinstance(schema.get(around.reading.id_word), str)
        if pointer and named and around.pointer != pointer:
            self._walk(schema, pointer, around)
            return self.resource_at(around, pointer)[-1]
        return around

    def _add(self, document: Any, uri: str, reading: Reading) -> Resource:
        if isinstance(document, dict) and isinstance(document.get("$schema"), str):
            reading = Reading.of(document["$schema"], reading)
        root = Resource(uri, document, "", document, reading)
        self._at[id(document), ""] = self._by_uri[uri] = root
        self._walk(document, "", root)
        return root

    def _walk(self, schema: Any, pointer: str, around: Resource) -> None:
        waiting = [(schema, pointer, around, 0)]
        while waiting:
            schema, pointer, resource, depth = waiting.pop()
            if depth > self._max_depth:
                raise ConstraintRefused(f"nested deeper than {self._max_depth}; use $ref", pointer=pointer)
            if isinstance(schema, dict):
                resource = self._enter(schema, pointer, resource)
                waiting += [(sub, f"{pointer}/{path}", resource, depth + 1) for path, sub in subschemas(schema)]

    def _enter(self, schema: dict[str, Any], pointer: str, around: Resource) -> Resource:
        """Note the identifiers of one schema; the resource that it belongs to."""
        dialect, reading = schema.get("$schema"), around.reading
        if pointer and isinstance(dialect, str):
            reading = Reading.of(dialect, reading)
        name = schema.get(reading.id_word)
        if isinstance(name, str) and not (reading.ref_alone and "$ref" in schema):
            base, fragment = urldefrag(name)
            if base:
                uri = urljoin(around.uri, base)
                if pointer:
                    around = Resource(uri, schema, pointer, around.tree, reading)
                    self._at[id(around.tree), pointer] = around
                else:
                    around.uri = uri
                self._by_uri.setdefault(uri, around)
            if fragment and not fragment.startswith("/"):
                around.anchors.setdefault(fragment, pointer)
        if schema.get("$recursiveAnchor") is True and around.pointer == pointer:
            around.dynamic[""] = pointer
        for word in ("$anchor", "$dynamicAnchor"):
            if isinstance(schema.get(word), str):
                around.anchors.setdefault(schema[word], pointer)
                if word == "$dynamicAnchor":
                    around.dynamic.setdefault(schema[word], pointer)
        return around

    def _metaschema(self, uri: str) -> Resource | None:
        if not uri.startswith(_METASCHEMAS):
            return None
        try:
            registry = import_module("jsonschema_specifications").REGISTRY  # reads its files when first used
        except ImportError:
            return None
        found = registry.get(uri)
        return None if found is None else self._add(found.contents, uri, Reading())


def subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas directly inside a schema, each with the pointer that leads to it."""
    for word in IN_VALUE:
        if isinstance(schema.get(word), dict | bool):
            yield word, schema[word]
    for word in IN_ARRAY:
        if isinstance(schema.get(word), list):
            yield from ((f"{word}/{i}", sub) for i, sub in enumerate(schema[word]))
    for word in IN_NAMES:
        if isinstance(schema.get(word), dict):
            yield from ((f"{word}/{escape(name)}", sub) for name, sub in schema[word].items())


def escape(step: str) -> str:
    """One step of a JSON pointer (RFC 6901)."""
    return step.replace("~", "~0").replace("/", "~1")
