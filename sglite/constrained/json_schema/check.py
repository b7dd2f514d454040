"""Checker: whether a JSON value is valid under a place of a schema, exactly, whatever keyword it uses.

It is what a value is asked when a grammar alone cannot tell (`Guard`), and what decides whether a constant fits its
siblings. Promises. The answer is the standard's, in the context of the whole document: references, `$id`, dynamic
scope, what was evaluated. Numbers are exact. Drafts 4 to 2020-12 are read together: a keyword means what its draft
says, an `items` array, `additionalItems`, `dependencies` and a boolean `exclusiveMinimum` included; `$schema` decides
whether `$ref` hides its siblings (up to draft 7), whether "id" names a resource and 1.0 is no integer (draft 4), and
whether an item that `contains` matched counts as evaluated (from 2020-12 on). Without `$schema` it is read as 2020-12.
Everything is bounded. Where the work of one value goes over the limits, or a pattern means one thing in ECMA-262 and
another in Python, the answer is False, never a guess. Answers do not depend on the thread or on what was asked before.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sglite.constrained.budget import Budget
from sglite.constrained.fsm import matches
from sglite.constrained.grammar import Check, Node
from sglite.constrained.json_schema.check_members import MEMBERS
from sglite.constrained.json_schema.check_resources import Resource, Resources, escape
from sglite.constrained.json_schema.check_rules import SCALAR_AND_APPLIED, Place, Rule, Seen
from sglite.constrained.json_values import exact, parse
from sglite.constrained.limits import Limits
from sglite.constrained.regex import search_expr
from sglite.constrained.spec import ConstraintError, ConstraintRefused

Formats = Callable[[str, str], "bool | None"]
"""(name of the format, text) -> whether the text has it; None when nothing is known of that format."""
Patterns = Callable[[str, str], bool]
"""(pattern, text) -> whether it is found in the text, as ECMA-262 searches."""

_Start = tuple[Place, tuple[Resource, ...]]
"""A place and the resources around it."""

_MAX_TEXT = 1 << 20  # characters of one value
_MAX_WORK = 50_000  # subschemas asked for one value
_MAX_DEPTH = 150  # of them inside one another: Python's own stack ends at about 1,000 calls
_MEMO = 2048  # answers kept, for texts of at most _MEMO_TEXT characters
_MEMO_TEXT = 2048

_MAKERS = {**SCALAR_AND_APPLIED, **MEMBERS}


class Checker:
    """Checks values against places of one schema document, which is not changed meanwhile.

    `draft` is the URI of a dialect, for a document that has no `$schema`. `formats` asserts the formats it knows;
    `patterns` searches a text for a pattern. `budget` is what the rules of its places may take to be made.
    """

    def __init__(
        self,
        document: Any,
        draft: str | None = None,
        *,
        formats: Formats | None = None,
        patterns: Patterns | None = None,
        limits: Limits | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._document = exact(document)
        self._draft = draft
        self._formats = formats
        self._patterns = patterns
        self._limits = limits or Limits()
        self._budget = budget
        self._lock = threading.RLock()
        self._resources: Resources | None = None
        self._places: dict[tuple[int, str], Place] = {}
        self._waiting: list[Place] = []
        self.dynamic_names: set[str] = set()
        self._memo: OrderedDict[tuple[tuple[str, ...], tuple[str, ...], str], bool] = OrderedDict()

    def check(self, pointers: Iterable[str], against: Iterable[str] = ()) -> Check:
        """Whether a text is one JSON value that is valid at every pointer (of the schema, from the document's root)
        and invalid at every one of `against`. False when the limits leave it open: do not negate it, use `against`.

        Everything that these places can reach is looked at now: raises ConstraintError for a malformed keyword or a
        reference to nothing, ConstraintRefused for a reference outside the document or a pattern that is not read.
        """
        asked = tuple(pointers), tuple(against)
        wanted, unwanted = ([self._start(pointer) for pointer in listed] for listed in asked)

        def holds(text: str) -> bool:
            if len(text) > _MEMO_TEXT:
                return self._text_holds(wanted, unwanted, text)
            key = (*asked, text)
            with self._lock:
                known = self._memo.get(key)
            if known is None:
                known = self._text_holds(wanted, unwanted, text)
                with self._lock:
                    self._memo[key] = known
                    if len(self._memo) > _MEMO:
                        self._memo.popitem(last=False)
            return known

        return holds

    def valid(self, value: Any, pointer: str = "") -> bool:
        """Whether a value, as `json.loads` gives it, is valid at a pointer. Raises as `check` does."""
        return self._holds([self._start(pointer)], [], exact(value))

    def _text_holds(self, wanted: list[_Start], unwanted: list[_Start], text: str) -> bool:
        if len(text) > _MAX_TEXT:
            return False
        try:
            return self._holds(wanted, unwanted, parse(text))
        except ValueError:
            return False

    def _holds(self, wanted: list[_Start], unwanted: list[_Start], value: Any) -> bool:
        try:
            return all(_Asking(self, scope).holds(place, value, None) for place, scope in wanted) and not any(
                _Asking(self, scope).holds(place, value, None) for place, scope in unwanted
            )
        except (_Unanswered, RecursionError):
            return False

    def _start(self, pointer: str) -> _Start:
        """The place at a pointer, made together with all that it can reach, and the resources around it."""
        with self._lock:
            if self._resources is None:
                self._resources = Resources(self._document, self._draft, 4 * self._limits.max_depth)
            scope = self._resources.resource_at(self._resources.root, pointer)
            place = self.place(self._resources.root, pointer, pointer)
            self._make(self._resources)
            return place, scope

    def _make(self, resources: Resources) -> None:
        while self._waiting:
            place = self._waiting.pop()
            try:
                if self._budget is not None:
                    self._budget.spend(pointer=place.pointer)
                place.rules = _Making(self, resources, place).rules()
            except (ConstraintError, ConstraintRefused):
                self._waiting.append(place)  # whoever asks next is told the same
                raise
            if not self._waiting:  # a dynamic reference may lead to any anchor of its name
                for name in self.dynamic_names:
                    for resource, pointer in resources.dynamic_anchors(name):
                        self.place(resource, pointer, pointer)

    def place(self, tree: Resource, pointer: str, origin: str) -> Place:
        """The place at a pointer of a document; its rules may be made later. `origin` refers to it."""
        assert self._resources is not None
        key = (id(tree.tree), pointer)
        found = self._places.get(key)
        if found is None:
            schema = self._resources.value_at(tree, pointer, origin)
            if not isinstance(schema, dict | bool):
                raise ConstraintError(f"{pointer}: a schema is an object or a boolean, got {schema!r:.60}")
            around = self._resources.resource_at(tree, pointer)[-1]
            found = Place(schema, pointer, self._resources.adopt(schema, pointer, around))
            self._places[key] = found
            self._waiting.append(found)
        return found

    def dynamic(self, name: str, scope: tuple[Resource, ...]) -> Place | None:
        """The outermost place of a dynamic anchor ("": of a recursive root) in a dynamic scope."""
        for resource in scope:
            if name in resource.dynamic:
                return self._places[id(resource.tree), resource.dynamic[name]]
        return None

    def pattern(self, pattern: str) -> Callable[[str], bool]:
        """The search for a pattern. Raises ConstraintError or ConstraintRefused when the pattern cannot be read."""
        if self._patterns is not None:
            search = self._patterns
            return lambda text: search(pattern, text)
        inner = search_expr(pattern, self._limits, budget=self._budget)
        outer = search_expr(pattern, self._limits, sense="outer", budget=self._budget)
        return lambda text: _searched(inner, outer, text)

    def format(self, name: str) -> Callable[[str], bool | None]:
        formats = self._formats
        return (lambda text: None) if formats is None else (lambda text: formats(name, text))


class _Unanswered(Exception):
    """The work of one value is over the limits, or two dialects of regex disagree about it."""


def _searched(inner: Node, outer: Node, text: str) -> bool:
    """Whether a pattern is found in a text, where every dialect says so or none does."""
    found = matches(inner, text)
    if not found and outer != inner and matches(outer, text):
        raise _Unanswered
    return found


class _Asking:
    """One value being checked: how much work it was, and the resources entered on the way, outermost first."""

    __slots__ = ("_checker", "_depth", "_scope", "_work")

    def __init__(self, checker: Checker, scope: tuple[Resource, ...]) -> None:
        self._checker = checker
        self._scope = scope
        self._work = 0
        self._depth = 0

    def holds(self, place: Place, value: Any, seen: Seen | None) -> bool:
        if not isinstance(place.schema, dict):
            return bool(place.schema)
        self._work += 1
        if self._work > _MAX_WORK or self._depth > _MAX_DEPTH:
            raise _Unanswered
        scope = self._scope
        if place.resource not in scope:
            self._scope = (*scope, place.resource)
        self._depth += 1
        own: Seen | None = set() if place.tracks or seen is not None else None
        for rule in place.rules or ():
            if not rule(self, value, own):
                break
        else:
            if seen is not None and own:
                seen |= own
            self._scope, self._depth = scope, self._depth - 1
            return True
        self._scope, self._depth = scope, self._depth - 1
        return False

    def holds_at(self, name: str, place: Place, value: Any, seen: Seen | None) -> bool:
        return self.holds(self._checker.dynamic(name, self._scope) or place, value, seen)


class _Making:
    """What the rules of one place are made from."""

    def __init__(self, checker: Checker, resources: Resources, place: Place) -> None:
        self._checker = checker
        self._resources = resources
        self._place = place
        self.schema: Mapping[str, Any] = place.schema if isinstance(place.schema, dict) else {}
        self.contains_counts = place.resource.reading.contains_counts
        self.whole_by_spelling = place.resource.reading.whole_by_spelling

    def rules(self) -> list[Rule]:
        alone = self._place.resource.reading.ref_alone and "$ref" in self.schema
        words = ("$ref",) if alone else tuple(word for word in _MAKERS if word in self.schema)
        made = (_MAKERS[word](self, self.schema[word]) for word in words)
        return [rule for rule in made if rule is not None]

    def sub(self, *steps: str | int) -> Place:
        path = "".join(f"/{escape(str(step))}" for step in steps)
        return self._checker.place(self._place.resource, self._place.pointer + path, self._place.pointer + path)

    def target(self, keyword: str) -> tuple[Place, str | None]:
        reference = self.schema[keyword]
        if not isinstance(reference, str):
            raise self.broken(keyword, "a reference is a string")
        origin = self._at(keyword)
        resource, pointer, name = self._resources.lookup(reference, self._place.resource, origin)
        if keyword == "$recursiveRef":
            name = "" if "" in resource.dynamic else None
        if keyword != "$ref" and name is not None:
            self._checker.dynamic_names.add(name)
        return self._checker.place(resource, pointer, origin), name

    def pattern(self, keyword: str, pattern: Any) -> Callable[[str], bool]:
        if not isinstance(pattern, str):
            raise self.broken(keyword, "a pattern is a string")
        try:
            return self._checker.pattern(pattern)
        except ConstraintRefused as error:
            raise ConstraintRefused(error.reason, pointer=self._at(keyword), keyword=keyword) from None
        except ConstraintError as error:
            raise ConstraintError(f"{self._at(keyword)}: {error}") from None

    def format(self, name: str) -> Callable[[str], bool | None]:
        return self._checker.format(name)

    def _at(self, keyword: str) -> str:
        return f"{self._place.pointer}/{escape(keyword)}"

    def broken(self, keyword: str, what: str) -> ConstraintError:
        return ConstraintError(f"{self._at(keyword)}: {what}, got {self.schema[keyword]!r:.60}")
