"""What backends are told about mixtures of experts: their weights, and how a token finds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sglite.runtime.quant.codes import Codes


@dataclass
class Matrices:
    """Weights of one shape that only ``moe`` and ``matmul_each`` read, so that a backend may arrange them."""

    tensor: Tensor
    """[n, out, in], or the values of their codes; once they are packed, in an order that the backend alone knows."""
    arrangement: object | None = None
    """As of ``Matrix``."""
    codes: Codes | None = None
    """Of experts: what their numbers are coded in, [n * out, in]; ``None``: they have them as they are."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """[n, out, in]"""
        count, outputs, inputs = self.tensor.shape
        return count, outputs, inputs if self.codes is None else self.codes.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of what they are multiplied with."""
        return self.tensor.dtype if self.codes is None else self.codes.dtype

    def codes_of(self, index: int) -> Codes | None:
        """Those of one matrix, a view."""
        outputs = self.tensor.shape[1]
        return None if self.codes is None else self.codes.rows(index * outputs, outputs)

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
