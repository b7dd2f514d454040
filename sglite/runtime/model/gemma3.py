"""Gemma 3 (https://arxiv.org/abs/2503.19786), text: four norms a layer, normalised heads of q and k, scaled embeddings,
sliding layers that turn positions by a base of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sglite.runtime.backend.base import ForwardContext
from sglite.runtime.model.layers.attention import Attention
from sglite.runtime.model.layers.decoder import CausalLM, Layer, Mixer
from sglite.runtime.model.layers.mlp import FeedForward
from sglite.runtime.model.layers.norm import CentredRMSNorm, Norm
from sglite.runtime.model.layers.rotary import Rotary, RotaryAngles
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.model.names import IMAGE_TOWER, NameTable


class SandwichLayer:
    """x + norm(mixer(norm(x))), then x + norm(mlp(norm(x))). ``angles``: which of the rotary embeddings it uses."""

    def __init__(self, norms: Sequence[Norm], attention: Mixer, mlp: FeedForward, angles: int) -> None:
        self.before_attention, self.after_attention, self.before_mlp, self.after_mlp = norms
        self.attention = attention
        self.mlp = mlp
        self.angles = angles

    def __call__(self, x: Tensor, angles: Sequence[RotaryAngles], context: ForwardContext) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        backend = context.backend
        attended = self.attention(self.before_attention(x, backend), angles[self.angles], context)
        x, normed = self.before_mlp.of_sum(x, self.after_attention(attended, backend), backend)
        return x + self.after_mlp(self.mlp(normed, backend), backend)


class Gemma3ForCausalLM(CausalLM):
    """The rotary embeddings are those of full layers and of sliding ones, in this order."""

    def attention(self, weights: WeightTable, name: str, layer: int) -> Attention:
        """See CausalLM."""
        bias = self.config.attention_bias
        return Attention(
            weights,
            name,
            self.config,
            self.pool_layers[layer],
            qkv_bias=bias,
            out_bias=bias,
            qk_norm=CentredRMSNorm,
            window=self.config.window(layer),
        )

    def layer(self, weights: WeightTable, name: str, layer: int) -> Layer:
        """See CausalLM."""
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        return SandwichLayer(
            [self.norm_of(weights, f"{name}.{norm}_layernorm") for norm in norms],
            self.attention(weights, f"{name}.self_attn", layer),
            self.mlp(weights, f"{name}.mlp", layer),
            angles=0 if self.config.window(layer) is None else 1,
        )

    def norm_of(self, weights: WeightTable, name: str) -> Norm:
        """See CausalLM."""
        return CentredRMSNorm(weights, name, self.config.hidden_size, self.config.rms_norm_eps)

    def rotaries(self, device: torch.device) -> list[Rotary]:
        """See CausalLM."""
        config = self.config
        return [Rotary(rope, config.rotary_dim, device) for rope in (config.rope, config.local_rope or config.rope)]

    def embed(self, input_ids: Tensor) -> Tensor:
        """See CausalLM. The scale is rounded to the weights' type, as the model was trained with it."""
        scale = torch.tensor(self.config.hidden_size**0.5, dtype=self.dtype).item()
        return super().embed(input_ids) * scale


class Gemma3ForConditionalGeneration(Gemma3ForCausalLM):
    """What reads and writes text of the models that also see; the tower for images stays in the file."""

    names: ClassVar[NameTable] = IMAGE_TOWER
