"""Tiny random checkpoints of every model family, made by transformers' own classes and written in the hub's layout.

    folder = make_family("qwen3_moe", tmp_path)     config, weights; the names on disk are those of the hub
    ours.generate_close_to(transformers)            tests/parity/test_families.py

An entry of ``FAMILIES`` is the ``model_type`` that transformers knows the family by, and the config fields that make it
tiny. Sizes are chosen so that nothing is ambiguous: no two sizes that a layout could confuse are equal, and every switch
of a family is on in one of its variants. Weights are scaled so that greedy choices are clear.
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
QWEN_MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "norm_topk_prob": True}
FAMILIES: dict[str, Family] = {
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
}


def make_family(name: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint of ``FAMILIES[name]`` and return its folder."""
    family = FAMILIES[name]
    model = random_model(family, seed).to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    return folder


def random_model(family: Family, seed: int = 0) -> Any:
    """transformers' model with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {**COMMON, **family.config}
    fields = {name: value for name, value in fields.items() if name == "pad_token_id" or value is not None}
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
        if not parameter.is_floating_point() or "inv_freq" in name or "rotary" in name:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(_scaled(name, parameter, noise).to(parameter.dtype))


def _scaled(name: str, parameter: Tensor, noise: Tensor) -> Tensor:
    if parameter.ndim == 1:  # norms, biases, decays: around their own first values
        return parameter.float() + 0.1 * noise
    gain = 2.0 if name.endswith("lm_head.weight") else 1.0
    fan_in = parameter.shape[-1]
    if "embed_tokens" in name:
        return noise
    return gain * noise * fan_in**-0.5
