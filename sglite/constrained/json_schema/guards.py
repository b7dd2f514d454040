"""The checks of a grammar: which finished values are asked, and what.

A guard stands around a value of which the grammar holds too much. It asks the whole conjunction that the value has
to satisfy. A place that means something else depending on how it was reached (dynamic scope), or that stands in
another document, cannot be asked by its pointer; then the whole text is asked once it ends.
"""

from __future__ import annotations

from sglite.constrained.grammar import Guard, Node
from sglite.constrained.json_schema.asked import Asked, Question, checker_of
from sglite.constrained.json_schema.document import Document, Negation, Place
from sglite.constrained.json_schema.normal import Conjunction, Exactly, Literal


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

    def checks(self) -> tuple[Asked, ...]:
        """What the guards ask, by their numbers."""
        if not self._numbers:
            return ()
        document = self._document.enforced()
        checker = checker_of(document, self._document.limits)
        return tuple(Asked(document, _question(terms), checker) for terms in self._numbers)

    def _is_local(self, term: Literal) -> bool:
        of = term.of if isinstance(term, Negation) else term
        return not isinstance(of, Place) or self._document.is_lexical(of)


def _question(terms: Conjunction) -> Question:
    """Whether a text satisfies every term."""
    negated = [term.of for term in terms if isinstance(term, Negation)]
    return Question(
        places=[term.pointer for term in terms if isinstance(term, Place)],
        opposites=[term.pointer for term in negated if isinstance(term, Place)],
        same=[term.value for term in terms if isinstance(term, Exactly)],
        other=[term.value for term in negated if isinstance(term, Exactly)],
    )
