"""The CPU's way with bitmasks equals the plain one, bit for bit, whatever the logits are."""

from __future__ import annotations

import pytest
import torch

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.mask import apply_bitmask

SPECIAL = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-45]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("vocab", "words"), [(1, 1), (70, 3), (64, 2), (100, 2), (40, 3), (4001, 126)])
def test_the_bits_of_the_plain_way(dtype: torch.dtype, vocab: int, words: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    backend = CPUBackend()
    for rows in (1, 5):
        logits = torch.randn(rows, vocab, generator=generator).to(dtype)
        special = torch.tensor(SPECIAL, dtype=dtype)[torch.randint(6, (rows, vocab), generator=generator)]
        logits = torch.where(torch.rand(rows, vocab, generator=generator) < 0.3, special, logits)
        mask = torch.randint(-(2**31), 2**31, (rows, words), generator=generator).to(torch.int32)
        mask[-1] = -1
        got, want = logits.clone(), logits.clone()
        backend.apply_mask(got, mask)
        apply_bitmask(want, mask)
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))
        known = min(vocab, words * 32)
        assert torch.equal(got[-1, :known].view(torch.uint8), logits[-1, :known].view(torch.uint8)), "no constraint"
        alone = logits[:1].clone()
        backend.apply_mask(alone, mask[:1])
        assert torch.equal(alone.view(torch.uint8), got[:1].view(torch.uint8)), "a row does not depend on its batch"


def test_rows_that_are_a_view_of_more_are_written_in_place() -> None:
    logits = torch.ones(4, 64)
    CPUBackend().apply_mask(logits[::2, :32], torch.tensor([[5], [0]], dtype=torch.int32))
    assert logits[0, :4].tolist() == [1.0, float("-inf"), 1.0, float("-inf")]
    assert bool((logits[2, :32] == float("-inf")).all()) and bool((logits[[1, 3]] == 1).all())
    assert bool((logits[:, 32:] == 1).all())
