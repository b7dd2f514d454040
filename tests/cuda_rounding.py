"""How results of the GPU's kernels are compared with the specification, which rounds at the same places."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_rounded_alike(found: Tensor, expected: Tensor, few: float = 0.01) -> None:
    """16-bit numbers are equal but for a last place or two in ``few`` of them; numbers of float32 are near."""
    found = found.cpu()
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.isinf(), expected.isinf())
    assert torch.equal(found[found.isinf()], expected[expected.isinf()])
    numbers = found.isfinite()
    a, b = found[numbers].double(), expected[numbers].double()
    exact = expected.dtype == torch.float32
    steps, least = (8, 1.0) if exact else (2, 1e-3)
    error, bound = (a - b).abs(), steps * torch.finfo(expected.dtype).eps * b.abs().clamp(min=least)
    assert (error <= bound).all(), (error / bound).max()
    if not exact and len(a):
        assert (a != b).double().mean() <= few
