"""Mixtures of experts of the Qwen family: Qwen2-MoE, Qwen3-MoE."""

from __future__ import annotations

from dataclasses import replace

from sglite.runtime.model.config import ModelConfig, MoEConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields
from sglite.runtime.model.readers.common import read_common
from sglite.runtime.model.readers.dense import refuse_windows


def read_qwen2_moe(fields: Fields) -> ModelConfig:
    """Qwen1.5-MoE and Qwen2-MoE: experts beside a shared one with a gate."""
    refuse_windows(fields)
    common = read_common(fields)
    shared = fields.positive_int("shared_expert_intermediate_size")
    return replace(common, moe=replace(read_experts(fields, common), shared_size=shared, shared_gate=True))


def read_qwen3_moe(fields: Fields) -> ModelConfig:
    """Qwen3-MoE: experts only."""
    refuse_windows(fields)
    common = read_common(fields)
    return replace(common, moe=read_experts(fields, common))


def read_experts(fields: Fields, common: ModelConfig) -> MoEConfig:
    """Experts of a Qwen model; every ``decoder_sparse_step``-th layer has some, but those of ``mlp_only_layers``."""
    every, dense = fields.positive_int("decoder_sparse_step", 1), fields.sequence("mlp_only_layers")
    name = fields.named("num_experts", "num_local_experts")
    return MoEConfig(
        num_experts=fields.positive_int(name),
        top_k=read_top_k(fields, name),
        intermediate_size=fields.positive_int("moe_intermediate_size"),
        layers=tuple(layer not in dense and (layer + 1) % every == 0 for layer in range(common.num_layers)),
        renormalize=fields.flag("norm_topk_prob", False),
    )


def read_top_k(fields: Fields, experts: str) -> int:
    """``num_experts_per_tok``, at most what field ``experts`` says there are."""
    top_k, count = fields.positive_int("num_experts_per_tok"), fields.positive_int(experts)
    if top_k > count:
        raise ModelError(f"{fields.where}: num_experts_per_tok={top_k} exceeds {experts}={count}")
    return top_k
