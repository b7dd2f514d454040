"""How tokens find their experts on a GPU, against the specification."""

from __future__ import annotations

import pytest
import torch
from cuda_device import DEVICE
from never_waits import never_waits
from torch import Tensor

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.experts import Routing
from sglite.runtime.backend.kernels.route import route

PLAIN = CPUBackend()
ROUTINGS = {
    "softmax": Routing("softmax", 8),
    "softmax, as they are": Routing("softmax", 3, renormalize=False, scaling=2.0),
    "softmax, one": Routing("softmax", 1),
    "sigmoid, best pairs of groups": Routing("sigmoid", 4, num_groups=4, top_groups=2, group_score="top2", scaling=2.5),
    "softmax, best groups": Routing("softmax", 6, num_groups=8, top_groups=3),
    "more than the groups have": Routing("sigmoid", 9, num_groups=8, top_groups=1),
}


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def on_device(logits: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
    ids, weights = route(logits.to(DEVICE), None if bias is None else bias.to(DEVICE), routing)
    assert ids.dtype == torch.int64 and weights.dtype == torch.float32
    assert ids.shape == weights.shape == (len(logits), routing.top_k)
    return ids.cpu(), weights.cpu()


def check(routing: Routing, experts: int, biased: bool, tokens: int) -> None:
    logits = (torch.randn(tokens, experts + 3) * 3)[:, 1 : experts + 1]
    bias = torch.randn(experts) if biased else None
    ids, weights = on_device(logits, bias, routing)
    if experts // routing.num_groups * routing.top_groups < routing.top_k:  # some of other groups, whichever
        assert all(len(set(row)) == routing.top_k for row in ids.tolist())
        return
    expected, theirs = PLAIN.route(logits, bias, routing)
    places = [each.argsort(1) for each in (ids, expected)]
    assert torch.equal(ids.gather(1, places[0]), expected.gather(1, places[1]))
    torch.testing.assert_close(weights.gather(1, places[0]), theirs.gather(1, places[1]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=ROUTINGS)
@pytest.mark.parametrize(("experts", "biased"), [(16, True), (40, False), (40, True), (512, True)])
def test_tokens_find_their_experts(routing: Routing, experts: int, biased: bool) -> None:
    check(routing, experts, biased, tokens=5)


@pytest.mark.slow
@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=ROUTINGS)
@pytest.mark.parametrize(("experts", "biased"), [(16, False), (128, False), (160, True), (256, True), (1040, False)])
def test_many_tokens_find_their_experts(routing: Routing, experts: int, biased: bool) -> None:
    check(routing, experts, biased, tokens=40)


@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=ROUTINGS)
def test_experts_are_distinct_whatever_the_logits(routing: Routing) -> None:
    logits = torch.randn(6, 48)
    logits[0], logits[1, 3:], logits[2], logits[3, ::2], logits[4] = 0.0, torch.nan, -torch.inf, torch.inf, torch.nan
    ids, _ = on_device(logits, None, routing)
    assert all(len(set(row)) == routing.top_k and 0 <= min(row) <= max(row) < 48 for row in ids.tolist())


def test_of_equal_experts_the_first_are_taken() -> None:
    ids, weights = on_device(torch.zeros(2, 40), None, Routing("sigmoid", 4))
    assert ids.tolist() == [[0, 1, 2, 3]] * 2
    torch.testing.assert_close(weights, torch.full((2, 4), 0.25))


def test_no_tokens() -> None:
    ids, weights = on_device(torch.empty(0, 16), None, Routing("softmax", 2))
    assert ids.shape == weights.shape == (0, 2)


def test_nothing_waits_for_the_device() -> None:
    logits = torch.randn(3, 40).to(DEVICE)
    with never_waits():
        for routing in ROUTINGS.values():
            route(logits, None, routing)
