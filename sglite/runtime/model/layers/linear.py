"""Linear layers, alone or several fused into one product over the same input."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sglite.runtime.backend.base import Backend
from sglite.runtime.model.layers.weights import WeightTable


class Linear:
    """x W^T + b, computed by the backend. ``outputs`` maps checkpoint prefixes to their output sizes: several are
    fused, and the result holds theirs side by side in that order."""

    def __init__(self, weights: WeightTable, outputs: Mapping[str, int], inputs: int, *, bias: bool = False) -> None:
        self.weight = weights.matrix({f"{name}.weight": size for name, size in outputs.items()}, inputs)
        self.bias = weights.stacked({f"{name}.bias": size for name, size in outputs.items()}) if bias else None

    def __call__(self, x: Tensor, backend: Backend) -> Tensor:
        return backend.matmul(x, self.weight, self.bias)
