"""Configs of the DeepSeek family as the hub has them, and refusals of what would change results."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sglite.runtime.model.architectures import parse_config
from sglite.runtime.model.config import IndexerConfig, MLAConfig, ModelConfig, MoEConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.layers.cache_layout import cache_groups, indexer_layers
from sglite.runtime.model.layers.mla import scale_of
from sglite.runtime.model.layers.rotary import attention_scale

COMMON = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000, "tie_word_embeddings": False}
YARN = {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}
LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
MOE_16B: dict[str, Any] = {
    **COMMON,
    "architectures": ["DeepseekForCausalLM"],
    "model_type": "deepseek",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 4096,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "rope_scaling": None,
}
V2_LITE: dict[str, Any] = {
    **MOE_16B,
    **LATENT,
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "num_hidden_layers": 27,
    "max_position_embeddings": 163840,
    "q_lora_rank": None,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "routed_scaling_factor": 1.0,
    "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
}
V2: dict[str, Any] = {
    **V2_LITE,
    "hidden_size": 5120,
    "num_hidden_layers": 60,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "n_group": 8,
    "topk_group": 3,
    "n_routed_experts": 160,
    "moe_intermediate_size": 1536,
    "topk_method": "group_limited_greedy",
    "routed_scaling_factor": 16.0,
}
V3: dict[str, Any] = {
    **V2,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
    "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
}
V32: dict[str, Any] = {
    **V3,
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 2048,
}


def parsed(raw: dict[str, Any], **changes: Any) -> ModelConfig:
    return parse_config({**raw, **changes})


def bytes_of_a_token(config: ModelConfig) -> int:
    return sum(group.bytes_per_token for group in cache_groups(config, torch.bfloat16))


def test_v1_is_a_llama_with_experts() -> None:
    config = parsed(MOE_16B)
    assert config.mla is None and config.head_dim == config.rotary_dim == 128
    assert config.moe == MoEConfig(
        num_experts=64,
        top_k=6,
        intermediate_size=1408,
        layers=(False,) + (True,) * 27,
        renormalize=False,
        shared_size=2816,
    )


def test_v2_lite_has_no_latent_for_queries() -> None:
    config = parsed(V2_LITE)
    assert config.mla == MLAConfig(q_lora_rank=None, kv_lora_rank=512, nope_dim=128, rope_dim=64, v_dim=128)
    assert config.rotary_dim == 64 and config.max_context == 163840
    assert config.moe is not None and config.moe.num_groups == 1 and config.moe.scoring == "softmax"
    assert attention_scale(config.rope) == 1.0
    assert scale_of(config) == pytest.approx(0.1 * 0.707 * math.log(40) + 1)
    assert bytes_of_a_token(config) == 27 * 576 * 2


def test_v2_chooses_groups_by_their_best() -> None:
    moe = parsed(V2).moe
    assert moe is not None and (moe.num_groups, moe.top_groups, moe.group_score) == (8, 3, "max")
    assert (moe.scaling, moe.renormalize, moe.choice_bias) == (16.0, False, False)


def test_v3_chooses_with_a_bias_and_knows_its_draft_layer() -> None:
    config = parsed(V3)
    assert config.draft_layers == 1 and not config.drafts
    assert config.moe is not None and config.moe.layers == (False,) * 3 + (True,) * 59
    assert (config.moe.scoring, config.moe.group_score, config.moe.choice_bias) == ("sigmoid", "top2", True)
    assert (config.moe.scaling, config.moe.renormalize, config.moe.shared_size) == (2.5, True, 2048)
    assert scale_of(config) == pytest.approx(1.3688879)
    assert bytes_of_a_token(config) == 61 * 576 * 2


def test_v32_keeps_keys_of_its_indexer_in_a_group_of_their_own() -> None:
    config = parsed(V32)
    assert config.indexer == IndexerConfig(num_heads=64, head_dim=128, top_k=2048)
    assert [group.name for group in cache_groups(config, torch.bfloat16)] == ["attention", "indexer"]
    assert bytes_of_a_token(config) == 61 * (576 + 128) * 2
    assert indexer_layers(config) == list(range(61, 122))


def test_what_transformers_writes_reads_the_same() -> None:
    scaling = {**V32["rope_scaling"], "rope_theta": 10000}
    written = {
        "layer_types": ["indexed_attention"] * 61,
        "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 58,
        "head_dim": 64,
        "rope_scaling": None,
        "rope_parameters": {**{k: v for k, v in scaling.items() if k != "type"}, "rope_type": "yarn"},
        "topk_method": None,
        "scoring_func": None,
    }
    assert parsed(V32, **written) == parsed(V32)


@pytest.mark.parametrize(
    ("raw", "changes", "words"),
    [
        (V2, {"topk_method": "random"}, "topk_method='random' is not supported; supported: greedy, group_limited_gre"),
        (V3, {"scoring_func": "tanh"}, "scoring_func='tanh' is not supported; supported: softmax, sigmoid"),
        (V2, {"norm_topk_prob": True}, "norm_topk_prob=true with routed_scaling_factor=16 is not supported for Deepse"),
        (V2, {"n_group": 7}, "n_group=7 does not divide 160 experts into groups of at least 1"),
        (V3, {"n_group": 256}, "n_group=256 does not divide 256 experts into groups of at least 2"),
        (V2, {"topk_group": 9}, "topk_group=9 of n_group=8 with 20 experts each cannot give num_experts_per_tok=6"),
        (V3, {"n_group": 64, "topk_group": 1}, "topk_group=1 of n_group=64 with 4 experts each cannot give .*=8"),
        (V3, {"n_group": None}, "field 'n_group' is missing"),
        (V3, {"routed_scaling_factor": None}, "field 'routed_scaling_factor' is missing"),
        (V3, {"num_experts_per_tok": 300}, "num_experts_per_tok=300 exceeds n_routed_experts=256"),
        (V3, {"kv_lora_rank": 0}, "field 'kv_lora_rank' is 0; it must be a positive integer"),
        (V3, {"qk_rope_head_dim": 63}, "qk_rope_head_dim=63 is odd"),
        (V3, {"num_nextn_predict_layers": -1}, "field 'num_nextn_predict_layers' is -1"),
        (
            V3,
            {"rope_scaling": {"type": "linear", "factor": 4, "mscale_all_dim": 1.0}},
            "rope_scaling.mscale_all_dim is",
        ),
        (V32, {"q_lora_rank": None}, "q_lora_rank=null is not supported with an indexer"),
        (V32, {"index_head_dim": 32}, "index_head_dim=32 is less than qk_rope_head_dim=64"),
        (V32, {"index_topk": None}, "field 'index_topk' is missing"),
        (V32, {"layer_types": ["sliding_attention"] * 61}, "layer_types .* is not supported"),
        (V32, {"mlp_layer_types": ["dense"] * 3}, "mlp_layer_types .* must say dense or sparse for each of 61"),
    ],
)
def test_what_would_change_results_is_refused_by_name(raw: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as refused:
        parsed(raw, **changes)
    assert "\n" not in str(refused.value)
