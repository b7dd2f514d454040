"""The metadata of each architecture that GGUF files are read for, as fields of the ``config.json`` of its class.

Keys as llama.cpp's converter writes them, and what its loader takes for granted where it writes none. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.gguf_keys import Keys

MAX_EXPERTS = 2**16
GEMMA3_27B_LAYERS = 62
"""The one size whose queries are not scaled by their own; only its number of layers tells it."""
Fields = dict[str, Any]


def dense(keys: Keys, config: Fields) -> Fields:
    """Full attention and a gated feed-forward part."""
    keys.must_be("expert_count", 0)
    keys.must_be("expert_used_count", 0)
    return {**heads(keys, config), "intermediate_size": keys.size("feed_forward_length"), "rope_parameters": rope(keys)}


def llama(keys: Keys, config: Fields) -> Fields:
    """Llama and Mistral; with experts, Mixtral."""
    if not keys.integer("expert_count"):
        return {**dense(keys, config), "architectures": ["LlamaForCausalLM"]}
    keys.must_be("expert_feed_forward_length", keys.size("feed_forward_length"))
    found = {**heads(keys, config), "intermediate_size": keys.size("feed_forward_length")}
    experts = {"num_local_experts": _experts(keys), "num_experts_per_tok": keys.size("expert_used_count")}
    return found | experts | {"architectures": ["MixtralForCausalLM"], "rope_parameters": rope(keys)}


def qwen2moe(keys: Keys, config: Fields) -> Fields:
    """Qwen1.5-MoE and Qwen2-MoE. Weights of the chosen experts are as the softmax gives them."""
    keys.must_be("expert_shared_count", 1)
    shared = keys.size("expert_shared_feed_forward_length")
    return {**_qwen_experts(keys, config, normalised=False), "shared_expert_intermediate_size": shared}


def qwen3moe(keys: Keys, config: Fields) -> Fields:
    """Qwen3-MoE. Weights of the chosen experts add up to 1."""
    keys.must_be("expert_shared_count", 0)
    return _qwen_experts(keys, config, normalised=True)


def gemma3(keys: Keys, config: Fields) -> Fields:
    """Gemma 3; every sixth layer sees all, the others a window."""
    found = heads(keys, config)
    base = keys.number("rope.freq_base_swa")
    scale = found["head_dim"]
    if config["num_hidden_layers"] == GEMMA3_27B_LAYERS:
        scale = config["hidden_size"] / config["num_attention_heads"]
    local = {"rope_type": "default", "rope_theta": 10000.0 if base is None else base}
    return found | {
        "intermediate_size": keys.size("feed_forward_length"),
        "sliding_window": keys.size("attention.sliding_window"),
        "sliding_window_pattern": keys.integer("attention.sliding_window_pattern") or 6,
        "query_pre_attn_scalar": scale,
        "rope_parameters": {"full_attention": rope(keys, theta=1e6), "sliding_attention": local},
    }


def gpt_oss(keys: Keys, config: Fields) -> Fields:
    """gpt-oss; every other layer sees a window."""
    keys.integer("feed_forward_length")  # says what the experts' size says
    keys.must_be("expert_gating_func", 3)
    keys.must_be("expert_shared_count", 0)
    return heads(keys, config) | {
        "intermediate_size": keys.size("expert_feed_forward_length"),
        "num_local_experts": _experts(keys),
        "num_experts_per_tok": keys.size("expert_used_count"),
        "sliding_window": keys.size("attention.sliding_window"),
        "rope_parameters": {**rope(keys), "truncate": False},
        "attention_bias": True,
    }


def deepseek2(keys: Keys, config: Fields) -> Fields:
    """DeepSeek V2 and V3; routing by softmax or by sigmoid tells which."""
    sigmoid = keys.integer("expert_gating_func") == 2
    keys.must_be("expert_gating_func", 1, 2, 0)
    groups = keys.integer("expert_group_count") or 1
    normalised, scaling = keys.flag("expert_weights_norm"), keys.number("expert_weights_scale")
    return _latents(keys, config) | {
        "architectures": ["DeepseekV3ForCausalLM" if sigmoid else "DeepseekV2ForCausalLM"],
        "intermediate_size": keys.size("feed_forward_length"),
        "moe_intermediate_size": keys.size("expert_feed_forward_length"),
        "n_routed_experts": _experts(keys),
        "num_experts_per_tok": keys.size("expert_used_count"),
        "n_shared_experts": keys.integer("expert_shared_count") or 0,
        "first_k_dense_replace": keys.integer("leading_dense_block_count") or 0,
        "n_group": groups,
        "topk_group": keys.integer("expert_group_used_count") or 1,
        "topk_method": "noaux_tc" if sigmoid else "group_limited_greedy" if groups > 1 else "greedy",
        "scoring_func": "sigmoid" if sigmoid else "softmax",
        "norm_topk_prob": bool(normalised),
        "routed_scaling_factor": scaling or 1.0,
    }


FAMILIES: Mapping[str, tuple[str, Callable[[Keys, Fields], Fields]]] = {
    "deepseek2": ("DeepseekV2ForCausalLM", deepseek2),
    "gemma3": ("Gemma3ForCausalLM", gemma3),
    "gpt-oss": ("GptOssForCausalLM", gpt_oss),
    "llama": ("LlamaForCausalLM", llama),
    "qwen2": ("Qwen2ForCausalLM", dense),
    "qwen2moe": ("Qwen2MoeForCausalLM", qwen2moe),
    "qwen3": ("Qwen3ForCausalLM", dense),
    "qwen3moe": ("Qwen3MoeForCausalLM", qwen3moe),
}
"""``general.architecture`` -> the class that serves it, where its reader does not say another, and the reader."""


def heads(keys: Keys, config: Fields) -> Fields:
    """Sizes of attention where all of a head is rotated and keys are as large as values."""
    head_dim = keys.integer("attention.key_length")
    if head_dim is None:
        head_dim = config["hidden_size"] // config["num_attention_heads"]
    keys.must_be("attention.value_length", head_dim)
    keys.must_be("rope.dimension_count", head_dim)
    kv_heads = keys.integer("attention.head_count_kv")
    return {
        "num_key_value_heads": config["num_attention_heads"] if kv_heads is None else kv_heads,
        "head_dim": head_dim,
    }


def rope(keys: Keys, theta: float = 10000.0) -> Fields:
    """Settings of the rotary embedding; ``theta``: its base where no key says it."""
    kind, factor = keys.text("rope.scaling.type") or "none", keys.number("rope.scaling.factor")
    base, original = keys.number("rope.freq_base"), keys.integer("rope.scaling.original_context_length")
    fast, slow = keys.number("rope.scaling.yarn_beta_fast"), keys.number("rope.scaling.yarn_beta_slow")
    for name in ("rope.scale_linear", "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"):
        keys.must_be(name, 1.0)
    keys.must_be("rope.scaling.yarn_ext_factor", 1.0)
    found = {"rope_type": "default", "rope_theta": theta if base is None else base}
    if kind == "none" or (kind == "linear" and factor in (None, 0.0, 1.0)):
        return found
    if kind not in ("linear", "yarn"):
        raise ModelError(
            f"{keys.file.path}: {keys.prefix}rope.scaling.type={kind!r:.40} is not supported; none, linear and yarn are"
        )
    scaled = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    return found | scaled | {"beta_fast": fast, "beta_slow": slow}


def _experts(keys: Keys) -> int:
    return keys.size("expert_count", limit=MAX_EXPERTS)


def _qwen_experts(keys: Keys, config: Fields, *, normalised: bool) -> Fields:
    told = keys.flag("expert_weights_norm")
    keys.must_be("expert_weights_scale", 1.0, 0.0)
    keys.must_be("expert_gating_func", 1)
    return heads(keys, config) | {
        "intermediate_size": keys.size("feed_forward_length"),
        "num_experts": _experts(keys),
        "num_experts_per_tok": keys.size("expert_used_count"),
        "moe_intermediate_size": keys.size("expert_feed_forward_length"),
        "norm_topk_prob": normalised if told is None else told,
        "rope_parameters": rope(keys),
    }


def _latents(keys: Keys, config: Fields) -> Fields:
    """Sizes of latent attention. Newer files say what its heads would be under keys of their own, and under the common
    ones that there is one key of the size of a latent."""
    rank, rope_dim = keys.size("attention.kv_lora_rank"), keys.size("rope.dimension_count")
    key, value = keys.integer("attention.key_length_mla"), keys.integer("attention.value_length_mla")
    if key is None:
        key, value = keys.size("attention.key_length"), keys.size("attention.value_length")
        keys.must_be("attention.head_count_kv", config["num_attention_heads"])
    else:
        keys.must_be("attention.key_length", rank + rope_dim)
        keys.must_be("attention.value_length", rank)
        keys.must_be("attention.head_count_kv", 1, config["num_attention_heads"])
    if key <= rope_dim:
        raise ModelError(f"{keys.file.path}: keys of {key} numbers cannot have {rope_dim} that are rotated")
    # Its inventors weight the temperature of scores and of angles alike, so the second comes to nothing.
    weight = (keys.number("rope.scaling.yarn_log_multiplier") or 0.0) * 10
    return {
        "q_lora_rank": keys.integer("attention.q_lora_rank") or None,
        "kv_lora_rank": rank,
        "qk_nope_head_dim": key - rope_dim,
        "qk_rope_head_dim": rope_dim,
        "v_head_dim": value,
        "rope_parameters": {**rope(keys), "mscale": weight, "mscale_all_dim": weight},
    }
