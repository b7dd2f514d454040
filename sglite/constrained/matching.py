"""Whether a fixed string is a text of a grammar node. Set simulation: linear in text and node, no backtracking.

Used for names and constants of a schema against its own patterns, where the standard `re` could be made to run for
minutes by whoever writes the pattern.
"""

from __future__ import annotations

from sglite.constrained.charset import contains
from sglite.constrained.grammar import Alt, And, Chars, Node, Not, Repeat, Seq, Text


def matches(node: Node, text: str) -> bool:
    """Whether `node`, which is regular, matches the whole of `text`."""
    return len(text) in _ends(node, text, {0})


def _ends(node: Node, text: str, starts: set[int]) -> set[int]:
    """Positions where a match that begins at one of `starts` can end."""
    if not starts:
        return starts
    if isinstance(node, Text):
        return {at + len(node.text) for at in starts if text.startswith(node.text, at)}
    if isinstance(node, Chars):
        return {at + 1 for at in starts if at < len(text) and contains(node.ranges, ord(text[at]))}
    if isinstance(node, Seq):
        for item in node.items:
            starts = _ends(item, text, starts)
        return starts
    if isinstance(node, Alt):
        return {end for item in node.items for end in _ends(item, text, starts)}
    if isinstance(node, Repeat):
        return _repeated(node, text, starts)
    if isinstance(node, And):
        return {end for at in starts for end in set.intersection(*(_ends(item, text, {at}) for item in node.items))}
    if isinstance(node, Not):
        return {end for at in starts for end in set(range(at, len(text) + 1)) - _ends(node.item, text, {at})}
    raise TypeError(f"matching is not defined for {type(node).__name__}")


def _repeated(node: Repeat, text: str, starts: set[int]) -> set[int]:
    reached = set(starts)
    for _ in range(node.low):
        before, reached = reached, _ends(node.item, text, reached)
        if reached in (set(), before):  # nothing left, or a fixed point that more rounds do not change
            break
    frontier, rounds = set(reached), node.low
    while frontier and (node.high is None or rounds < node.high):
        frontier = _ends(node.item, text, frontier) - reached
        reached |= frontier
        rounds += 1
    return reached
