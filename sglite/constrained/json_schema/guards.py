"""The checks of a grammar: which finished values are asked, and what.

A guard stands around a value of which the grammar holds too much. It asks the whole conjunction that the value has
to satisfy. A place that means something else depending on how it was reached (dynamic scope), or that stands in
another document, cannot be asked by its pointer; then the whole text is asked once it ends.
"""

from __future__ import annotations

from sglite.constrained.grammar import Check, Guard, Node
from sglite.constrained.json_schema.check import Checker
from sglite.constrained.json_schema.document import Document, Negation, Place
from sglite.constrained.json_schema.normal import Conjunction, Exactly, Literal
from sglite.constrained.json_schema.strings import StringSet
from sglite.constrained.json_values import identity, parse


class Guards:
    """Collects what has to be checked; the checker is made when all is known, and only if anything is."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._numbers: dict[Conjunction, int] = {}
        self._whole = False

    def around(self, node: Node, terms: Conjunction) -> Node:
        """`node` with a check of the conjunction when its text ends."""
        if not all(self._is_local(term) for term in terms):
            self._whole = True
            return node
        return Guard(node, self._numbers.setdefault(terms, len(self._numbers)))

    def around_root(self, node: Node) -> Node:
        """The same for the whole text, if something inside it has to be asked there."""
        if not self._whole:
            return node
        return Guard(node, self._numbers.setdefault((self._document.root,), len(self._numbers)))

    def checks(self) -> tuple[Check, ...]:
        """What the guards ask, by their numbers."""
        if not self._numbers:
            return ()
        document = self._document
        checker = Checker(document.enforced(), formats=_has_format, limits=document.limits)
        return tuple(_check(checker, terms) for terms in self._numbers)

    def _is_local(self, term: Literal) -> bool:
        of = term.of if isinstance(term, Negation) else term
        return not isinstance(of, Place) or self._document.is_lexical(of)


def _has_format(name: str, text: str) -> bool | None:
    known = StringSet.format(name)
    return None if known is None else known.contains(text)


def _check(checker: Checker, terms: Conjunction) -> Check:
    """The question whether a text satisfies every term."""
    places = [term.pointer for term in terms if isinstance(term, Place)]
    opposites = [term.of.pointer for term in terms if isinstance(term, Negation) and isinstance(term.of, Place)]
    same = [term.key for term in terms if isinstance(term, Exactly)]
    other = [term.of.key for term in terms if isinstance(term, Negation) and isinstance(term.of, Exactly)]
    valid = checker.check(places, opposites)
    if not (same or other):
        return valid

    def holds(text: str) -> bool:
        if not valid(text):
            return False
        key = identity(parse(text))
        return all(key == wanted for wanted in same) and all(key != unwanted for unwanted in other)

    return holds
