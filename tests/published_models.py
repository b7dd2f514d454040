"""Published models: what their ``config.json`` says on the hub, and what is known of them from elsewhere.

``published_configs.json`` has the configs field by field, as model cards, the hub's pages and public copies show them.
Counts of parameters are those of model cards and papers, or of tensors in the files where those are published to the
last one; without towers for images and layers that draft. Names of tensors are those of the checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIGS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("published_configs.json").read_text("utf-8"))


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is known of a model, by other means than this project's.

    Args:
        parameters: how many.
        cache: bytes a token in bfloat16, all layers together.
        fields: what the config means, by paths into ModelConfig.
        names: tensors that must be asked for, as the checkpoint names them.
        left: tensors that stay in the file.
        state: bytes of recurrent state a sequence.
    """

    parameters: float
    cache: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    state: int = 0


DENSE = (
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
)
QWEN2 = (*DENSE, *(f"model.layers.23.self_attn.{part}_proj.bias" for part in "qkv"))
QK_NORMS = ("model.layers.27.self_attn.q_norm.weight", "model.layers.27.self_attn.k_norm.weight")
LATENT = tuple(
    f"model.layers.0.self_attn.{part}.weight"
    for part in ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
)
QUERY_LATENT = tuple(f"model.layers.59.self_attn.{part}.weight" for part in ("q_a_proj", "q_a_layernorm", "q_b_proj"))
SHARED_EXPERTS = tuple(f"model.layers.3.mlp.shared_experts.{part}_proj.weight" for part in ("gate", "up", "down"))
SHARED_EXPERT = (
    "model.layers.3.mlp.gate.weight",
    "model.layers.3.mlp.shared_expert.down_proj.weight",
    "model.layers.3.mlp.shared_expert_gate.weight",
)
DELTA = tuple(f"layers.0.linear_attn.{part}" for part in ("A_log", "dt_bias", "conv1d.weight", "norm.weight"))
TEXT = "model.language_model"
DELTA_35 = (
    *(f"{TEXT}.{name}" for name in DELTA),
    *(f"{TEXT}.layers.0.linear_attn.in_proj_{part}.weight" for part in ("qkv", "z", "b", "a")),
    *(f"{TEXT}.layers.3.self_attn.{part}.weight" for part in ("q_proj", "q_norm", "k_norm", "o_proj")),
    f"{TEXT}.embed_tokens.weight",
    f"{TEXT}.norm.weight",
    "lm_head.weight",
)
LEFT_35 = ("model.visual.patch_embed.proj.weight", "model.visual.blocks.0.attn.qkv.weight", "mtp.fc.weight")
DRAFT = tuple(
    f"model.layers.61.{part}.weight"
    for part in ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head")
)
GEMMA_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
IMAGES = ("vision_tower.vision_model.post_layernorm.weight", "multi_modal_projector.mm_input_projection_weight")


def hybrid(layers: int, every: int = 4) -> tuple[str, ...]:
    """Kinds of layers, every so many one of full attention."""
    return tuple("linear_attention" if (i + 1) % every else "full_attention" for i in range(layers))


def sliding(layers: int, every: int = 6) -> tuple[str, ...]:
    """Kinds of layers, every so many one of full attention."""
    return tuple("sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers))


LLAMA3 = {"rope.rope_type": "llama3", "rope.theta": 5e5, "rope.original_max_positions": 8192, "max_context": 131072}
QWEN_7B = {"rope.theta": 1e6, "sliding_window": None, "layer_kinds": ("full_attention",) * 28, "attention_bias": False}
YARN = {"rope.rope_type": "yarn", "rope.factor": 40.0, "rope.original_max_positions": 4096, "max_context": 163840}
V2 = {
    **YARN,
    **{"mla.kv_lora_rank": 512, "mla.nope_dim": 128, "mla.rope_dim": 64, "mla.v_dim": 128, "mla.pairs": True},
    **{"moe.scoring": "softmax", "moe.renormalize": False, "moe.choice_bias": False, "eos_token_ids": (100001,)},
}
V2_LITE = {
    **V2,
    **{"mla.q_lora_rank": None, "moe.num_experts": 64, "moe.top_k": 6, "moe.num_groups": 1, "moe.scaling": 1.0},
    **{"moe.layers": (False,) + (True,) * 26, "moe.shared_size": 2816, "rope.mscale": 0.707, "dtype": "bfloat16"},
}
V2_BIG = {
    **V2,
    **{"mla.q_lora_rank": 1536, "moe.num_experts": 160, "moe.num_groups": 8, "moe.top_groups": 3},
    **{"moe.group_score": "max", "moe.scaling": 16.0, "moe.shared_size": 3072},
}
V3 = {
    **V2,
    **{"mla.q_lora_rank": 1536, "moe.num_experts": 256, "moe.top_k": 8, "moe.num_groups": 8, "moe.top_groups": 4},
    **{"moe.group_score": "top2", "moe.scoring": "sigmoid", "moe.renormalize": True, "moe.choice_bias": True},
    **{"moe.scaling": 2.5, "moe.shared_size": 2048, "eos_token_ids": (1,), "draft_layers": 1, "drafts": False},
    **{"rope.mscale_all_dim": 1.0},
}
QWEN35 = {
    **{"rope.theta": 1e7, "rotary_dim": 64, "head_dim": 256, "max_context": 262144, "eos_token_ids": (248044,)},
    **{"delta.num_k_heads": 16, "delta.k_dim": 128, "delta.v_dim": 128, "delta.conv_width": 4, "dtype": "bfloat16"},
}
GEMMA = {
    **{"rope.theta": 1e6, "local_rope.theta": 1e4, "local_rope.rope_type": "default", "activation": "gelu_tanh"},
    **{"tie_word_embeddings": True, "eos_token_ids": (1, 106), "dtype": "bfloat16"},
}
GEMMA_4B = {
    **GEMMA,
    **{"num_heads": 8, "num_kv_heads": 4, "head_dim": 256, "attention_scale": 256**-0.5, "vocab_size": 262208},
    **{"sliding_window": 1024, "layer_kinds": sliding(34), "max_context": 131072},
    **{"rope.rope_type": "linear", "rope.factor": 8.0},
}
GEMMA_4B_NAMES = ("language_model.model.embed_tokens.weight", "language_model.model.layers.33.mlp.up_proj.weight")
QUANTISED_7B = Published(parameters=7.61e9, cache=28 * 2 * 4 * 128 * 2, fields=QWEN_7B, names=QWEN2)
"""Weights are whole once they are read, whatever form they are stored in."""

MODELS: dict[str, Published] = {
    "Llama-3.1-8B-Instruct": Published(
        parameters=8.03e9,
        cache=32 * 2 * 8 * 128 * 2,
        fields={**LLAMA3, "head_dim": 128, "rope.factor": 8.0, "eos_token_ids": (128001, 128008, 128009)},
        names=DENSE,
    ),
    "Llama-3.2-1B-Instruct": Published(
        parameters=1.24e9,
        cache=16 * 2 * 8 * 64 * 2,
        fields={**LLAMA3, "head_dim": 64, "rope.factor": 32.0, "tie_word_embeddings": True, "dtype": "bfloat16"},
        names=DENSE[:-1],
    ),
    "DeepSeek-R1-Distill-Llama-8B": Published(
        parameters=8.03e9, cache=131072, fields={**LLAMA3, "eos_token_ids": (128001,)}, names=DENSE
    ),
    "Qwen-7B": Published(
        parameters=7.72e9,
        cache=32 * 2 * 32 * 128 * 2,
        fields={"intermediate_size": 11008, "head_dim": 128, "max_context": 8192, "rope.theta": 1e4, "dtype": ""},
        names=(
            *(f"transformer.h.31.attn.{part}" for part in ("c_attn.weight", "c_attn.bias", "c_proj.weight")),
            *(f"transformer.h.31.mlp.{part}.weight" for part in ("w1", "w2", "c_proj")),
            *("transformer.wte.weight", "transformer.h.0.ln_1.weight", "transformer.h.0.ln_2.weight"),
            *("transformer.ln_f.weight", "lm_head.weight"),
        ),
    ),
    "Qwen2.5-0.5B-Instruct": Published(
        parameters=494e6,
        cache=24 * 2 * 2 * 64 * 2,
        fields={"tie_word_embeddings": True, "head_dim": 64, "sliding_window": None, "max_context": 32768},
        names=QWEN2[:8] + QWEN2[9:],
    ),
    "Qwen2.5-7B-Instruct": Published(
        parameters=7.61e9,
        cache=57344,
        fields={**QWEN_7B, "max_context": 32768, "eos_token_ids": (151645,)},
        names=QWEN2,
    ),
    # Beyond 262144 positions its attention is computed in chunks, which is not served.
    "Qwen2.5-7B-Instruct-1M": Published(
        parameters=7.61e9,
        cache=57344,
        fields={"rope.theta": 1e7, "max_context": 262144, "sliding_window": None, "rms_norm_eps": 1e-5},
        names=QWEN2,
    ),
    "DeepSeek-R1-Distill-Qwen-7B": Published(
        parameters=7.61e9,
        cache=57344,
        fields={**QWEN_7B, "rope.theta": 1e4, "max_context": 131072, "eos_token_ids": (151643,)},
        names=QWEN2,
    ),
    "Qwen1.5-MoE-A2.7B": Published(
        parameters=14.3e9,
        cache=24 * 2 * 16 * 128 * 2,
        fields={
            **{"moe.num_experts": 60, "moe.top_k": 4, "moe.renormalize": False, "moe.shared_size": 5632},
            **{"moe.shared_gate": True, "moe.layers": (True,) * 24, "moe.intermediate_size": 1408},
        },
        names=(*SHARED_EXPERT, "model.layers.0.mlp.experts.59.up_proj.weight", "model.layers.0.self_attn.q_proj.bias"),
    ),
    "Qwen2-57B-A14B": Published(
        parameters=57.4e9,
        cache=57344,
        fields={"moe.num_experts": 64, "moe.top_k": 8, "moe.shared_size": 20480, "max_context": 131072},
        names=(*SHARED_EXPERT, "model.layers.27.mlp.experts.63.down_proj.weight"),
    ),
    "Qwen3-0.6B": Published(
        parameters=0.596e9,
        cache=28 * 2 * 8 * 128 * 2,
        fields={"head_dim": 128, "tie_word_embeddings": True, "max_context": 40960, "eos_token_ids": (151645,)},
        names=(*DENSE[:-1], *QK_NORMS),
    ),
    # Half the bytes of its file, a header of some kilobytes included.
    "Qwen3-Embedding-0.6B": Published(
        parameters=1191586416 / 2, cache=114688, fields={"vocab_size": 151669, "max_context": 32768}, names=QK_NORMS
    ),
    "Qwen3-30B-A3B": Published(
        parameters=30.5e9,
        cache=48 * 2 * 4 * 128 * 2,
        fields={
            **{"moe.num_experts": 128, "moe.top_k": 8, "moe.renormalize": True, "moe.shared_size": 0},
            **{"moe.intermediate_size": 768, "head_dim": 128, "hidden_size": 2048, "moe.layers": (True,) * 48},
        },
        names=(*QK_NORMS, "model.layers.47.mlp.gate.weight", "model.layers.47.mlp.experts.127.gate_proj.weight"),
    ),
    "Qwen3-Next-80B-A3B-Instruct": Published(
        parameters=79_674_391_296,
        cache=12 * 2 * 2 * 256 * 2,
        state=36 * (3 * 8192 * 2 + 32 * 128 * 128 * 4),
        fields={
            **{"layer_kinds": hybrid(48), "rotary_dim": 64, "rope.theta": 5e6, "delta.num_v_heads": 32},
            **{"moe.num_experts": 512, "moe.top_k": 10, "moe.renormalize": True, "moe.shared_size": 512},
        },
        names=(
            *(f"model.{name}" for name in DELTA),
            *("model.layers.0.linear_attn.in_proj_qkvz.weight", "model.layers.0.linear_attn.in_proj_ba.weight"),
            *(*SHARED_EXPERT, "model.layers.0.mlp.experts.511.up_proj.weight", "lm_head.weight"),
        ),
        left=("mtp.fc.weight", "mtp.layers.0.mlp.experts.0.up_proj.weight"),
    ),
    # Of the three Qwen3.5 the language models alone, as transformers counts them.
    "Qwen3.5-9B": Published(
        parameters=8_953_803_264,
        cache=8 * 2 * 4 * 256 * 2,
        state=24 * (3 * 8192 * 2 + 32 * 128 * 128 * 4),
        fields={**QWEN35, "layer_kinds": hybrid(32), "delta.num_v_heads": 32, "moe": None},
        names=DELTA_35,
        left=LEFT_35,
    ),
    "Qwen3.5-27B": Published(
        parameters=26_895_998_464,
        cache=16 * 2 * 4 * 256 * 2,
        state=48 * (3 * 10240 * 2 + 48 * 128 * 128 * 4),
        fields={**QWEN35, "layer_kinds": hybrid(64), "delta.num_v_heads": 48},
        names=DELTA_35,
        left=LEFT_35,
    ),
    "Qwen3.5-35B-A3B": Published(
        parameters=34_660_610_688,
        cache=10 * 2 * 2 * 256 * 2,
        state=30 * (3 * 8192 * 2 + 32 * 128 * 128 * 4),
        fields={
            **{**QWEN35, "layer_kinds": hybrid(40), "moe.num_experts": 256, "moe.top_k": 8, "moe.renormalize": True},
            **{"moe.intermediate_size": 512, "moe.shared_size": 512, "moe.shared_gate": True},
        },
        names=(
            *(*DELTA_35, f"{TEXT}.layers.39.mlp.experts.gate_up_proj", f"{TEXT}.layers.39.mlp.experts.down_proj"),
            *(f"{TEXT}.layers.0.mlp.gate.weight", f"{TEXT}.layers.0.mlp.shared_expert_gate.weight"),
        ),
        left=LEFT_35,
    ),
    "deepseek-moe-16b-base": Published(
        parameters=16.4e9,
        cache=28 * 2 * 16 * 128 * 2,
        fields={
            **{"moe.num_experts": 64, "moe.top_k": 6, "moe.layers": (False,) + (True,) * 27, "moe.renormalize": False},
            **{"moe.shared_size": 2816, "moe.num_groups": 1, "mla": None, "max_context": 4096},
        },
        names=(
            *DENSE,
            *SHARED_EXPERTS,
            "model.layers.1.mlp.gate.weight",
            "model.layers.27.mlp.experts.63.up_proj.weight",
        ),
    ),
    "DeepSeek-V2-Lite": Published(
        parameters=15_706_484_224, cache=27 * (512 + 64) * 2, fields=V2_LITE, names=(*LATENT, DENSE[2], *SHARED_EXPERTS)
    ),
    "DeepSeek-V2-Lite-Chat, written by transformers 5": Published(
        parameters=15_706_484_224, cache=27 * (512 + 64) * 2, fields=V2_LITE, names=(*LATENT, DENSE[2], *SHARED_EXPERTS)
    ),
    "DeepSeek-V2": Published(
        parameters=236e9,
        cache=60 * (512 + 64) * 2,
        fields={**V2_BIG, "rope.mscale": 0.707},
        names=(*LATENT, *QUERY_LATENT, *SHARED_EXPERTS),
    ),
    "DeepSeek-V2.5": Published(
        parameters=236e9, cache=60 * (512 + 64) * 2, fields={**V2_BIG, "rope.mscale": 1.0}, names=QUERY_LATENT
    ),
    "DeepSeek-V3": Published(
        parameters=671e9,
        cache=61 * (512 + 64) * 2,
        fields={**V3, "indexer": None, "moe.layers": (False,) * 3 + (True,) * 59},
        names=(
            *(*LATENT, *QUERY_LATENT, *SHARED_EXPERTS, "model.layers.3.mlp.gate.weight", "lm_head.weight"),
            *("model.layers.3.mlp.gate.e_score_correction_bias", "model.layers.60.mlp.experts.255.down_proj.weight"),
        ),
        left=DRAFT,
    ),
    "DeepSeek-V3.2-Exp": Published(
        parameters=671e9,
        cache=61 * (512 + 64 + 128) * 2,
        fields={**V3, "indexer.num_heads": 64, "indexer.head_dim": 128, "indexer.top_k": 2048},
        names=(
            *(*LATENT, *QUERY_LATENT, "model.layers.0.self_attn.indexer.k_norm.bias"),
            *(f"model.layers.0.self_attn.indexer.{part}.weight" for part in ("wq_b", "wk", "k_norm", "weights_proj")),
        ),
        left=DRAFT,
    ),
    "Mistral-7B-v0.1": Published(
        parameters=7.24e9,
        cache=131072,
        fields={"sliding_window": 4096, "layer_kinds": ("sliding_attention",) * 32, "max_context": 32768},
        names=DENSE,
    ),
    "Mistral-7B-Instruct-v0.3": Published(
        parameters=7.25e9,
        cache=131072,
        fields={"sliding_window": None, "layer_kinds": ("full_attention",) * 32, "rope.theta": 1e6, "labels": ()},
        names=DENSE,
    ),
    "Mistral-Nemo-Base-2407": Published(
        parameters=12.2e9,
        cache=40 * 2 * 8 * 128 * 2,
        fields={"head_dim": 128, "hidden_size": 5120, "num_heads": 32, "max_context": 1024000, "sliding_window": None},
        names=DENSE,
    ),
    "Mistral-Small-3.1-24B-Instruct-2503": Published(
        parameters=23.572e9,
        cache=40 * 2 * 8 * 128 * 2,
        fields={"head_dim": 128, "vocab_size": 131072, "max_context": 131072, "rope.theta": 1e9, "eos_token_ids": (2,)},
        names=("language_model.model.layers.39.mlp.up_proj.weight", "language_model.lm_head.weight"),
        left=("vision_tower.patch_conv.weight", "multi_modal_projector.linear_1.weight"),
    ),
    "Mixtral-8x7B-v0.1": Published(
        parameters=46.7e9,
        cache=131072,
        fields={"moe.num_experts": 8, "moe.top_k": 2, "moe.renormalize": True, "sliding_window": None},
        names=(
            "model.layers.0.block_sparse_moe.gate.weight",
            *(f"model.layers.31.block_sparse_moe.experts.7.w{part}.weight" for part in (1, 2, 3)),
        ),
    ),
    "gemma-3-1b-it": Published(
        parameters=1.0e9,
        cache=26 * 2 * 1 * 256 * 2,
        fields={**GEMMA, "sliding_window": 512, "layer_kinds": sliding(26), "max_context": 32768, "head_dim": 256},
        names=(*DENSE[:-1], *(f"model.layers.25.{norm}.weight" for norm in GEMMA_NORMS)),
    ),
    "gemma-3-4b-it": Published(
        parameters=3.884e9, cache=34 * 2 * 4 * 256 * 2, fields=GEMMA_4B, names=GEMMA_4B_NAMES, left=IMAGES
    ),
    "gemma-3-27b-it": Published(
        parameters=27.016e9,
        cache=62 * 2 * 16 * 128 * 2,
        fields={**GEMMA, "attention_scale": 168**-0.5, "head_dim": 128, "num_heads": 32, "layer_kinds": sliding(62)},
        names=GEMMA_4B_NAMES,
        left=IMAGES,
    ),
    "translategemma-4b-it": Published(parameters=3.884e9, cache=139264, fields=GEMMA_4B, names=GEMMA_4B_NAMES),
    "gpt-oss-20b": Published(
        parameters=20.9e9,
        cache=24 * 2 * 8 * 64 * 2,
        fields={
            **{"layer_kinds": sliding(24, 2), "sliding_window": 128, "head_dim": 64, "attention_bias": True},
            **{"rope.rope_type": "yarn", "rope.factor": 32.0, "rope.truncate": False, "rope.theta": 150000.0},
            **{"max_context": 131072, "moe.num_experts": 32, "moe.top_k": 4, "moe.router_bias": True, "dtype": ""},
            **{"activation": "swiglu_oai", "eos_token_ids": (200002,)},
        },
        names=(
            *(f"model.layers.23.self_attn.{part}" for part in ("sinks", "q_proj.bias", "o_proj.bias")),
            *(f"model.layers.23.mlp.{part}" for part in ("router.weight", "router.bias")),
            *(f"model.layers.23.mlp.experts.{part}_proj_bias" for part in ("gate_up", "down")),
        ),
    ),
    "OLMo-2-1124-7B": Published(
        parameters=7.30e9,
        cache=32 * 2 * 32 * 128 * 2,
        fields={"rope.theta": 5e5, "max_context": 4096, "eos_token_ids": (100257,), "dtype": "float32"},
        names=(
            *(name for name in DENSE if "input_layernorm" not in name),
            *QK_NORMS,
            DENSE[4].replace("attention", "feedforward"),
        ),
    ),
    "OLMo-2-1124-13B": Published(parameters=13.7e9, cache=40 * 2 * 40 * 128 * 2, names=QK_NORMS),
    "Qwen2.5-7B-Instruct-AWQ": QUANTISED_7B,
    "Qwen2.5-7B-Instruct-GPTQ-Int4": QUANTISED_7B,
    "Qwen2.5-7B-Instruct-quantized.w8a8": QUANTISED_7B,
    "Qwen2.5-7B-Instruct-FP8-dynamic": QUANTISED_7B,
    "Qwen2.5-7B-Instruct-quantized.w4a16": QUANTISED_7B,
    "Mixtral-8x7B-Instruct-v0.1-AWQ": Published(parameters=46.7e9, cache=131072),
}
