"""Mixtures of experts: a router picks a few experts for every token, the backend runs them grouped by expert.

    scores = softmax or sigmoid of (x W_router)          [T, E] float32
    choice = the top_k best, of the best groups only where there are groups; a bias may take part in the choice
    out    = sum of weight_e * expert_e(x)  (+ shared expert)

Routing of one token does not depend on the others. ``counts`` says how many tokens each expert has had.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend
from sglite.runtime.backend.experts import ExpertWeights, Matrices, Routing
from sglite.runtime.model.config import ModelConfig, MoEConfig
from sglite.runtime.model.layers.linear import Linear
from sglite.runtime.model.layers.mlp import GatedMLP
from sglite.runtime.model.layers.weights import Conversion, WeightTable


class Router:
    """Chooses experts. ``name``: of its weight, without ``.weight``."""

    def __init__(self, weights: WeightTable, name: str, config: ModelConfig, moe: MoEConfig) -> None:
        self.routing = Routing(
            scoring=moe.scoring,
            top_k=moe.top_k,
            num_groups=moe.num_groups,
            top_groups=moe.top_groups,
            group_score=moe.group_score,
            renormalize=moe.renormalize,
            scaling=moe.scaling,
        )
        shape = (moe.num_experts, config.hidden_size)
        self.weight = weights.converted_matrix(f"{name}.weight", *shape, dtype=torch.float32)
        bias = f"{name}.e_score_correction_bias"
        self.bias = weights.tensor(bias, moe.num_experts, dtype=torch.float32) if moe.choice_bias else None
        self.logit_bias = weights.tensor(f"{name}.bias", moe.num_experts) if moe.router_bias else None

    def __call__(self, x: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
        """x [T, hidden] -> ids [T, k] int64 and their weights [T, k] float32."""
        bias = None if self.logit_bias is None else self.logit_bias.float()
        logits = backend.matmul(x.float(), self.weight, bias)
        return backend.route(logits, self.bias, self.routing)


class MoE:
    """Routed experts, and shared ones where the model has them.

    ``name``: of the layer's part, such as ``model.layers.3.mlp``; ``shared``: of its shared experts. ``bind``: makes
    and binds the tensors of the experts, given the table, their name, the hidden size and their sizes.
    """

    def __init__(
        self,
        weights: WeightTable,
        name: str,
        config: ModelConfig,
        *,
        router: str = "gate",
        shared: str = "shared_expert",
        bind: Callable[[WeightTable, str, int, MoEConfig], ExpertWeights] | None = None,
    ) -> None:
        assert config.moe is not None
        moe = config.moe
        self.activation = config.activation
        self.router = Router(weights, f"{name}.{router}", config, moe)
        self.experts = (bind or bind_experts)(weights, f"{name}.experts", config.hidden_size, moe)
        self.shared = GatedMLP(weights, f"{name}.{shared}", config, size=moe.shared_size) if moe.shared_size else None
        gate = f"{name}.{shared}_gate"
        self.shared_gate = Linear(weights, {gate: 1}, config.hidden_size) if moe.shared_gate else None
        self.counts = weights.expert_counter(moe.num_experts)

    def __call__(self, x: Tensor, backend: Backend) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        ids, weights = self.router(x, backend)
        self.counts.scatter_add_(0, ids.flatten(), torch.ones_like(ids).flatten())  # bincount would wait for the device
        out = backend.moe(x, self.experts, ids, weights, self.activation)
        if self.shared is None:
            return out
        shared = self.shared(x, backend)
        if self.shared_gate is not None:
            shared = shared * torch.sigmoid(self.shared_gate(x, backend))
        return out + shared


def bind_experts(
    weights: WeightTable,
    name: str,
    hidden: int,
    moe: MoEConfig,
    *,
    parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> ExpertWeights:
    """All experts of a layer in two tensors, filled from whichever of the layouts in use the checkpoint has:

    ``experts.N.{gate,up,down}_proj.weight`` one by one; ``experts.gate_up_proj`` and ``experts.down_proj`` for all,
    each expert's matrix as a layer has it or transposed. Which of the two is told by the shape. ``parts``: what the
    single ones are called.
    """
    gate, up, out = parts
    count, size = moe.num_experts, moe.intermediate_size
    if weights.found(f"{name}.gate_up_proj") is None:
        single = [f"{name}.{expert}." for expert in range(count)]
        ups = [{f"{each}{gate}.weight": size, f"{each}{up}.weight": size} for each in single]
        downs = [{f"{each}{out}.weight": hidden} for each in single]
        return ExpertWeights(weights.experts(ups, hidden), weights.experts(downs, size))
    return ExpertWeights(
        _fused(weights, f"{name}.gate_up_proj", (count, 2 * size, hidden)),
        _fused(weights, f"{name}.down_proj", (count, hidden, size)),
    )


def _fused(weights: WeightTable, name: str, shape: tuple[int, int, int]) -> Matrices:
    return weights.fused_experts(name, *shape, _transposed(weights.found(name), shape))


def _transposed(found: tuple[int, ...] | None, ours: tuple[int, int, int]) -> Conversion | None:
    """``None`` where the checkpoint's matrices are as ours; a square one is taken for ours."""
    count, out, inner = ours
    if found != (count, inner, out) or inner == out:
        return None
    return Conversion((count, inner, out), lambda stored: stored.transpose(1, 2))
