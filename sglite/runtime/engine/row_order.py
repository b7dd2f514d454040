"""The order of a step's rows: those that share a prefix stand side by side.

root -+- A -+- row 0          rows come as 0 1 2 3, most urgent first; a subtree stands where its first row stood:
      |     '- row 2          0 2 1 3
      +- row 1
      '- row 3
"""

from __future__ import annotations

from collections.abc import Sequence

from sglite.runtime.cache.node import RadixNode


class RowOrder:
    """Orders places in the tree, step after step; mostly they are where they were the step before."""

    def __init__(self) -> None:
        self._known: tuple[list[RadixNode], list[RadixNode | None]] = ([], [])
        """The places last seen and what they hung on: nodes further up part and join, but keep who is beside whom."""
        self._order: list[int] = []

    def of(self, places: list[RadixNode]) -> list[int]:
        """See ``depth_first``."""
        known = places, [place.parent for place in places]
        if known != self._known:
            self._known, self._order = known, depth_first(places)
        return self._order


def depth_first(places: Sequence[RadixNode]) -> list[int]:
    """The indices of ``places`` in the order of a depth-first walk, which enters subtrees in order of appearance."""
    below: dict[RadixNode, list[int | RadixNode]] = {}
    roots: list[int | RadixNode] = []
    for index, place in enumerate(places):
        item: int | RadixNode = index
        node: RadixNode | None = place
        while node is not None:
            siblings = below.get(node)
            if siblings is not None:
                siblings.append(item)
                break
            below[node] = [item]
            item, node = node, node.parent
        else:
            roots.append(item)
    order: list[int] = []
    stack = roots[::-1]
    while stack:
        item = stack.pop()
        if isinstance(item, int):
            order.append(item)
        else:
            stack.extend(reversed(below[item]))
    return order
