"""The parts of the radix tree: nodes, cursors, and what a look-up returns. ``radix.py`` says how they fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class RadixNode:
    """A run of tokens; see the drawing above."""

    __slots__ = (
        "checkpoint", "checkpoint_step", "children", "continues", "cursors", "end", "hints", "last_access", "locks",
        "lookahead", "namespace", "owner", "pages", "parent", "pins", "planned", "planned_step", "ready", "start",
        "tokens", "wants_checkpoint",
    )  # fmt: skip

    def __init__(self, parent: RadixNode | None, tokens: list[int], start: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.children: dict[int, RadixNode] = {}
        self.start = start
        self.end = start + len(tokens)
        self.ready = start
        self.planned = start
        self.planned_step = -1
        self.owner: object | None = None
        """Who computes, or has computed last, what is here. It stays as long as the node does, so it had better be no
        more than a reference to who that is."""
        self.pages: list[int] = []
        self.continues = False
        self.locks = 0
        """Cursors here and below; unlocked: 0."""
        self.pins = 0
        """Those of them that are pins, which give way when memory is short."""
        self.hints = 0
        """Sequences without a cursor that are known to come back here or below."""
        self.cursors = 0
        self.lookahead: object | None = None
        """Who computes, in flight, the token after ``end`` that nobody knows yet; others wait for it."""
        self.checkpoint: dict[str, int] = {}
        """State groups: the slot with the recurrent state at ``end``."""
        self.checkpoint_step = -1
        self.wants_checkpoint = False
        self.last_access = 0
        self.namespace: str = parent.namespace if parent is not None else ""

    @property
    def is_evictable(self) -> bool:
        """An unlocked leaf, still in the tree."""
        return self.locks == 0 and not self.children and self.parent is not None

    def __repr__(self) -> str:
        return f"RadixNode([{self.start}, {self.end}), ready={self.ready}, planned={self.planned}, locks={self.locks})"


@dataclass(frozen=True)
class Match:
    """How much of a token sequence the tree knows."""

    node: RadixNode
    """The deepest node that contributes."""
    depth: int
    """Tokens matched, computed or promised."""
    planned: int
    """Tokens matched that are computed or in flight."""
    blocked_on: RadixNode | None
    """The node whose owner has yet to compute what is matched but not planned."""


class Cursor:
    """A locked place in the tree: the end of ``node``. ``is_pin``: held for later, and not by a request under way."""

    __slots__ = ("is_pin", "node")

    def __init__(self, node: RadixNode, is_pin: bool = False) -> None:
        self.node = node
        self.is_pin = is_pin

    @property
    def depth(self) -> int:
        """Tokens from the root to here."""
        return self.node.end


def common_prefix(a: Sequence[int], b: Sequence[int], b_from: int) -> int:
    """Length of the longest common prefix of ``a`` and ``b[b_from:]``, by halving: compares slices, not items."""
    n = min(len(a), len(b) - b_from)
    if a[:n] == b[b_from : b_from + n]:
        return n
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[b_from + low : b_from + middle]:
            low = middle
        else:
            high = middle
    return low
