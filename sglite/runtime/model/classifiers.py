"""Classifiers and reward models: dense decoders whose head scores the last token's hidden state.

scores = W h                          ``score.weight``: ...ForSequenceClassification
scores = W2 relu(W1 h + b1) + b2      ``score.0``, ``score.2``: Qwen2ForRewardModel
"""

from __future__ import annotations

import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.layers.decoder import CausalLM
from sglite.runtime.model.layers.linear import Linear
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.model.llama import LlamaForCausalLM
from sglite.runtime.model.qwen2 import Qwen2ForCausalLM
from sglite.runtime.model.qwen3 import Qwen3ForCausalLM


class _Scoring(CausalLM):
    """The head, beside any family's decoder."""

    def __init__(self, config: ModelConfig, weights: WeightTable, backend: Backend) -> None:
        super().__init__(config, weights, backend)
        size, count = config.hidden_size, len(config.labels)
        self.inner: Linear | None = None
        if config.score_layers == 2:
            self.inner = Linear(weights, {"score.0": size}, size, bias=True)
            self.score = Linear(weights, {"score.2": count}, size, bias=True)
        else:
            self.score = Linear(weights, {"score": count}, size)

    @torch.inference_mode()
    def pooled(self, hidden: Tensor) -> Tensor:
        """See CausalLM: [n, labels], raw scores."""
        if self.inner is not None:
            hidden = torch.relu(self.inner(hidden, self.backend))
        return self.score(hidden, self.backend)


class LlamaForSequenceClassification(_Scoring, LlamaForCausalLM):
    """Llama with a classifier's head."""


class Qwen2ForSequenceClassification(_Scoring, Qwen2ForCausalLM):
    """Qwen2 with a classifier's head."""


class Qwen2ForRewardModel(_Scoring, Qwen2ForCausalLM):
    """Qwen2 with a reward model's head."""


class Qwen3ForSequenceClassification(_Scoring, Qwen3ForCausalLM):
    """Qwen3 with a classifier's head."""
