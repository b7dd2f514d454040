"""What backends are told about a model's weights: matrices they may arrange, and layers they may run in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sglite.runtime.quant.codes import Codes

Activation = Literal["silu", "gelu", "gelu_tanh", "swiglu_oai"]


@dataclass
class Matrix:
    """A weight that only ``matmul``, ``logits`` and ``embedding`` read, so that a backend may arrange it."""

    tensor: Tensor
    """[out, in], or the values of its codes; once it is packed, in an order that the backend alone knows."""
    arrangement: object | None = None
    """What the backend that packed it knows about it; ``None``: it is not packed."""
    codes: Codes | None = None
    """What its numbers are coded in, scales and zeros packed with the values; ``None``: it has them as they are."""

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]"""
        outputs, inputs = self.tensor.shape if self.codes is None else self.codes.shape
        return outputs, inputs

    @property
    def dtype(self) -> torch.dtype:
        """Of its rows, and of what it is multiplied with."""
        return self.tensor.dtype if self.codes is None else self.codes.dtype

    @property
    def packed(self) -> bool:
        """Whether ``tensor`` is arranged."""
        return self.arrangement is not None


@dataclass(frozen=True)
class QKVNorms:
    """Norms of every head of q and k over its dimensions."""

    q: Tensor
    """[head_dim]"""
    k: Tensor
    """[head_dim]"""
    eps: float


@dataclass(frozen=True)
class DenseLayer:
    """A layer x + attention(norm(x)), then x + down(gated(gate_up(norm(x)))), all norms ``rms_norm``."""

    attention_norm: tuple[Tensor, float]
    """Weight [hidden] and eps."""
    qkv: tuple[Matrix, Tensor | None]
    """Weight and bias."""
    heads: int
    norms: QKVNorms | None
    layer: int
    """In the pool."""
    scale: float
    window: int | None
    sinks: Tensor | None
    out: tuple[Matrix, Tensor | None]
    mlp_norm: tuple[Tensor, float]
    gate_up: tuple[Matrix, Tensor | None]
    activation: Activation
    down: tuple[Matrix, Tensor | None]


@dataclass
class DenseStack:
    """Layers that follow each other."""

    layers: tuple[DenseLayer, ...]
    is_last: bool = False
    """No layer follows them: of the result only what ``BatchLayout.wanted`` names matters."""
    arrangement: object | None = None
    """What a backend keeps about them."""
