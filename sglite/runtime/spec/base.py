"""The seam of speculative decoding: who guesses, and what a guess is.

A draft rides behind the known tokens of a row as a tree: draft i continues draft ``parents[i]`` (-1: the last known
token). Verification samples at every node exactly what would have been sampled there without speculation (randomness
depends on seed and position only) and follows the path on which guesses and samples agree, so output is the same
with and without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Draft:
    """Guessed tokens, parents before children."""

    tokens: list[int]
    parents: list[int]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents) or any(not -1 <= p < i for i, p in enumerate(self.parents)):
            raise ValueError(f"draft parents {self.parents} for {len(self.tokens)} tokens: give -1 or an earlier index")

    def depths(self) -> list[int]:
        """Distance of every draft from the last known token, from 1."""
        return draft_depths(self.parents)


class Proposer(Protocol):
    """Guesses what comes next."""

    def propose(self, tokens: Sequence[int], limit: int) -> Draft | None:
        """A draft of at most ``limit`` tokens, in paths of at most ``limit``, for a sequence; ``None``: no idea."""
        ...


def draft_depths(parents: Sequence[int]) -> list[int]:
    """Distance of every draft from the last known token, from 1."""
    depths: list[int] = []
    for parent in parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return depths


def accept_path(drafts: Sequence[int], parents: Sequence[int], sampled: Sequence[int]) -> list[int]:
    """Indices of what verification keeps: 0 for the last known token, i + 1 for draft i.

    ``sampled[0]`` is the sample after the last known token, ``sampled[i + 1]`` the one after draft i. The samples at
    the returned indices are the output, in order.
    """
    path = [0]
    while True:
        here, token = path[-1] - 1, sampled[path[-1]]
        child = next((i for i, parent in enumerate(parents) if parent == here and drafts[i] == token), None)
        if child is None:
            return path
        path.append(child + 1)
