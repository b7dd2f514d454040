"""Bitmasks on the GPU, against those of the specification."""

from __future__ import annotations

import pytest
import torch
from cuda_device import DEVICE

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.kernels.masks import TILE, apply_mask

PLAIN = CPUBackend()


def words(rows: int, count: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, (rows, count), dtype=torch.int64).to(torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("width", "count"), [(5, 1), (32, 1), (TILE + 70, 131), (TILE + 70, 128), (2 * TILE, 300)])
def test_masks(width: int, count: int, dtype: torch.dtype) -> None:
    """Words that end before the vocabulary, with it, and after it; rows that are free, and rows that have nothing."""
    torch.manual_seed(0)
    whole, bitmask = torch.randn(5, width + 1).to(dtype), words(5, count)
    bitmask[1], bitmask[2] = -1, 0
    whole[3, ::2] = torch.nan
    logits = whole[:, :width]
    found = whole.clone().to(DEVICE)
    apply_mask(found[:, :width], bitmask.to(DEVICE))
    PLAIN.apply_mask(logits, bitmask)
    assert torch.equal(found.cpu().nan_to_num(nan=7e5), whole.nan_to_num(nan=7e5))


def test_masks_that_do_not_fit_are_refused() -> None:
    logits = torch.zeros(2, 40, device=DEVICE)
    for mask in (words(1, 2), words(2, 2).long(), words(2, 2).flatten()):
        with pytest.raises(BackendError, match="for 2 rows of logits"):
            apply_mask(logits, mask.to(DEVICE))
    with pytest.raises(BackendError, match="rows without gaps"):
        apply_mask(torch.zeros(40, 2, device=DEVICE).T, words(2, 2).to(DEVICE))
    apply_mask(torch.zeros(0, 40, device=DEVICE), words(0, 2).to(DEVICE))
