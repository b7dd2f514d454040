"""Decoders with sliding windows: Mistral, Mixtral, Gemma 3, gpt-oss.

Their configs, and above all those nested in a config for text and images, leave out what is as their class has it by
default; the tables here say what that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sglite.runtime.model.config import LayerKind, ModelConfig, MoEConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields
from sglite.runtime.model.readers.common import read_common
from sglite.runtime.model.readers.dense import with_defaults, with_window
from sglite.runtime.model.readers.moe import read_top_k
from sglite.runtime.model.rope_config import read_rope

MISTRAL: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
)
MIXTRAL: Mapping[str, Any] = MappingProxyType(
    {**MISTRAL, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2}
)
GEMMA3: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }
)
GPT_OSS: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "attention_bias": True,
        "sliding_window": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    }
)
GPT_OSS_ROPE: Mapping[str, Any] = MappingProxyType(
    {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
)
SWIGLU = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}
"""What the activation of gpt-oss is computed with, see ``Backend.gated``."""


def read_mistral(fields: Fields) -> ModelConfig:
    """Mistral: ``sliding_window`` is of all layers; ``null`` means none, its absence 4096."""
    inner = fields.text("model_type", "mistral")
    if inner not in ("mistral", "mistral3"):
        raise ModelError(
            f"{fields.where}: model_type={inner!r} is not supported under this class; it has layers of another family"
        )
    absent = "sliding_window" not in fields.values
    fields = with_defaults(fields, {**MISTRAL, "sliding_window": 4096} if absent else MISTRAL)
    return with_window(fields, read_common(fields, kinds=_kinds(fields)))


def read_mixtral(fields: Fields) -> ModelConfig:
    """Mixtral: as Mistral, but without a window unless there is one; all layers have experts."""
    fields = with_defaults(fields, MIXTRAL)
    common = with_window(fields, read_common(fields, kinds=_kinds(fields)))
    return replace(common, moe=_experts(fields, common))


def read_gemma3(fields: Fields) -> ModelConfig:
    """Gemma 3: most layers see a window, every ``sliding_window_pattern``-th sees all; each kind has its own rope."""
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if fields.get(name) is not None:
            raise ModelError(f"{fields.where}: {name}={fields.get(name)!r} is not supported; only null is")
    if fields.flag("use_bidirectional_attention", False):
        raise ModelError(
            f"{fields.where}: use_bidirectional_attention=true is not supported: no token may see those after it"
        )
    fields = with_defaults(fields, GEMMA3)
    local, everywhere = split_rope(fields)
    fields = Fields({**everywhere, "layer_types": _gemma3_layers(fields)}, fields.where)
    common = with_window(fields, read_common(fields, kinds=("full_attention", "sliding_attention")))
    positions = fields.positive_int("max_position_embeddings")
    return replace(
        common,
        max_context=positions,  # counts the scaling of full layers in, unlike elsewhere
        local_rope=read_rope(Fields(local, fields.where), positions),
        attention_scale=fields.positive_float("query_pre_attn_scalar") ** -0.5,
    )


def split_rope(fields: Fields) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields as sliding layers and as full ones see them, each with one rope: old configs have two bases and a
    scaling that is of full layers only, new ones ``rope_parameters`` by kind of layer."""
    local = {key: value for key, value in fields.values.items() if key not in ("rope_scaling", "rope_parameters")}
    local["rope_theta"] = fields.positive_float("rope_local_base_freq")
    by_kind = Fields(fields.mapping("rope_parameters"), f"{fields.where}: rope_parameters")
    if not by_kind.values:
        return local, dict(fields.values)
    said = {name: value for name, value in by_kind.values.items() if value is not None}
    if said.get("rope_type") == "default":  # beside the kinds, where it says nothing
        said.pop("rope_type")
    unknown = [name for name in said if name not in ("full_attention", "sliding_attention")]
    if unknown:
        raise ModelError(
            f"{by_kind.where} has {', '.join(unknown)}; only full_attention and sliding_attention are read"
        )
    rope = {"rope_parameters": by_kind.mapping("sliding_attention")}
    return {**local, **rope}, {**fields.values, "rope_parameters": by_kind.mapping("full_attention")}


def read_gpt_oss(fields: Fields) -> ModelConfig:
    """gpt-oss: every other layer sees a window, from the first on."""
    fields = with_defaults(fields, GPT_OSS)
    if not fields.mapping("rope_parameters") and not fields.mapping("rope_scaling"):
        fields = with_defaults(fields, {"rope_scaling": dict(GPT_OSS_ROPE)})
    for name, served in SWIGLU.items():
        if fields.number(name) != served:
            raise ModelError(f"{fields.where}: {name}={fields.number(name):g} is not supported; only {served:g} is")
    layers = fields.positive_int("num_hidden_layers")
    alternating = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
    fields = with_defaults(fields, {"layer_types": alternating})
    common = with_window(fields, read_common(fields, kinds=("full_attention", "sliding_attention")))
    experts = replace(_experts(fields, common), router_bias=True)
    return replace(common, activation="swiglu_oai", moe=experts)


def _kinds(fields: Fields) -> tuple[LayerKind, ...]:
    return ("full_attention",) if fields.get("sliding_window") is None else ("sliding_attention",)


def _gemma3_layers(fields: Fields) -> list[Any]:
    every = fields.positive_int(fields.named("_sliding_window_pattern", "sliding_window_pattern"))
    layers = range(1, fields.positive_int("num_hidden_layers") + 1)
    return fields.sequence("layer_types") or [
        "sliding_attention" if layer % every else "full_attention" for layer in layers
    ]


def _experts(fields: Fields, common: ModelConfig) -> MoEConfig:
    name = fields.named("num_local_experts", "num_experts")
    return MoEConfig(
        num_experts=fields.positive_int(name),
        top_k=read_top_k(fields, name),
        intermediate_size=common.intermediate_size,
        layers=(True,) * common.num_layers,
    )
