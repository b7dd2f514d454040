"""What backends are told about mixtures of experts: their weights, and how a token finds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass
class Matrices:
    """Weights of one shape that only ``moe`` and ``matmul_each`` read, so that a backend may arrange them."""

    tensor: Tensor
    """[n, out, in]; once they are packed, in an order that the backend alone knows."""
    arrangement: object | None = None
    """As of ``Matrix``."""

    @property
    def packed(self) -> bool:
        """Whether ``tensor`` is arranged."""
        return self.arrangement is not None


@dataclass(frozen=True)
class ExpertWeights:
    """All experts of a layer."""

    gate_up: Matrices
    """[E, 2 * intermediate, hidden], gates first."""
    down: Matrices
    """[E, hidden, intermediate]"""
    gate_up_bias: Tensor | None = None
    """[E, 2 * intermediate]"""
    down_bias: Tensor | None = None
    """[E, hidden]"""


@dataclass(frozen=True)
class Routing:
    """How a token finds its experts."""

    scoring: Literal["softmax", "sigmoid"]
    top_k: int
    num_groups: int = 1
    top_groups: int = 1
    """Experts are chosen among those of the best groups."""
    group_score: Literal["max", "top2"] = "max"
    """A group counts as much as its best expert, or as its best two together."""
    renormalize: bool = True
    """Weights of the chosen experts are divided by their sum."""
    scaling: float = 1.0
    """Weights are multiplied by this."""
