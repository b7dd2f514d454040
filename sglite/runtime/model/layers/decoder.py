"""The decoder that dense families share: embedding, pre-norm layers, final norm, head.

A family says how its attention and feed-forward layers are built; the flow of a step is the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from sglite.runtime.backend.base import Backend, ForwardContext
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.layers.attention import Attention
from sglite.runtime.model.layers.mlp import GatedMLP
from sglite.runtime.model.layers.norm import RMSNorm
from sglite.runtime.model.layers.rotary import Rotary, RotaryAngles
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.protocol import GroupSpec


class DecoderLayer:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, weights: WeightTable, name: str, config: ModelConfig, attention: Attention, mlp: GatedMLP
    ) -> None:
        size, eps = config.hidden_size, config.rms_norm_eps
        self.attention_norm = RMSNorm(weights, f"{name}.input_layernorm", size, eps)
        self.attention = attention
        self.mlp_norm = RMSNorm(weights, f"{name}.post_attention_layernorm", size, eps)
        self.mlp = mlp

    def __call__(self, x: Tensor, angles: RotaryAngles, context: ForwardContext) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        x = x + self.attention(self.attention_norm(x), angles, context)
        return x + self.mlp(self.mlp_norm(x), context.backend)


class CausalLM(ABC):
    """A decoder-only language model over flat token batches. Weights come from ``weights``, filled by the loader."""

    def __init__(self, config: ModelConfig, weights: WeightTable, backend: Backend) -> None:
        self.config = config
        self.backend = backend
        self.dtype = weights.dtype
        self.embedding = weights.tensor("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        self.layers = [self._layer(weights, i) for i in range(config.num_layers)]
        self.norm = RMSNorm(weights, "model.norm", config.hidden_size, config.rms_norm_eps)
        self.head: Tensor | None = None
        if config.has_head and config.tie_word_embeddings:
            self.head = weights.tie("lm_head.weight", to="model.embed_tokens.weight")
        elif config.has_head:
            self.head = weights.tensor("lm_head.weight", config.vocab_size, config.hidden_size)
        self.rotary = Rotary(config.rope, config.head_dim, weights.device)

    @abstractmethod
    def attention(self, weights: WeightTable, name: str, layer: int) -> Attention:
        """The attention of a layer, its weights named from ``name``."""

    def mlp(self, weights: WeightTable, name: str, layer: int) -> GatedMLP:
        """The feed-forward part of a layer, its weights named from ``name``."""
        return GatedMLP(weights, name, self.config)

    def cache_groups(self) -> list[GroupSpec]:
        """What the layers keep per position: one group of keys and values."""
        config = self.config
        per_layer = 2 * config.num_kv_heads * config.head_dim * self.dtype.itemsize
        return [
            GroupSpec(
                name="attention",
                num_layers=config.num_layers,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                v_head_dim=config.head_dim,
                dtype=str(self.dtype).removeprefix("torch."),
                bytes_per_token=config.num_layers * per_layer,
            )
        ]

    @torch.inference_mode()
    def forward(self, input_ids: Tensor, positions: Tensor, context: ForwardContext) -> Tensor:
        """Hidden states [T, hidden] after the final norm, of ``input_ids`` [T] at ``positions`` [T].

        Stores keys and values of the batch in ``context.pool`` as a side effect.
        """
        x = F.embedding(input_ids, self.embedding)
        angles = self.rotary.angles(positions, self.dtype)
        for layer in self.layers:
            x = layer(x, angles, context)
        return self.norm(x)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [n, vocab] float32, of hidden states [n, hidden]. RuntimeError without a head."""
        if self.head is None:
            raise RuntimeError("the checkpoint has no output head (lm_head)")
        return self.backend.matmul(hidden, self.head).float()

    def _layer(self, weights: WeightTable, index: int) -> DecoderLayer:
        name = f"model.layers.{index}"
        attention = self.attention(weights, f"{name}.self_attn", index)
        return DecoderLayer(weights, name, self.config, attention, self.mlp(weights, f"{name}.mlp", index))
