"""Qwen3-MoE (https://arxiv.org/abs/2505.09388): Qwen3 with experts, none of them shared."""

from __future__ import annotations

from sglite.runtime.model.qwen3 import Qwen3ForCausalLM


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    """Layers without experts have a dense feed-forward part."""
