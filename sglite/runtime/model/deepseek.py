"""The DeepSeek family: experts beside shared ones, and from V2 on latent attention. DeepSeekMoE
(https://arxiv.org/abs/2401.06066), V2 (https://arxiv.org/abs/2405.04434), V3 (https://arxiv.org/abs/2412.19437),
V3.2 (https://arxiv.org/abs/2512.02556)."""

from __future__ import annotations

import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend, ForwardContext
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.layers.cache_layout import indexer_layers
from sglite.runtime.model.layers.decoder import CausalLM
from sglite.runtime.model.layers.indexer import Indexer
from sglite.runtime.model.layers.mla import LatentAttention
from sglite.runtime.model.layers.mlp import FeedForward, GatedMLP
from sglite.runtime.model.layers.moe import MoE
from sglite.runtime.model.layers.mtp import DraftLayer
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.model.llama import LlamaForCausalLM
from sglite.runtime.model.names import NameTable


class DeepseekForCausalLM(LlamaForCausalLM):
    """DeepSeekMoE: experts beside shared ones in a Llama."""

    def mlp(self, weights: WeightTable, name: str, layer: int) -> FeedForward:
        """See CausalLM."""
        return feed_forward(weights, name, self.config, layer)


class DeepseekV2ForCausalLM(CausalLM):
    """Latent attention."""

    def attention(self, weights: WeightTable, name: str, layer: int) -> LatentAttention:
        """See CausalLM."""
        return LatentAttention(weights, name, self.config, self.pool_layers[layer])

    def mlp(self, weights: WeightTable, name: str, layer: int) -> FeedForward:
        """See CausalLM."""
        return feed_forward(weights, name, self.config, layer)


class DeepseekV3ForCausalLM(DeepseekV2ForCausalLM):
    """Built as V2 is, how experts are chosen is in its config; layers behind the last one can draft."""

    def __init__(self, config: ModelConfig, weights: WeightTable, backend: Backend) -> None:
        super().__init__(config, weights, backend)
        self.draft_layers = [DraftLayer(weights, self, layer) for layer in _draft_numbers(config) if config.drafts]

    @classmethod
    def name_table(cls, config: ModelConfig) -> NameTable:
        """See CausalLM: drafting layers stay in the file unless they are asked for."""
        unused = () if config.drafts else tuple(f"model.layers.{layer}.*" for layer in _draft_numbers(config))
        return NameTable(unused=unused)

    @torch.inference_mode()
    def draft(
        self, input_ids: Tensor, hidden: Tensor, positions: Tensor, context: ForwardContext, depth: int = 0
    ) -> Tensor:
        """Hidden states [T, hidden], whose ``logits`` score the tokens after ``input_ids`` [T], by layer ``depth``.

        ``hidden`` [T, hidden]: what ``forward`` gave at the tokens before those, or ``draft`` of the layer before.
        Stores what the layer keeps in the slots of ``context``. Only differences between ``positions`` [T] matter.
        """
        return self.draft_layers[depth](self.embed(input_ids), hidden, self.angles(positions), context)


class DeepseekV32ForCausalLM(DeepseekV3ForCausalLM):
    """Attention looks at the positions that each layer's indexer chooses."""

    def attention(self, weights: WeightTable, name: str, layer: int) -> LatentAttention:
        """See CausalLM."""
        indexer = Indexer(weights, f"{name}.indexer", self.config, indexer_layers(self.config)[layer])
        return LatentAttention(weights, name, self.config, self.pool_layers[layer], indexer)


def feed_forward(weights: WeightTable, name: str, config: ModelConfig, layer: int) -> FeedForward:
    """Experts and shared ones, or a dense part in layers without."""
    assert config.moe is not None
    if config.moe.layers[layer]:
        return MoE(weights, name, config, shared="shared_experts")
    return GatedMLP(weights, name, config)


def _draft_numbers(config: ModelConfig) -> range:
    """Numbers of the drafting layers, counted on from the model's."""
    return range(config.num_layers, config.num_layers + config.draft_layers)
