"""Regular expressions: the spelling of ECMA-262 and of Python's `re`, read into a grammar.

Promise: every text of the grammar is matched by the pattern in both dialects, wherever both accept it; what cannot
be turned into a grammar (lookaround, backreferences, word boundaries) is refused with its position. Where a dialect
is wider the narrower meaning is generated: `\\d` gives ASCII digits, `.` no line ends. Greedy and lazy quantifiers
describe the same texts; possessive ones and atomic groups do not, and are refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglite.constrained import charset
from sglite.constrained.grammar import EMPTY, Alt, Chars, Node, Repeat, Seq, alt, repeat, seq
from sglite.constrained.limits import Limits
from sglite.constrained.regex_reader import ANCHOR_END, ANCHOR_START, Reader
from sglite.constrained.spec import ConstraintRefused

_ANY = repeat(Chars(charset.EVERY), 0, None)


@dataclass(frozen=True)
class Regex:
    """A checked pattern. `body` is the language of a full match, with no anchors left in it."""

    pattern: str
    body: Node


def check_regex(pattern: str, limits: Limits | None = None) -> Regex:
    """Read a pattern that has to match the whole text.

    Raises ConstraintError with position for a broken pattern and ConstraintRefused for one that is not enforced.
    """
    node = Reader(pattern, limits or Limits()).read()
    return Regex(pattern, _anchored(node, pattern, search=False))


def check_search(pattern: str, limits: Limits | None = None) -> Regex:
    """Read a pattern that has to be found somewhere in the text, as JSON Schema says."""
    node = Reader(pattern, limits or Limits()).read()
    return Regex(pattern, _anchored(node, pattern, search=True))


def _anchored(node: Node, pattern: str, *, search: bool) -> Node:
    """Take the anchors off both ends; where one is absent and the match is a search, anything may stand there."""
    pad = _ANY if search else EMPTY
    branches = node.items if isinstance(node, Alt) and node.items else (node,)
    result = []
    for branch in branches:
        items = list(branch.items) if isinstance(branch, Seq) else [branch]
        if len(items) == 1 and isinstance(items[0], Alt) and _has_anchor(items[0]):
            result.append(_anchored(items[0], pattern, search=search))
            continue
        start = end = False
        while items and items[0] == ANCHOR_START:
            items, start = items[1:], True
        while items and items[-1] == ANCHOR_END:
            items, end = items[:-1], True
        if any(_has_anchor(item) for item in items):
            raise ConstraintRefused(
                f"regex {pattern!r:.80}: an anchor that is not at an end of the pattern is not enforced; remove it",
                keyword="regex",
            )
        result.append(seq(EMPTY if start else pad, *items, EMPTY if end else pad))
    return alt(result)


def _has_anchor(node: Node) -> bool:
    if isinstance(node, Seq | Alt):
        return any(_has_anchor(item) for item in node.items)
    return _has_anchor(node.item) if isinstance(node, Repeat) else node in (ANCHOR_START, ANCHOR_END)
