"""Hybrids of gated delta-net and gated attention: Qwen3-Next, Qwen3.5 dense and with experts."""

from __future__ import annotations

from dataclasses import replace

from sglite.runtime.model.config import DeltaConfig, LayerKind, ModelConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields
from sglite.runtime.model.readers.common import read_common
from sglite.runtime.model.readers.dense import refuse_windows
from sglite.runtime.model.readers.moe import read_experts

_KINDS: tuple[LayerKind, ...] = ("full_attention", "linear_attention")
_HEAD_DIM, _ROTARY_SHARE, _FULL_ATTENTION_EVERY = 256, 0.25, 4
"""What configs that leave them out mean."""


def read_qwen3_next(fields: Fields) -> ModelConfig:
    """Qwen3-Next: experts in most layers, with a shared one behind a gate."""
    common = _read(fields)
    shared = fields.positive_int("shared_expert_intermediate_size")
    experts = read_experts(fields, common)
    normalise = fields.flag("norm_topk_prob", True)
    return replace(common, moe=replace(experts, renormalize=normalise, shared_size=shared, shared_gate=True))


def read_qwen3_5(fields: Fields) -> ModelConfig:
    """Qwen3.5, dense. Its positions in three dimensions are one and the same in text."""
    return _read(fields)


def read_qwen3_5_moe(fields: Fields) -> ModelConfig:
    """Qwen3.5 with experts in every layer; their weights always add up to 1."""
    without_dense = {"intermediate_size": fields.get("moe_intermediate_size"), "norm_topk_prob": True}
    return read_qwen3_next(Fields({**fields.values, **without_dense}, fields.where))


def _read(fields: Fields) -> ModelConfig:
    left_out = {"head_dim": _HEAD_DIM, "partial_rotary_factor": _ROTARY_SHARE, "layer_types": _layer_types(fields)}
    given = {name: value for name, value in fields.values.items() if value is not None}
    fields = Fields({**left_out, **given}, fields.where)
    refuse_windows(fields)
    if not fields.flag("attn_output_gate", True):
        raise ModelError(f"{fields.where}: attn_output_gate=false is not supported; only gated attention is")
    common = read_common(fields, kinds=_KINDS, partial_rotary=True)
    for name in ("hidden_act", "output_gate_type"):
        if fields.text(name, "silu") not in ("silu", "swish"):
            raise ModelError(f"{fields.where}: {name}={fields.get(name)!r} is not supported; only silu is")
    return replace(common, delta=_read_delta(fields))


def _layer_types(fields: Fields) -> list[str]:
    """What a config without ``layer_types`` means: every so many layers one of full attention."""
    every = fields.positive_int("full_attention_interval", _FULL_ATTENTION_EVERY)
    layers = fields.positive_int("num_hidden_layers")
    return [_KINDS[0] if (layer + 1) % every == 0 else _KINDS[1] for layer in range(layers)]


def _read_delta(fields: Fields) -> DeltaConfig:
    delta = DeltaConfig(
        num_k_heads=fields.positive_int("linear_num_key_heads"),
        num_v_heads=fields.positive_int("linear_num_value_heads"),
        k_dim=fields.positive_int("linear_key_head_dim"),
        v_dim=fields.positive_int("linear_value_head_dim"),
        conv_width=fields.positive_int("linear_conv_kernel_dim"),
    )
    if delta.num_v_heads % delta.num_k_heads:
        raise ModelError(
            f"{fields.where}: linear_num_value_heads={delta.num_v_heads} is not a multiple of "
            f"linear_num_key_heads={delta.num_k_heads}"
        )
    if delta.conv_width < 2:
        raise ModelError(f"{fields.where}: linear_conv_kernel_dim={delta.conv_width} must be at least 2")
    return delta
