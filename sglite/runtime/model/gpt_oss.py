"""gpt-oss (https://arxiv.org/abs/2508.10925): every other layer sees a window, each head has a sink, each layer experts
with biases and a clamped activation."""

from __future__ import annotations

import torch
from torch import Tensor

from sglite.runtime.backend.experts import ExpertWeights
from sglite.runtime.model.config import MoEConfig
from sglite.runtime.model.layers.attention import Attention
from sglite.runtime.model.layers.decoder import CausalLM
from sglite.runtime.model.layers.mlp import FeedForward
from sglite.runtime.model.layers.moe import MoE
from sglite.runtime.model.layers.weights import Conversion, WeightTable


class GptOssForCausalLM(CausalLM):
    """See the module."""

    def attention(self, weights: WeightTable, name: str, layer: int) -> Attention:
        """See CausalLM."""
        bias, window = self.config.attention_bias, self.config.window(layer)
        return Attention(
            weights,
            name,
            self.config,
            self.pool_layers[layer],
            qkv_bias=bias,
            out_bias=bias,
            window=window,
            sinks=True,
        )

    def mlp(self, weights: WeightTable, name: str, layer: int) -> FeedForward:
        """See CausalLM."""
        return MoE(weights, name, self.config, router="router", bind=bind_interleaved)


def bind_interleaved(weights: WeightTable, name: str, hidden: int, moe: MoEConfig) -> ExpertWeights:
    """All experts of a layer, from matrices to be multiplied from the right whose columns are gate, up, gate, up ...

    ``experts.gate_up_proj`` [E, hidden, 2 * size] and ``_bias`` [E, 2 * size]; ``experts.down_proj``
    [E, size, hidden] and ``_bias`` [E, hidden].
    """
    count, size = moe.num_experts, moe.intermediate_size
    gate_up, down = weights.empty(count, 2 * size, hidden), weights.empty(count, hidden, size)
    weights.bind(
        f"{name}.gate_up_proj",
        gate_up,
        Conversion((count, hidden, 2 * size), lambda stored: gates_first(stored.transpose(1, 2))),
    )
    weights.bind(f"{name}.down_proj", down, Conversion((count, size, hidden), lambda stored: stored.transpose(1, 2)))
    biases = Conversion((count, 2 * size), gates_first)
    return ExpertWeights(
        weights.matrices(gate_up),
        weights.matrices(down),
        weights.tensor(f"{name}.gate_up_proj_bias", count, 2 * size, source=biases),
        weights.tensor(f"{name}.down_proj_bias", count, hidden),
    )


def gates_first(interleaved: Tensor) -> Tensor:
    """[E, 2 n, ...] gate, up, gate, up ... to gates, then ups."""
    return torch.cat((interleaved[:, ::2], interleaved[:, 1::2]), dim=1)
