"""Multi-token prediction (section 2.2 of https://arxiv.org/abs/2412.19437): a layer behind the model's last that knows
one token more and predicts the one after it.

    position p:   hidden state of p, after the model's norm  ─┐
                  embedding of the token at p + 1            ─┴─▶ eh_proj ─▶ decoder layer ─▶ norm ─▶ scores of p + 2

Embedding and head are the model's own; a checkpoint may repeat them. A further layer takes the hidden states of this
one and the tokens one further on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sglite.runtime.backend.base import ForwardContext
from sglite.runtime.model.layers.decoder import CausalLM
from sglite.runtime.model.layers.linear import Linear
from sglite.runtime.model.layers.rotary import RotaryAngles
from sglite.runtime.model.layers.weights import WeightTable


class DraftLayer:
    """Norms of both inputs, their projection to one, a layer of ``model``'s kind and a norm. ``layer``: its number,
    counted on from the model's."""

    def __init__(self, weights: WeightTable, model: CausalLM, layer: int) -> None:
        name, hidden = f"model.layers.{layer}", model.config.hidden_size
        self.token_norm = model.norm_of(weights, f"{name}.enorm")
        self.hidden_norm = model.norm_of(weights, f"{name}.hnorm")
        self.project = Linear(weights, {f"{name}.eh_proj": hidden}, 2 * hidden)
        self.block = model.layer(weights, name, layer)
        self.norm = model.norm_of(weights, f"{name}.shared_head.norm")
        embedding = "model.embed_tokens.weight"
        weights.tie(f"{name}.embed_tokens.weight", to=embedding)
        head = embedding if model.config.tie_word_embeddings else "lm_head.weight"
        weights.tie(f"{name}.shared_head.head.weight", to=head)

    def __call__(
        self, embedded: Tensor, hidden: Tensor, angles: Sequence[RotaryAngles], context: ForwardContext
    ) -> Tensor:
        """Embedded next tokens and hidden states, both [T, hidden], to hidden states [T, hidden] for the head."""
        backend = context.backend
        joined = torch.cat((self.token_norm(embedded, backend), self.hidden_norm(hidden, backend)), dim=-1)
        return self.norm(self.block(self.project(joined, backend), angles, context), backend)
