"""Mixtures of experts on a GPU against the specification, which computes in float32 on the same rounded numbers.

Results are rounded three times: what the experts' first products give, their second, and the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from cuda_device import DEVICE
from never_waits import never_waits
from torch import Tensor

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.experts import ExpertWeights, Matrices
from sglite.runtime.backend.kernels.experts import moe
from sglite.runtime.backend.kernels.grouping import group
from sglite.runtime.backend.weights import Activation

PLAIN = CPUBackend()
DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
EXPERTS = 5
ACTIVATIONS: list[Activation] = ["silu", "gelu_tanh", "swiglu_oai", "gelu"]


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def random_experts(dtype: torch.dtype, hidden: int, inner: int, biases: bool = False) -> ExpertWeights:
    """Of unit gain."""
    gate_up = torch.randn(EXPERTS, 2 * inner, hidden) * hidden**-0.5
    down = torch.randn(EXPERTS, hidden, inner) * inner**-0.5
    several = (Matrices(part.to(dtype)) for part in (gate_up, down))
    shapes = ((EXPERTS, 2 * inner), (EXPERTS, hidden)) if biases else ()
    return ExpertWeights(*several, *(torch.randn(shape).to(dtype) for shape in shapes))


def moved(experts: ExpertWeights, to: torch.device | torch.dtype) -> ExpertWeights:
    """A copy there, or in that type."""
    biases = (None if bias is None else bias.to(to) for bias in (experts.gate_up_bias, experts.down_bias))
    return ExpertWeights(*(Matrices(part.tensor.to(to)) for part in (experts.gate_up, experts.down)), *biases)


def routed(tokens: int, chosen: int, among: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Distinct experts of every token, and their weights."""
    order = torch.rand(tokens, len(among)).argsort(1)[:, :chosen]
    return torch.tensor(among)[order], torch.rand(tokens, chosen)


def on_device(x: Tensor, experts: ExpertWeights, ids: Tensor, weights: Tensor, activation: Activation) -> Tensor:
    placed = moved(experts, DEVICE)
    return moe(x.to(DEVICE), placed, ids.to(DEVICE), weights.to(DEVICE), activation).cpu()


def check(
    dtype: torch.dtype,
    sizes: tuple[int, int],
    case: tuple[int, int, Sequence[int]],
    activation: Activation,
    biases: bool,
    size: float = 1.0,
) -> None:
    """``size``: of the numbers of x."""
    hidden, inner = sizes
    tokens, chosen, among = case
    experts = random_experts(dtype, hidden, inner, biases)
    x = (torch.randn(tokens, hidden + 14) * size).to(dtype)[:, 8 : hidden + 8]
    ids, weights = routed(tokens, chosen, among)
    found = on_device(x, experts, ids, weights, activation)
    assert found.dtype == dtype and found.shape == x.shape
    expected = PLAIN.moe(x.float(), moved(experts, torch.float32), ids, weights, activation)
    error = (found.float() - expected).abs().max().item()
    assert error <= 3 * ROUNDING[dtype] * max(1.0, expected.abs().max().item())


CASES: list[tuple[int, int, Sequence[int]]] = [(1, 3, range(5)), (7, 2, (0, 3)), (40, 1, (4,)), (90, 4, (0, 1, 2, 4))]
"""One token; experts that nobody chooses; one that all do; more tokens than a tile has places."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_experts(dtype: torch.dtype, case: tuple[int, int, Sequence[int]]) -> None:
    check(dtype, (72, 40), case, "silu", biases=case[0] != 40)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(dtype: torch.dtype, activation: Activation) -> None:
    """Of small numbers, and of such as are beyond ``swiglu_oai``'s limits."""
    for size in (1.0, 8.0):
        check(dtype, (33, 7), (6, 2, range(5)), activation, biases=True, size=size)


SIZES = [(96, 80), (64, 24), (33, 130), (300, 64)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("activation", "sizes"), list(zip(ACTIVATIONS, SIZES, strict=True)))
def test_experts_of_many_sizes(dtype: torch.dtype, activation: Activation, sizes: tuple[int, int]) -> None:
    for biases in (False, True):
        for case in (*CASES, (2, 5, range(5)), (160, 1, (1, 3)), (250, 4, (0, 1, 2, 4))):
            check(dtype, sizes, case, activation, biases)


def test_no_tokens() -> None:
    experts = random_experts(torch.float32, 16, 8)
    found = on_device(torch.empty(0, 16), experts, torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2), "silu")
    assert found.shape == (0, 16)


@pytest.mark.parametrize(("tokens", "chosen", "block"), [(1, 3, 16), (2, 3, 16), (50, 2, 16), (300, 8, 32)])
def test_every_pair_lies_once_in_a_tile_of_its_expert(tokens: int, chosen: int, block: int) -> None:
    """In the order of the tokens, experts one after the other, and no more tiles than the sizes say."""
    ids, _ = routed(tokens, chosen, range(0, 11))
    groups = group(ids.to(DEVICE), 13, block)
    pairs = tokens * chosen
    assert groups.tiles == (pairs + min(pairs, 13) * (block - 1)) // block
    experts, flat = groups.experts.cpu(), ids.flatten()
    assert len(experts) == groups.tiles
    if groups.places is None:
        assert tokens == 1 and torch.equal(experts, flat)
        return
    places = groups.places.cpu().view(groups.tiles, block)
    used = experts >= 0
    assert torch.equal(used.sort(descending=True).values, used)
    assert (experts[used].diff() >= 0).all()
    lying = places[used]
    taken = lying[lying < pairs]
    assert torch.equal(taken.long(), flat.argsort(stable=True))
    assert (lying <= pairs).all() and (lying[:, 0] < pairs).all()
    for expert, row in zip(experts[used].tolist(), lying.tolist(), strict=True):
        assert {flat[pair].item() for pair in row if pair < pairs} == {expert}


def test_rubbish_in_a_token_does_not_reach_another() -> None:
    experts = random_experts(torch.float32, 40, 24)
    x, (ids, weights) = torch.randn(12, 40), routed(12, 3, range(EXPERTS))
    clean = on_device(x, experts, ids, weights, "silu")
    x[3], x[7, 5] = torch.nan, torch.inf
    found = on_device(x, experts, ids, weights, "silu")
    others = [i for i in range(12) if i not in (3, 7)]
    assert torch.equal(found[others], clean[others])
    assert found[3].isnan().all() and not found[7].isfinite().any()


def test_nothing_waits_for_the_device() -> None:
    experts = moved(random_experts(torch.float32, 32, 16), DEVICE)
    x, (ids, weights) = torch.randn(5, 32).to(DEVICE), (part.to(DEVICE) for part in routed(5, 2, range(EXPERTS)))
    with never_waits():
        moe(x, experts, ids, weights, "silu")


def test_weights_that_cannot_be_multiplied_are_refused() -> None:
    experts = random_experts(torch.float32, 32, 16)
    ids, weights = routed(2, 2, range(EXPERTS))
    with pytest.raises(BackendError, match=r"moe of torch.bfloat16 with torch.float32 experts"):
        moe(torch.randn(2, 32, dtype=torch.bfloat16), experts, ids, weights, "silu")
    experts.down.arrangement = object()
    with pytest.raises(BackendError, match="packed by another backend"):
        moe(torch.randn(2, 32), experts, ids, weights, "silu")
