"""The DeepSeek family: v1-MoE, V2 and V2-Lite, V3 and R1, V3.2."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeVar

from sglite.runtime.model.config import IndexerConfig, MLAConfig, ModelConfig, MoEConfig, Scoring
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields
from sglite.runtime.model.readers.common import read_common
from sglite.runtime.model.readers.moe import read_top_k

ChoiceMethod = Literal["greedy", "group_limited_greedy", "noaux_tc"]
METHODS: tuple[ChoiceMethod, ...] = ("greedy", "group_limited_greedy", "noaux_tc")
SCORINGS: tuple[Scoring, ...] = ("softmax", "sigmoid")
Name = TypeVar("Name", bound=str)


def read_deepseek(fields: Fields) -> ModelConfig:
    """DeepSeekMoE: a Llama with experts."""
    config = read_common(fields)
    return replace(config, moe=_read_experts(fields, config, "greedy", "softmax", normalised=False))


def read_deepseek_v2(fields: Fields) -> ModelConfig:
    """V2, V2.5, V2-Lite: latent attention, softmax routing."""
    config = _read_latent(fields)
    moe = _read_experts(fields, config, "greedy", "softmax", normalised=False)
    if moe.renormalize and moe.scaling != 1.0:
        raise ModelError(
            f"{fields.where}: norm_topk_prob=true with routed_scaling_factor={moe.scaling:g} is not supported for "
            f"{config.architecture}: implementations disagree whether both apply; set one of them aside"
        )
    return replace(config, moe=moe)


def read_deepseek_v3(fields: Fields) -> ModelConfig:
    """V3, V3.1, R1: sigmoid routing with a bias that balances the choice."""
    config = _read_latent(fields)
    name = fields.named("num_nextn_predict_layers", "num_mtp_layers")
    config = replace(config, draft_layers=_natural(fields, name))
    return replace(config, moe=_read_experts(fields, config, "noaux_tc", "sigmoid", normalised=True))


def read_deepseek_v32(fields: Fields) -> ModelConfig:
    """V3.2: V3 with an indexer in every layer."""
    kinds = fields.sequence("layer_types")
    if set(kinds) <= {"indexed_attention"}:  # which goes without saying
        fields = Fields({**fields.values, "layer_types": None}, fields.where)
    config = read_deepseek_v3(fields)
    assert config.mla is not None
    if config.mla.q_lora_rank is None:
        raise ModelError(f"{fields.where}: q_lora_rank=null is not supported with an indexer, which reads that latent")
    indexer = IndexerConfig(
        num_heads=fields.positive_int("index_n_heads"),
        head_dim=fields.positive_int("index_head_dim"),
        top_k=fields.positive_int("index_topk"),
    )
    if indexer.head_dim < config.mla.rope_dim:
        raise ModelError(
            f"{fields.where}: index_head_dim={indexer.head_dim} is less than qk_rope_head_dim={config.mla.rope_dim}"
        )
    return replace(config, indexer=indexer)


def _read_latent(fields: Fields) -> ModelConfig:
    """What V2 and its successors have in common: sizes, rotary settings of the rotated part, latents."""
    rope_dim = fields.positive_int("qk_rope_head_dim")
    if rope_dim % 2:
        raise ModelError(f"{fields.where}: qk_rope_head_dim={rope_dim} is odd; rotary embedding needs pairs")
    config = read_common(Fields({**fields.values, "head_dim": rope_dim}, fields.where))
    section = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
    scaling = Fields(fields.mapping(section), f"{fields.where}: {section}")
    if scaling.number("mscale_all_dim", 0.0) and config.rope.rope_type != "yarn":
        raise ModelError(f"{scaling.where}.mscale_all_dim is not supported with rope_type={config.rope.rope_type!r}")
    return replace(
        config,
        mla=MLAConfig(
            q_lora_rank=None if fields.get("q_lora_rank") is None else fields.positive_int("q_lora_rank"),
            kv_lora_rank=fields.positive_int("kv_lora_rank"),
            nope_dim=fields.positive_int("qk_nope_head_dim"),
            rope_dim=rope_dim,
            v_dim=fields.positive_int("v_head_dim"),
            pairs=fields.flag("rope_interleave", True),
        ),
    )


def _read_experts(
    fields: Fields, config: ModelConfig, method: ChoiceMethod, scoring: Scoring, *, normalised: bool
) -> MoEConfig:
    """Experts; ``method``, ``scoring`` and ``normalised`` are what the family's configs mean where they do not say."""
    method = _one_of(fields, "topk_method", METHODS, method)
    scoring = _one_of(fields, "scoring_func", SCORINGS, scoring)
    name = fields.named("n_routed_experts", "num_local_experts", "num_experts")
    grouped = method != "greedy"
    moe = MoEConfig(
        num_experts=fields.positive_int(name),
        top_k=read_top_k(fields, name),
        intermediate_size=fields.positive_int("moe_intermediate_size"),
        layers=_expert_layers(fields, config.num_layers) + (True,) * config.draft_layers,
        scoring=scoring,
        renormalize=fields.flag("norm_topk_prob", normalised),
        scaling=fields.positive_float("routed_scaling_factor", None if method == "noaux_tc" else 1.0),
        choice_bias=method == "noaux_tc",
        num_groups=fields.positive_int("n_group") if grouped else 1,
        top_groups=fields.positive_int("topk_group") if grouped else 1,
        group_score="top2" if method == "noaux_tc" else "max",
        shared_size=_shared_experts(fields) * fields.positive_int("moe_intermediate_size"),
    )
    _check_groups(fields, moe)
    return moe


def _check_groups(fields: Fields, moe: MoEConfig) -> None:
    size = moe.num_experts // moe.num_groups
    least = 2 if moe.group_score == "top2" and moe.num_groups > 1 else 1
    if moe.num_experts % moe.num_groups or size < least:
        raise ModelError(
            f"{fields.where}: n_group={moe.num_groups} does not divide {moe.num_experts} experts into groups of at "
            f"least {least}"
        )
    if moe.top_groups > moe.num_groups or moe.top_k > moe.top_groups * size:
        raise ModelError(
            f"{fields.where}: topk_group={moe.top_groups} of n_group={moe.num_groups} with {size} experts each cannot "
            f"give num_experts_per_tok={moe.top_k}"
        )


def _expert_layers(fields: Fields, layers: int) -> tuple[bool, ...]:
    """Every ``moe_layer_freq``-th layer from ``first_k_dense_replace`` on, or what ``mlp_layer_types`` says."""
    given = fields.sequence("mlp_layer_types")
    if given:
        if len(given) != layers or not set(given) <= {"dense", "sparse"}:
            raise ModelError(
                f"{fields.where}: mlp_layer_types {given!r:.80} must say dense or sparse for each of {layers} layers"
            )
        return tuple(kind == "sparse" for kind in given)
    first, every = _natural(fields, "first_k_dense_replace"), fields.positive_int("moe_layer_freq", 1)
    return tuple(layer >= first and layer % every == 0 for layer in range(layers))


def _shared_experts(fields: Fields) -> int:
    return _natural(fields, "n_shared_experts")


def _natural(fields: Fields, name: str) -> int:
    """An integer from 0; 0 when absent."""
    return 0 if fields.get(name) in (None, 0) else fields.positive_int(name)


def _one_of(fields: Fields, name: str, known: tuple[Name, ...], default: Name) -> Name:
    value = fields.text(name, default)
    for one in known:
        if one == value:
            return one
    raise ModelError(f"{fields.where}: {name}={value!r} is not supported; supported: {', '.join(known)}")
