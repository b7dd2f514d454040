"""Root mean square normalisation (Zhang and Sennrich, https://arxiv.org/abs/1910.07467), computed by the backend."""

from __future__ import annotations

import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend
from sglite.runtime.model.layers.weights import Conversion, WeightTable


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""

    def __init__(self, weights: WeightTable, name: str, size: int, eps: float) -> None:
        self.weight = weights.tensor(f"{name}.weight", size)
        self.eps = eps

    def __call__(self, x: Tensor, backend: Backend) -> Tensor:
        return backend.rms_norm(x, self.weight, self.eps)

    def of_sum(self, x: Tensor, added: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
        """``x + added``, both [T, size], and its norm."""
        return backend.add_rms_norm(x, added, self.weight, self.eps)


class CentredRMSNorm(RMSNorm):
    """As ``RMSNorm``, for checkpoints that store how far the weight is from 1 (Gemma, Qwen3.5); in float32."""

    def __init__(self, weights: WeightTable, name: str, size: int, eps: float) -> None:
        plus_one = Conversion((size,), lambda stored: stored.float() + 1)
        self.weight = weights.tensor(f"{name}.weight", size, dtype=torch.float32, source=plus_one)
        self.eps = eps


Norm = RMSNorm
