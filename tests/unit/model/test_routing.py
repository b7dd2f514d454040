"""How experts are chosen, against the words of the papers written out token by token."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.config import ModelConfig, MoEConfig
from sglite.runtime.model.layers.moe import Router
from sglite.runtime.model.layers.weights import WeightTable

HIDDEN, EXPERTS, TOKENS = 16, 12, 40
PLAIN = MoEConfig(num_experts=EXPERTS, top_k=3, intermediate_size=8, layers=(True,), renormalize=False)
V2 = replace(PLAIN, num_groups=4, top_groups=2, group_score="max", scaling=16.0)
V3 = replace(V2, scoring="sigmoid", renormalize=True, choice_bias=True, group_score="top2", scaling=2.5)
KINDS = {
    "greedy": PLAIN,
    "greedy, renormalised": replace(PLAIN, renormalize=True),
    "V2": V2,
    "V3": V3,
    "V3, one group": replace(V3, num_groups=1, top_groups=1),
    "V3, all groups": replace(V3, top_groups=4),
    "V3, not renormalised": replace(V3, renormalize=False),
    "V3, as many as there are": replace(V3, top_groups=1),
}


def make_router(moe: MoEConfig, seed: int) -> Router:
    config = ModelConfig(
        architecture="",
        vocab_size=1,
        hidden_size=HIDDEN,
        intermediate_size=1,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        max_context=1,
        moe=moe,
    )
    router = Router(WeightTable(torch.float32, torch.device("cpu")), "gate", config, moe)
    generator = torch.Generator().manual_seed(seed)
    router.weight.tensor.normal_(generator=generator)
    if router.bias is not None:
        router.bias.normal_(0.0, 0.5, generator=generator)
    return router


def routed(moe: MoEConfig, logits: Tensor, bias: list[float]) -> dict[int, float]:
    """Experts of one token and their weights."""
    scores = (logits.softmax(0) if moe.scoring == "softmax" else logits.sigmoid()).tolist()
    choice = [score + extra for score, extra in zip(scores, bias, strict=True)]
    size = EXPERTS // moe.num_groups
    groups = [sorted(choice[g * size : (g + 1) * size], reverse=True) for g in range(moe.num_groups)]
    worth = [group[0] if moe.group_score == "max" else sum(group[:2]) for group in groups]
    best = sorted(range(moe.num_groups), key=lambda g: -worth[g])[: moe.top_groups]
    allowed = [expert for expert in range(EXPERTS) if expert // size in best]
    chosen = sorted(allowed, key=lambda expert: -choice[expert])[: moe.top_k]
    whole = sum(scores[expert] for expert in chosen) if moe.renormalize else 1.0
    return {expert: scores[expert] / whole * moe.scaling for expert in chosen}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("moe", KINDS.values(), ids=KINDS)
def test_experts_and_weights_are_those_of_the_papers(moe: MoEConfig, seed: int) -> None:
    router = make_router(moe, seed)
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(seed))
    ids, weights = router(x, CPUBackend())
    bias = [0.0] * EXPERTS if router.bias is None else router.bias.tolist()
    assert weights.dtype == torch.float32
    for token in range(TOKENS):
        expected = routed(moe, router.weight.tensor @ x[token], bias)
        assert dict(zip(ids[token].tolist(), weights[token].tolist(), strict=True)) == pytest.approx(expected, abs=1e-5)


def test_the_bias_takes_part_in_the_choice_alone() -> None:
    moe = replace(V3, num_groups=1, top_groups=1, top_k=1, renormalize=False, scaling=1.0)
    router = make_router(moe, 0)
    assert router.bias is not None
    router.bias.zero_()
    router.bias[7] = 9.0
    x = torch.randn(TOKENS, HIDDEN)
    ids, weights = router(x, CPUBackend())
    assert set(ids.flatten().tolist()) == {7}
    torch.testing.assert_close(weights[:, 0], (x @ router.weight.tensor[7]).sigmoid())


def test_a_token_finds_its_experts_whatever_the_others_are() -> None:
    router = make_router(V3, 1)
    x = torch.randn(TOKENS, HIDDEN)
    together = router(x, CPUBackend())
    for token in random.Random(0).sample(range(TOKENS), 5):
        ids, weights = router(x[token : token + 1], CPUBackend())
        order, sought = together[0][token].argsort(), ids[0].argsort()
        assert torch.equal(together[0][token][order], ids[0][sought])
        torch.testing.assert_close(together[1][token][order], weights[0][sought])
