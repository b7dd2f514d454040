"""A schema document: places in it, references between them, and the verdict on each keyword met.

A place is a subschema with its JSON pointer. What an instance has to satisfy at one position is a *conjunction* of
places: siblings, `allOf` members and `$ref` targets all simply join the list, so nothing has to be merged key by
key before it is known which type is being generated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import unquote

from sglite.constrained.limits import Limits
from sglite.constrained.report import KeywordReport, Verdict
from sglite.constrained.spec import ConstraintError, ConstraintRefused


@dataclass(frozen=True, slots=True)
class Place:
    """A subschema, its pointer, and the keywords of it that were already dealt with."""

    schema: Any = field(compare=False, hash=False)
    pointer: str
    done: frozenset[str] = frozenset()

    def __contains__(self, keyword: str) -> bool:
        return keyword not in self.done and isinstance(self.schema, dict) and keyword in self.schema

    def at(self, keyword: str) -> str:
        """The pointer of one keyword."""
        return f"{self.pointer}/{escape(keyword)}"

    def sub(self, *steps: str | int) -> Place:
        """The place reached by these steps."""
        schema, pointer = self.schema, self.pointer
        for step in steps:
            schema, pointer = schema[step], f"{pointer}/{escape(str(step))}"
        return Place(schema, pointer)

    def without(self, keyword: str) -> Place:
        return Place(self.schema, self.pointer, self.done | {keyword})


Conjunction = tuple[Place, ...]


def conjunction(places: list[Place]) -> Conjunction:
    """Places without repetition; a place met twice keeps every keyword that either still has to answer for."""
    merged: dict[str, Place] = {}
    for place in places:
        if place.schema is True or place.schema == {}:
            continue
        seen = merged.get(place.pointer)
        merged[place.pointer] = Place(place.schema, place.pointer, place.done & seen.done) if seen else place
    return tuple(merged.values())


class Document:
    """The schema being lowered: reference targets and the growing report."""

    def __init__(self, schema: Any, strict: bool, limits: Limits) -> None:
        self.root = Place(schema, "")
        self.strict = strict
        self.limits = limits
        self._verdicts: dict[str, Verdict] = {}
        self._reasons: dict[str, str] = {}
        self._anchors: dict[str, Place] = {}
        self._base = schema.get("$id", "") if isinstance(schema, dict) else ""
        for place in _walk(self.root, limits):
            anchor = place.schema.get("$anchor")
            if isinstance(anchor, str):
                self._anchors[anchor] = place

    def report(self) -> KeywordReport:
        return KeywordReport(dict(self._verdicts), dict(self._reasons))

    def mark(self, place: Place, keyword: str, verdict: Verdict = "enforced") -> None:
        """Record a verdict. One unenforced use of a keyword outweighs any number of enforced ones."""
        if self._verdicts.get(place.at(keyword)) != "unenforced":
            self._verdicts[place.at(keyword)] = verdict

    def refuse(self, place: Place, keyword: str, reason: str) -> None:
        """Refuse a keyword; with strict=False note it as unenforced and let the caller go on without it."""
        if self.strict:
            raise ConstraintRefused(f"{keyword!r} {reason}", pointer=place.at(keyword), keyword=keyword)
        self._verdicts[place.at(keyword)] = "unenforced"
        self._reasons[place.at(keyword)] = reason

    def broken(self, place: Place, keyword: str, what: str) -> NoReturn:
        value = place.schema[keyword]
        raise ConstraintError(f"{place.at(keyword)}: {what}, got {value!r:.60}")

    def resolve(self, place: Place) -> Place:
        """The target of the `$ref` of a place."""
        reference = place.schema["$ref"]
        if not isinstance(reference, str):
            self.broken(place, "$ref", "a reference is a string")
        base, _, fragment = reference.partition("#")
        if base and base != self._base.rstrip("#"):
            raise ConstraintRefused(
                f"'$ref' to {reference!r:.80} is outside this document; copy the target into $defs",
                pointer=place.at("$ref"),
                keyword="$ref",
            )
        if fragment and not fragment.startswith("/"):
            if fragment not in self._anchors:
                self.broken(place, "$ref", "no $anchor of that name")
            return self._anchors[fragment]
        return self._follow(place, unquote(fragment))

    def _follow(self, place: Place, pointer: str) -> Place:
        target = self.root
        for step in (part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]):
            if isinstance(target.schema, dict) and step in target.schema:
                target = target.sub(step)
            elif isinstance(target.schema, list) and step.isdecimal() and int(step) < len(target.schema):
                target = target.sub(int(step))
            else:
                self.broken(place, "$ref", f"nothing at {step!r:.40}")
        return target


def escape(step: str) -> str:
    """One step of a JSON pointer (RFC 6901)."""
    return step.replace("~", "~0").replace("/", "~1")


def _walk(root: Place, limits: Limits) -> Iterator[Place]:
    """Every JSON object in the document, by place. Refuses a document nested too deeply."""
    waiting = [(root, 0)]
    while waiting:
        place, depth = waiting.pop()
        if depth > 4 * limits.max_depth:
            raise ConstraintRefused(f"nested deeper than {4 * limits.max_depth}; use $ref", pointer=place.pointer)
        if isinstance(place.schema, dict):
            yield place
            waiting.extend((place.sub(key), depth + 1) for key in place.schema)
        elif isinstance(place.schema, list):
            waiting.extend((place.sub(i), depth + 1) for i in range(len(place.schema)))
