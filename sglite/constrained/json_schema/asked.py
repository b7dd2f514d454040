"""Asked: a check of a grammar that can be written down, and asked by another process in the same words.

What `Guard` asks is whether a finished value is valid at some places of a schema, invalid at others, equal to some
values and unlike others. Those are JSON; the schema is too. Whoever has both can ask.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sglite.constrained.budget import Budget
from sglite.constrained.json_schema.check import Checker
from sglite.constrained.json_schema.strings import StringSet
from sglite.constrained.json_values import exact, identity, parse
from sglite.constrained.limits import Limits


class Question(NamedTuple):
    """What is asked of a text. `places` and `opposites` are JSON pointers, `same` and `other` JSON values. With
    `bare` the text is a string without its quotes and escapes."""

    places: Sequence[str] = ()
    opposites: Sequence[str] = ()
    same: Sequence[Any] = ()
    other: Sequence[Any] = ()
    bare: bool = False


class Asked:
    """`Check` of a question about a document, which may be large and is shared by its questions."""

    def __init__(self, document: Any, question: Question, checker: Checker) -> None:
        self.document = document
        self.question = question
        self._checker = checker
        self._valid = checker.check(question.places, question.opposites)
        self._same = [identity(exact(value)) for value in question.same]
        self._other = [identity(exact(value)) for value in question.other]

    def bare(self) -> Asked:
        """The same question about a string written as it is."""
        return Asked(self.document, self.question._replace(bare=True), self._checker)

    def __call__(self, text: str) -> bool:
        """Whether the text is what is asked for."""
        if self.question.bare:
            text = json.dumps(text, ensure_ascii=False)
        if not self._valid(text):
            return False
        if not (self._same or self._other):
            return True
        key = identity(parse(text))
        return all(key == wanted for wanted in self._same) and all(key != unwanted for unwanted in self._other)


def checker_of(document: Any, limits: Limits, budget: Budget | None = None) -> Checker:
    """What the questions about a document are asked of; `budget` is spent on making its rules."""
    return Checker(document, formats=_has_format, limits=limits, budget=budget)


def _has_format(name: str, text: str) -> bool | None:
    known = StringSet.format(name)
    return None if known is None else known.contains(text)
