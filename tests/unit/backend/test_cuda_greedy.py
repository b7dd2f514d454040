"""Greedy choice on the GPU: the first id of the largest logit."""

from __future__ import annotations

import pytest
import torch
from cuda_device import DEVICE

from sglite.runtime.backend.kernels.greedy import TILE, greedy


def first_of_largest(row: list[float]) -> int:
    return max(range(len(row)), key=lambda i: (row[i], -i))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [1, 33, TILE, 2 * TILE + 5, 5 * TILE])
def test_the_first_of_the_largest(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(6, width + 3).to(dtype) * 2)[:, :width]  # of 16 bits: many are equal
    logits[1] = -torch.inf
    logits[2] = -logits[2].abs()
    logits[3, width // 2 :] = 0.0
    logits[3, : width // 2] = -0.0
    logits[4, -1] = torch.inf
    ids, values = greedy(logits.to(DEVICE))
    assert ids.tolist() == [first_of_largest(row) for row in logits.tolist()]
    assert values.dtype == torch.float32 and torch.equal(values.cpu(), logits.float().amax(1))


def test_what_is_not_a_number_is_seen() -> None:
    logits = torch.randn(3, TILE + 9)
    logits[0, TILE + 3], logits[1, 7] = torch.nan, -torch.nan
    logits[1, 20] = torch.inf
    ids, values = greedy(logits.to(DEVICE))
    assert values.isnan().tolist() == [True, True, False]
    assert ids[:2].tolist() == [TILE + 3, 7]


def test_rows_with_gaps() -> None:
    logits = torch.randn(50, 4)
    assert torch.equal(greedy(logits.to(DEVICE).T)[0].cpu(), logits.argmax(0))


def test_no_rows() -> None:
    ids, values = greedy(torch.zeros(0, 50, device=DEVICE))
    assert ids.shape == values.shape == (0,)
