"""DeepSeekMoE (v1) out of transformers' parts, as transformers has no class for it: Llama with another feed-forward
part. Experts are modules of their own, so that what ``save_pretrained`` writes has the hub's names. Importing this
makes ``model_type="deepseek"`` known to transformers' auto classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP


class DeepseekConfig(LlamaConfig):
    """A Llama's, with experts."""

    model_type = "deepseek"


class Experts(nn.Module):
    """Every token goes through the shared experts and, weighted by a softmax over all, through its best others."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(config.hidden_size, config.n_routed_experts, bias=False)
        self.experts = nn.ModuleList(
            feed_forward(config, config.moe_intermediate_size) for _ in range(config.n_routed_experts)
        )
        self.shared_experts = feed_forward(config, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x: Tensor) -> Any:
        scores, ids = self.gate(x).softmax(-1).topk(self.config.num_experts_per_tok, dim=-1)
        if self.config.norm_topk_prob:
            scores = scores / scores.sum(-1, keepdim=True)
        shares = torch.zeros_like(self.gate(x)).scatter(-1, ids, scores)
        routed = sum(shares[..., i, None] * expert(x) for i, expert in enumerate(self.experts))
        return self.shared_experts(x) + routed


class DeepseekForCausalLM(LlamaForCausalLM):
    """Layers from ``first_k_dense_replace`` on, every ``moe_layer_freq``-th, have experts."""

    config_class = DeepseekConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            if number >= config.first_k_dense_replace and number % config.moe_layer_freq == 0:
                layer.mlp = Experts(config)


def feed_forward(config: Any, size: int) -> nn.Module:
    """transformers' gated layer of another size."""
    return LlamaMLP(LlamaConfig(**{**config.to_dict(), "intermediate_size": size}))


AutoConfig.register("deepseek", DeepseekConfig, exist_ok=True)
AutoModelForCausalLM.register(DeepseekConfig, DeepseekForCausalLM, exist_ok=True)
