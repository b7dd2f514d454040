"""Root mean square normalisation (Zhang and Sennrich, https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sglite.runtime.model.layers.weights import WeightTable


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""

    def __init__(self, weights: WeightTable, name: str, size: int, eps: float) -> None:
        self.weight = weights.tensor(f"{name}.weight", size)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
