"""Norms and gated activations on the GPU: the specification's numbers, rounded where it rounds."""

from __future__ import annotations

import pytest
import torch
from cuda_device import DEVICE
from cuda_rounding import assert_rounded_alike

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.kernels.rowwise import WIDEST, add_rms_norm, gated, gated_norm, rms_norm
from sglite.runtime.backend.weights import Activation

PLAIN = CPUBackend()
DTYPES = [torch.float32, torch.bfloat16]
ACTIVATIONS = ["silu", "gelu", "gelu_tanh", "swiglu_oai"]
EPS = 1e-6


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("weights", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 64, 100, 1536])
def test_norms(size: int, dtype: torch.dtype, weights: torch.dtype) -> None:
    x, weight = (torch.randn(7, size) * 3).to(dtype), torch.randn(size).to(weights)
    found = rms_norm(x.to(DEVICE), weight.to(DEVICE), EPS)
    assert_rounded_alike(found, PLAIN.rms_norm(x, weight, EPS))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_of_parts_of_wider_rows(dtype: torch.dtype) -> None:
    """Heads of q in rows of q, k and v; every second number; more dimensions; one row; none."""
    wide, weight = torch.randn(5, 3, 6, 24).to(dtype), torch.randn(24).to(dtype)
    on_device, its = wide.to(DEVICE), weight.to(DEVICE)
    for part in (
        lambda x: x[:, 1, 1:4],
        lambda x: x,
        lambda x: x[:, :, 2],
        lambda x: x[2, 1, 3],
        lambda x: x[:0, 0],
        lambda x: x.flatten(1)[:, 3:51:2],
    ):
        assert_rounded_alike(rms_norm(part(on_device), its, EPS), PLAIN.rms_norm(part(wide), weight, EPS))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", DTYPES, ids=str)
@pytest.mark.parametrize("size", [48, 1536])
def test_a_sum_and_its_norm(size: int, dtype: torch.dtype, weights: torch.dtype) -> None:
    x, added = torch.randn(6, size).to(dtype), torch.randn(6, 2 * size).to(dtype)[:, size:]
    weight = torch.randn(size).to(weights)
    total, normed = add_rms_norm(x.to(DEVICE), added.to(DEVICE), weight.to(DEVICE), EPS)
    assert torch.equal(total.cpu(), x + added)
    assert_rounded_alike(normed, PLAIN.add_rms_norm(x, added, weight, EPS)[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_norms(dtype: torch.dtype) -> None:
    x, both, weight = torch.randn(5, 4, 48).to(dtype), torch.randn(5, 2, 4, 48).to(dtype) * 4, torch.randn(48)
    found = gated_norm(x.to(DEVICE), both.to(DEVICE)[:, 1], weight.to(DEVICE), EPS)
    assert_rounded_alike(found, PLAIN.gated_norm(x, both[:, 1], weight, EPS))


def test_a_row_is_the_same_bits_in_every_batch() -> None:
    x, weight = torch.randn(40, 100).to(DEVICE), torch.randn(100).to(DEVICE)
    whole = rms_norm(x, weight, EPS)
    for first, last in ((0, 1), (3, 20), (39, 40)):
        assert torch.equal(rms_norm(x[first:last], weight, EPS), whole[first:last])


def test_norms_of_rows_that_are_too_wide_are_refused() -> None:
    with pytest.raises(BackendError, match=f"at most {WIDEST}"):
        rms_norm(torch.zeros(1, WIDEST + 1, device=DEVICE), torch.zeros(WIDEST + 1, device=DEVICE), EPS)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n", [40, 1100])
def test_activations(n: int, activation: Activation, dtype: torch.dtype) -> None:
    x = torch.cat(((torch.randn(5, n) * 4).clamp(min=-2.5), torch.randn(5, n)), dim=1).to(dtype)
    x[0, :7] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 30.0, 7.0])
    x[1, :4], x[1, n : n + 4] = 1.0, torch.tensor([torch.nan, torch.inf, -torch.inf, -9.0])
    assert_rounded_alike(gated(x.to(DEVICE), activation), PLAIN.gated(x, activation))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_activations_far_below_zero(activation: Activation, dtype: torch.dtype) -> None:
    """Where the specification's way of computing them loses digits."""
    x = torch.cat((torch.linspace(-40.0, -2.5, 500), torch.ones(500))).to(dtype)
    found, expected = gated(x.to(DEVICE), activation).cpu(), PLAIN.gated(x, activation)
    assert ((found - expected).abs() <= 2**-20 + torch.finfo(dtype).eps * expected.abs()).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_parts_of_wider_rows(activation: Activation) -> None:
    wide = torch.randn(4, 3, 90)
    for part in (lambda x: x[:, :2, 10:50], lambda x: x[:, 1], lambda x: x[:0], lambda x: x[1, 2, :20]):
        assert_rounded_alike(gated(part(wide.to(DEVICE)), activation), PLAIN.gated(part(wide), activation))
