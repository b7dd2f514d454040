"""Readings: what the front end made of the specs it has seen of late.

A spec is read when it is checked, and again only when it has been forgotten. What the front end says depends on the
spec alone, so a refusal is remembered too, unless it was for lack of time.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Mapping

from sglite.constrained.budget import Budget, OutOfTime
from sglite.constrained.limits import Limits
from sglite.constrained.lower import Lowered, lower
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec

_ENTRIES = 64
_CHARACTERS = 4_000_000  # of all the specs remembered; a grammar is of the order of its text


class Readings:
    """Reads specs under one set of limits. Safe to use from several threads."""

    def __init__(self, limits: Limits, specials: Mapping[str, int]) -> None:
        self._limits = limits
        self._specials = specials
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[int, Lowered | ConstraintError | ConstraintRefused]] = OrderedDict()
        self._characters = 0

    def read(self, spec: ConstraintSpec, budget: Budget) -> Lowered:
        """The spec as a grammar. Raises ConstraintError or ConstraintRefused."""
        found = self._find(spec)
        result = self._read(spec, budget) if found is None else found
        if found is None and not isinstance(result, OutOfTime):
            self._remember(spec, result)
        if isinstance(result, Lowered):
            return result
        raise copy.copy(result)  # an exception gathers the way it was raised

    def refusal(self, spec: ConstraintSpec) -> ConstraintError | ConstraintRefused | None:
        """What a spec was refused with, as far as it is remembered."""
        found = self._find(spec)
        return None if found is None or isinstance(found, Lowered) else copy.copy(found)

    def refused(self, spec: ConstraintSpec, error: ConstraintError | ConstraintRefused) -> None:
        """Remember what somebody else read: that the spec is refused."""
        self._remember(spec, copy.copy(error))

    def _find(self, spec: ConstraintSpec) -> Lowered | ConstraintError | ConstraintRefused | None:
        key = spec.key()
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
        return None if found is None else found[1]

    def _read(self, spec: ConstraintSpec, budget: Budget) -> Lowered | ConstraintError | ConstraintRefused:
        try:
            return lower(spec, self._limits, specials=self._specials, budget=budget)
        except (ConstraintError, ConstraintRefused) as error:
            return error.with_traceback(None)

    def _remember(self, spec: ConstraintSpec, result: Lowered | ConstraintError | ConstraintRefused) -> None:
        key, characters = spec.key(), len(spec.value)
        with self._lock:
            if key in self._known:
                return
            self._known[key] = characters, result
            self._characters += characters
            while len(self._known) > _ENTRIES or self._characters > _CHARACTERS:
                _, (dropped, _) = self._known.popitem(last=False)
                self._characters -= dropped
