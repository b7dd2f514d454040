"""The decoder that all families share: embedding, layers, final norm, head.

A family says how its layers are built; the flow of a step is the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend, ForwardContext
from sglite.runtime.backend.weights import DenseLayer, DenseStack, Matrix
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.layers.attention import Attention
from sglite.runtime.model.layers.cache_layout import cache_groups, pool_layers
from sglite.runtime.model.layers.codings import Role
from sglite.runtime.model.layers.mlp import FeedForward, GatedMLP
from sglite.runtime.model.layers.moe import MoE
from sglite.runtime.model.layers.norm import Norm, RMSNorm
from sglite.runtime.model.layers.rotary import Rotary, RotaryAngles
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.model.names import NameTable
from sglite.runtime.protocol import GroupSpec


class Mixer(Protocol):
    """What lets a layer's positions see each other."""

    def __call__(self, x: Tensor, angles: RotaryAngles, context: ForwardContext) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        ...


class Layer(Protocol):
    """One layer of the decoder."""

    def __call__(self, x: Tensor, angles: Sequence[RotaryAngles], context: ForwardContext) -> Tensor:
        """x [T, hidden] -> [T, hidden]; ``angles`` of each of the model's rotary embeddings."""
        ...


class DecoderLayer:
    """x + mixer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, attention_norm: Norm, attention: Mixer, mlp_norm: Norm, mlp: FeedForward) -> None:
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def __call__(self, x: Tensor, angles: Sequence[RotaryAngles], context: ForwardContext) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        backend = context.backend
        attended = self.attention(self.attention_norm(x, backend), angles[0], context)
        x, normed = self.mlp_norm.of_sum(x, attended, backend)
        return x + self.mlp(normed, backend)


class DenseLayers:
    """Layers that follow each other, of which the backend knows all parts: one call for all of them."""

    def __init__(self, layers: Sequence[DenseLayer], is_last: bool) -> None:
        self.stack = DenseStack(tuple(layers), is_last)

    def __call__(self, x: Tensor, angles: Sequence[RotaryAngles], context: ForwardContext) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        cos, sin = angles[0]
        return context.backend.dense_layers(x, self.stack, cos, sin, context.pool, context.meta, context.begun)


def _dense(layer: Layer) -> DenseLayer | None:
    """What the backend has to know of a layer to compute it; ``None``: the layer has other parts than it knows."""
    if type(layer) is not DecoderLayer:
        return None
    attention, mlp = layer.attention, layer.mlp
    if type(attention) is not Attention or type(mlp) is not GatedMLP:
        return None
    return DenseLayer(
        attention_norm=(layer.attention_norm.weight, layer.attention_norm.eps),
        qkv=(attention.qkv.weight, attention.qkv.bias),
        heads=attention.heads[0],
        norms=attention.norms,
        layer=attention.layer,
        scale=attention.scale,
        window=attention.window,
        sinks=attention.sinks,
        out=(attention.out.weight, attention.out.bias),
        mlp_norm=(layer.mlp_norm.weight, layer.mlp_norm.eps),
        gate_up=(mlp.gate_up.weight, mlp.gate_up.bias),
        activation=mlp.activation,
        down=(mlp.down.weight, mlp.down.bias),
    )


def _grouped(layers: Sequence[Layer]) -> list[Layer]:
    """The layers, neighbours in one call where the backend can."""
    grouped: list[Layer] = []
    for dense, some in groupby(layers, key=lambda layer: _dense(layer) is not None):
        members = list(some)
        described = [found for layer in members if (found := _dense(layer)) is not None]
        grouped.extend([DenseLayers(described, members[-1] is layers[-1])] if dense else members)
    return grouped


class CausalLM(ABC):
    """A decoder-only language model over flat token batches. Weights come from ``weights``, filled by the loader.

    A family says how ``attention`` is built and overrides what else differs: ``mlp``, ``layer``, ``norm_of`` ...
    """

    names: ClassVar[NameTable] = NameTable()
    """How the family's checkpoints name what is called otherwise here."""

    def __init__(self, config: ModelConfig, weights: WeightTable, backend: Backend) -> None:
        self.config = config
        self.backend = backend
        self.dtype = weights.dtype
        self.pool_layers = pool_layers(config.cached_kinds)
        role: Role = "head" if config.has_head and config.tie_word_embeddings else "embedding"
        self.embedding = weights.matrix({"model.embed_tokens.weight": config.vocab_size}, config.hidden_size, role=role)
        self.layers = [self.layer(weights, f"model.layers.{i}", i) for i in range(config.num_layers)]
        self._steps = _grouped(self.layers)
        self.norm = self.norm_of(weights, "model.norm")
        self.head: Matrix | None = None
        if config.has_head and config.tie_word_embeddings:
            weights.tie("lm_head.weight", to="model.embed_tokens.weight")
            self.head = self.embedding
        elif config.has_head:
            self.head = weights.matrix({"lm_head.weight": config.vocab_size}, config.hidden_size, role="head")
        self.rotary = self.rotaries(weights.device)

    @classmethod
    def name_table(cls, config: ModelConfig) -> NameTable:
        """``names``, and what depends on the config."""
        return cls.names

    @abstractmethod
    def attention(self, weights: WeightTable, name: str, layer: int) -> Mixer:
        """The attention of a layer, its weights named from ``name``; ``layer``: its number in the model."""

    def mlp(self, weights: WeightTable, name: str, layer: int) -> FeedForward:
        """The feed-forward part of a layer, its weights named from ``name``; experts where the config has some."""
        moe = self.config.moe
        return (MoE if moe is not None and moe.layers[layer] else GatedMLP)(weights, name, self.config)

    def layer(self, weights: WeightTable, name: str, layer: int) -> Layer:
        """A layer, its weights named from ``name``."""
        return DecoderLayer(
            self.norm_of(weights, f"{name}.input_layernorm"),
            self.attention(weights, f"{name}.self_attn", layer),
            self.norm_of(weights, f"{name}.post_attention_layernorm"),
            self.mlp(weights, f"{name}.mlp", layer),
        )

    def norm_of(self, weights: WeightTable, name: str) -> Norm:
        """A norm over hidden states."""
        return RMSNorm(weights, name, self.config.hidden_size, self.config.rms_norm_eps)

    def rotaries(self, device: torch.device) -> list[Rotary]:
        """The model's rotary embeddings; layers of most families use the first."""
        return [Rotary(self.config.rope, self.config.rotary_dim, device)]

    def embed(self, input_ids: Tensor) -> Tensor:
        """[T] ids to the first layer's input, [T, hidden]."""
        return self.backend.embedding(input_ids, self.embedding)

    def cache_groups(self) -> list[GroupSpec]:
        """What the layers keep per position and per sequence."""
        return cache_groups(self.config, self.dtype)

    @torch.inference_mode()
    def angles(self, positions: Tensor) -> list[RotaryAngles]:
        """What ``forward`` needs of ``positions`` [T], by rotary embedding."""
        return [rotary.angles(positions, self.dtype) for rotary in self.rotary]

    @torch.inference_mode()
    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        context: ForwardContext,
        angles: Sequence[RotaryAngles] | None = None,
    ) -> Tensor:
        """Hidden states [T, hidden] after the final norm, of ``input_ids`` [T] at ``positions`` [T].

        ``angles``: of the positions, where they are known already. Stores what the layers keep of the batch in
        ``context.pool`` as a side effect.
        """
        x = self.embed(input_ids)
        angles = self.angles(positions) if angles is None else angles
        if context.begun is not None and type(self._steps[0]) is not DenseLayers:
            context.begun()
        for step in self._steps:
            x = step(x, angles, context)
        return self.norm(x, self.backend)

    def pooled(self, hidden: Tensor) -> Tensor:
        """What stands for texts, [n, size], of their last hidden states [n, hidden]: those, or a head's scores."""
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [n, vocab] float32, of hidden states [n, hidden]. RuntimeError without a head."""
        if self.head is None:
            raise RuntimeError("the checkpoint has no output head (lm_head)")
        return self.backend.logits(hidden, self.head)

    @torch.inference_mode()
    def greedy(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The most likely next tokens [n] of hidden states [n, hidden], and their logits; see ``Backend.greedy``."""
        if self.head is None:
            raise RuntimeError("the checkpoint has no output head (lm_head)")
        return self.backend.greedy(hidden, self.head)
