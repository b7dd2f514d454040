"""Qwen1.5-MoE and Qwen2-MoE (https://arxiv.org/abs/2407.10671): Qwen2 with experts and a gated shared one."""

from __future__ import annotations

from sglite.runtime.model.qwen2 import Qwen2ForCausalLM


class Qwen2MoeForCausalLM(Qwen2ForCausalLM):
    """Layers without experts have a dense feed-forward part."""
