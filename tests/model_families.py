"""Tiny random checkpoints of every model family, made by transformers' own classes and written in the hub's layout.

    folder = make_family("qwen3_moe", tmp_path)     config, weights; the names on disk are those of the hub

``tests/parity/test_families.py`` compares each with transformers, ``tools/model_matrix.py`` lists them in the docs.

An entry of ``FAMILIES`` is the ``model_type`` that transformers knows a family by, and the config fields that make it
tiny. Sizes are chosen so that nothing is ambiguous: no two sizes that a layout could confuse are equal, and every
switch of a family is on in one of its variants. Weights are scaled so that greedy choices are clear.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny_models import VOCAB_SIZE
from torch import Tensor


@dataclass(frozen=True)
class Family:
    """One tiny model: transformers' ``model_type`` and ``config`` fields beyond the common ones (``None`` removes)."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    architecture: str | None = None
    """As hub configs name the class, where transformers writes another."""
    kind: str = "dense"
    """dense, moe, mla, hybrid, sliding: which walls of the engine it needs."""
    oracle: str = "transformers"
    """What it is compared with."""


COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": None,
}
NULLS = ("pad_token_id", "q_lora_rank", "sliding_window")
"""Fields that ``None`` does not remove: it is a value of theirs."""
QWEN_MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "norm_topk_prob": True}
MLA: dict[str, Any] = {
    "head_dim": None,
    "num_key_value_heads": 4,
    "q_lora_rank": 28,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "rms_norm_eps": 1e-4,  # the norms of latents do not use it
}
DEEPSEEK_MOE: dict[str, Any] = {
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 40,
}
DEEPSEEK = {**MLA, **DEEPSEEK_MOE, "first_k_dense_replace": 1}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
GROUPED = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}
HYBRID: dict[str, Any] = {
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 24,
    "linear_value_head_dim": 20,
    "linear_conv_kernel_dim": 4,
}
HYBRID_MOE: dict[str, Any] = {**HYBRID, **QWEN_MOE, "shared_expert_intermediate_size": 56}
FAMILIES: dict[str, Family] = {
    "deepseek": Family(
        "deepseek",
        {**DEEPSEEK_MOE, "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": False},
        kind="moe",
        oracle="parts of transformers",
    ),
    "deepseek-switches": Family(
        "deepseek",
        {
            **DEEPSEEK_MOE,
            "first_k_dense_replace": 0,
            "moe_layer_freq": 2,
            "norm_topk_prob": True,
            "attention_bias": True,
        },
        kind="moe",
        oracle="parts of transformers",
    ),
    "deepseek_v2": Family("deepseek_v2", {**DEEPSEEK, **GROUPED}, kind="mla"),
    "deepseek_v2-lite": Family(
        "deepseek_v2",
        {**DEEPSEEK, "q_lora_rank": None, "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}},
        kind="mla",
    ),
    "deepseek_v3": Family(
        "deepseek_v3",
        {**DEEPSEEK, "n_group": 4, "topk_group": 2, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8}},
        kind="mla",
    ),
    "deepseek_v3-switches": Family(
        "deepseek_v3",
        {
            **DEEPSEEK,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "rope_interleave": False,
            "attention_bias": True,
        },
        kind="mla",
    ),
    "gemma3": Family(
        "gemma3_text",
        {
            "sliding_window": 16,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 24,
            "rope_parameters": GEMMA_ROPE,
            "tie_word_embeddings": True,
        },
        kind="sliding",
    ),
    "gemma3-untied": Family(
        "gemma3_text",
        {
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "attention_bias": True,
            "num_key_value_heads": 1,
            "head_dim": 24,
        },
        kind="sliding",
    ),
    "gpt_oss": Family(
        "gpt_oss",
        {
            "intermediate_size": 40,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "sliding_window": 12,
            "rope_parameters": {**YARN, "truncate": False},
        },
        kind="sliding",
    ),
    "mistral": Family("mistral", {"sliding_window": 24, "head_dim": 24}, kind="sliding"),
    "mistral-full": Family("mistral", {"sliding_window": None}),
    "mixtral": Family("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": 20}, kind="moe"),
    "qwen2-window": Family("qwen2", QWEN_WINDOW, kind="sliding"),
    "qwen3-window": Family("qwen3", {**QWEN_WINDOW, "max_window_layers": 1}, kind="sliding"),
    "olmo2": Family("olmo2", {"head_dim": None}),
    "olmo2-biases": Family("olmo2", {"head_dim": None, "attention_bias": True, "num_key_value_heads": 4}),
    "deepseek_v32": Family(
        "deepseek_v32",
        {
            **DEEPSEEK,
            "n_group": 4,
            "topk_group": 2,
            "index_n_heads": 16,  # fewer tie, and a tie is decided differently everywhere
            "index_head_dim": 12,
            "index_topk": 24,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
        kind="mla",
    ),
    "qwen2_moe": Family(
        "qwen2_moe",
        {**QWEN_MOE, "norm_topk_prob": False, "shared_expert_intermediate_size": 56, "decoder_sparse_step": 2},
        kind="moe",
    ),
    "qwen2_moe-mlp-only": Family(
        "qwen2_moe", {**QWEN_MOE, "shared_expert_intermediate_size": 56, "mlp_only_layers": [1]}, kind="moe"
    ),
    "qwen3_moe": Family("qwen3_moe", QWEN_MOE, kind="moe"),
    "qwen3_moe-unnormalised": Family("qwen3_moe", {**QWEN_MOE, "norm_topk_prob": False}, kind="moe"),
    "qwen3_next": Family("qwen3_next", HYBRID_MOE, kind="hybrid"),
    "qwen3_next-switches": Family(
        "qwen3_next",
        {
            **HYBRID_MOE,
            "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
            "linear_conv_kernel_dim": 3,
            "mlp_only_layers": [1],
            "norm_topk_prob": False,
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
        },
        kind="hybrid",
    ),
    "qwen3_5": Family("qwen3_5_text", HYBRID, kind="hybrid"),
    "qwen3_5_moe": Family("qwen3_5_moe_text", {**HYBRID_MOE, "norm_topk_prob": None}, kind="hybrid"),
}


def architecture_of(family: Family) -> str:
    """The class that configs of the family name."""
    import deepseek_oracle  # noqa: F401  (makes a family known)
    from transformers import AutoConfig, AutoModelForCausalLM

    if family.architecture is not None:
        return family.architecture
    known: Any = AutoModelForCausalLM._model_mapping
    kind: Any = AutoConfig.for_model
    return str(known[type(kind(family.model_type))].__name__)


def make_family(name: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint of ``FAMILIES[name]`` and return its folder."""
    family = FAMILIES[name]
    model = random_model(family, seed).to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    return folder


def random_model(family: Family, seed: int = 0) -> Any:
    """transformers' model with random weights."""
    import deepseek_oracle  # noqa: F401  (makes a family known)
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {**COMMON, **family.config}
    fields = {name: value for name, value in fields.items() if name in NULLS or value is not None}
    for_model: Any = AutoConfig.for_model
    config = for_model(family.model_type, **fields)
    if family.architecture is not None:
        config.architectures = [family.architecture]
    make: Any = AutoModelForCausalLM.from_config
    model = make(config, attn_implementation="eager", dtype=torch.float32)
    randomise(model, seed)
    return model.eval()


@torch.no_grad()
def randomise(model: Any, seed: int) -> None:
    """Weights of unit gain, norms near what they are at rest, biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if not parameter.is_floating_point() or parameter.ndim == 0 or "inv_freq" in name or "rotary" in name:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(_scaled(name, parameter, noise).to(parameter.dtype))


def _scaled(name: str, parameter: Tensor, noise: Tensor) -> Tensor:
    if name.endswith("A_log"):  # slow to forget: where hardly anything is remembered, a norm blows up rounding
        return 0.5 * noise - 2
    if parameter.ndim == 1:  # norms, biases, decays: around their own first values
        return parameter.float() + 0.1 * noise
    gain = 2.0 if name.endswith("lm_head.weight") else 1.0
    fan_in = parameter.shape[-1]
    if "embed_tokens" in name:
        return noise
    return gain * noise * fan_in**-0.5
