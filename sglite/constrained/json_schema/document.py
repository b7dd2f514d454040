"""A schema document: places in it, what its references lead to, and the verdict on each keyword met.

A place is a subschema with its JSON pointer, the resource (`$id`) it stands in, and the dynamic scope in which it
was entered, which is empty unless the document has dynamic anchors. Places are interned: the same subschema in the
same scope is the same object, so that they are compared and hashed by identity.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NoReturn

from sglite.constrained.json_schema.check_resources import Resource, Resources, escape
from sglite.constrained.limits import Limits
from sglite.constrained.report import KeywordReport, Verdict
from sglite.constrained.spec import ConstraintError, ConstraintRefused

Scope = tuple[tuple[str, Resource], ...]  # the first resource entered that has a dynamic anchor of this name


class Term:
    """What a value can satisfy, or not."""

    __slots__ = ("_negation",)

    def __init__(self) -> None:
        self._negation: Negation | None = None

    @property
    def negation(self) -> Negation:
        if self._negation is None:
            self._negation = Negation(self)
        return self._negation


class Negation:
    """What a value satisfies that does not satisfy `of`."""

    __slots__ = ("of",)

    def __init__(self, of: Term) -> None:
        self.of = of


class Place(Term):
    """A subschema. `pointer` is that of the document, or starts with the URI of the metaschema it stands in."""

    __slots__ = ("document", "pointer", "resource", "schema", "scope")

    def __init__(self, document: Document, schema: Any, pointer: str, resource: Resource, scope: Scope) -> None:
        super().__init__()
        self.document = document
        self.schema = schema
        self.pointer = pointer
        self.resource = resource
        self.scope = scope

    def at(self, keyword: str) -> str:
        """The pointer of one keyword."""
        return f"{self.pointer}/{escape(keyword)}"

    def sub(self, keyword: str) -> Place:
        """The schema that a keyword holds."""
        return self.document.place(self, self.schema[keyword], f"/{keyword}")

    def sub_in(self, keyword: str, step: str | int) -> Place:
        """One of the schemas in the object or the array that a keyword holds."""
        path = f"/{keyword}/{step}" if isinstance(step, int) else f"/{keyword}/{escape(step)}"
        return self.document.place(self, self.schema[keyword][step], path)


class Document:
    """The schema being lowered: reference targets and the growing report."""

    def __init__(self, schema: Any, strict: bool, limits: Limits) -> None:
        dialect = schema.get("$schema") if isinstance(schema, dict) else None
        self.strict = strict
        self.limits = limits
        self._dropped: list[str] = []
        self._resources = Resources(schema, dialect if isinstance(dialect, str) else None, 4 * limits.max_depth)
        self._places: dict[tuple[str, Scope], Place] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._reasons: dict[str, str] = {}
        top = self._resources.root
        self.root = Place(self, schema, "", top, _entered(top, ()))
        self._places["", self.root.scope] = self.root

    def report(self) -> KeywordReport:
        return KeywordReport(self._verdicts, self._reasons)

    def mark(self, place: Place, keyword: str, verdict: Verdict = "enforced", reason: str = "") -> None:
        """Record a verdict. One unenforced use of a keyword outweighs any number of enforced ones."""
        pointer = place.at(keyword)
        if self._verdicts.get(pointer) != "unenforced" and not self.is_foreign(place):
            self._verdicts[pointer] = verdict
            if reason:
                self._reasons[pointer] = reason

    def refuse(self, place: Place, keyword: str, reason: str, pointer: str | None = None) -> None:
        """Refuse a keyword, or what `pointer` names inside it; with strict=False note it as unenforced and let the
        caller go on without it."""
        pointer = pointer or place.at(keyword)
        if self.strict or self.is_foreign(place):
            raise ConstraintRefused(f"{keyword!r} {reason}", pointer=pointer, keyword=keyword)
        if self._verdicts.get(pointer) != "unenforced":
            self._dropped.append(pointer)
        self._verdicts[pointer] = "unenforced"
        self._reasons[pointer] = reason

    def enforced(self) -> Any:
        """The schema without the keywords that are not enforced."""
        if not self._dropped:
            return self.root.schema
        schema = deepcopy(self.root.schema)
        for pointer in self._dropped:
            *steps, last = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
            around = schema
            for step in steps:
                around = around[int(step) if isinstance(around, list) else step]
            del around[last]
        return schema

    def broken(self, place: Place, keyword: str, what: str) -> NoReturn:
        raise ConstraintError(f"{place.at(keyword)}: {what}, got {place.schema[keyword]!r:.60}")

    def is_foreign(self, place: Place) -> bool:
        """Whether a place is in a metaschema that the document refers to."""
        return place.resource.tree is not self.root.resource.tree

    def is_lexical(self, place: Place) -> bool:
        """Whether a place means the same wherever it is reached from, so that its pointer says all."""
        if self.is_foreign(place):
            return False
        scope: Scope = ()
        for resource in self._resources.resource_at(place.resource, place.pointer):
            scope = _entered(resource, scope)
        return scope == place.scope

    def place(self, parent: Place, schema: Any, path: str) -> Place:
        """The place at `path` below another one."""
        key = (parent.pointer + path, parent.scope)
        found = self._places.get(key)
        if found is None:
            resource, scope = parent.resource, parent.scope
            if isinstance(schema, dict) and resource.reading.id_word in schema:
                local = key[0][len(_prefix(resource, self.root.resource)) :]
                resource = self._resources.resource_at(resource, local)[-1]
                scope = _entered(resource, scope)
            found = self._places[key] = Place(self, schema, key[0], resource, scope)
        return found

    def resolve(self, place: Place, keyword: str) -> Place:
        """The target of the `$ref`, `$dynamicRef` or `$recursiveRef` of a place."""
        reference = place.schema[keyword]
        if not isinstance(reference, str):
            self.broken(place, keyword, "a reference is a string")
        where = place.at(keyword)
        target, pointer, dynamic = self._resources.lookup(reference, place.resource, where)
        if keyword == "$recursiveRef":
            dynamic = "" if "" in target.dynamic else None  # the name of a $recursiveAnchor
        if keyword != "$ref" and dynamic is not None:
            target = dict(place.scope).get(dynamic, target)
            pointer = target.dynamic[dynamic]
        return self._arrive(place, target, pointer, where)

    def _arrive(self, place: Place, target: Resource, pointer: str, where: str) -> Place:
        name = _prefix(target, self.root.resource) + pointer
        scope = place.scope if target is place.resource else _entered(target, place.scope)
        found = self._places.get((name, scope))
        if found is None:
            schema = self._resources.value_at(target, pointer, where)
            owner = self._resources.adopt(schema, pointer, target)
            scope = _entered(owner, scope)
            found = self._places.setdefault((name, scope), Place(self, schema, name, owner, scope))
        return found


def _entered(resource: Resource, scope: Scope) -> Scope:
    """The dynamic scope after a resource has been entered: whoever came first stays."""
    if not resource.dynamic:
        return scope
    known = {name for name, _ in scope}
    return (*scope, *((name, resource) for name in resource.dynamic if name not in known))


def _prefix(resource: Resource, root: Resource) -> str:
    """What stands before the pointers of another document."""
    return "" if resource.tree is root.tree else f"{resource.uri}#"
