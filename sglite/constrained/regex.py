"""Regular expressions: the spelling of ECMA-262 and of Python's `re`, read into a regular node of the grammar.

Promise: every text of the node is matched by the pattern in both dialects, wherever both accept it, and wherever the
two agree every text that matches is one of the node's. Where one is wider the narrower meaning is taken: `\\d` gives
ASCII digits, `.` no line ends. Lookaround, word boundaries and anchors are exact wherever they stand. Greedy and lazy
quantifiers describe the same texts. Refused with their position: backreferences to a group of many texts, possessive
quantifiers and atomic groups that drop matches, and what needs more states than the limits allow.
"""

from __future__ import annotations

from typing import NoReturn

from sglite.constrained.budget import Budget
from sglite.constrained.grammar import Node
from sglite.constrained.limits import Limits
from sglite.constrained.regex_around import Lowering
from sglite.constrained.regex_automaton import ANY
from sglite.constrained.regex_groups import without_references
from sglite.constrained.regex_reader import Reader, Sense
from sglite.constrained.regex_tree import cat
from sglite.constrained.spec import ConstraintRefused

_MAX_WORK = 80_000


def match_expr(
    pattern: str, limits: Limits | None = None, *, sense: Sense = "inner", budget: Budget | None = None
) -> Node:
    """The texts that the pattern matches from first to last character, as a regular node.

    With `sense="outer"` it is the texts that some dialect matches: whoever complements the node wants that, because
    only what no dialect matches is then left. Raises ConstraintError with the position for a broken pattern,
    ConstraintRefused for one that is not enforced.
    """
    return _lowered(pattern, limits, sense, budget, search=False)


def search_expr(
    pattern: str, limits: Limits | None = None, *, sense: Sense = "inner", budget: Budget | None = None
) -> Node:
    """The texts in which the pattern is found somewhere, as JSON Schema's `pattern` means it; else as `match_expr`."""
    return _lowered(pattern, limits, sense, budget, search=True)


def terminal_expr(pattern: str, limits: Limits | None = None, *, budget: Budget | None = None) -> Node:
    """`match_expr` of a pattern for a part of a text whose matches depend on neither the text beside it nor on which
    of several is taken; ConstraintRefused for any other."""
    return _lowered(pattern, limits, "inner", budget, search=False, alone=True)


def _lowered(
    pattern: str, limits: Limits | None, sense: Sense, budget: Budget | None, *, search: bool, alone: bool = False
) -> Node:
    def refuse(what: str) -> NoReturn:
        reason = f"regex {pattern!r:.80}: {what} is not enforced; rewrite the pattern without it"
        raise ConstraintRefused(reason, keyword="regex")

    try:
        reader = Reader(pattern, limits or Limits(), sense)
        tree = without_references(reader.read(), refuse)
        if alone and (found := reader.particular()):
            refuse(found)
        if search:
            tree = cat([ANY, tree, ANY])
        return Lowering(budget or Budget(_MAX_WORK), refuse).whole(tree)
    except RecursionError:
        refuse("nesting, or a row of conditions, as deep as this")
