"""How the tensors of each architecture are called in GGUF files, and in what form they are there.

Most have another name only. The others are made by a ``Form`` from one tensor or from several: llama.cpp's converter
splits, joins, transposes and shifts what its own code wants otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from sglite.runtime.model.config import ModelConfig

WHOLE: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
"""With ``.weight`` behind."""
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
}
_DENSE = {
    **_ATTENTION,
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MOE = {**_DENSE, "ffn_gate_inp": "mlp.gate"}
_EXPERTS = {
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_GEMMA3 = {
    **_DENSE,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_MIXTRAL = {**_ATTENTION, "ffn_gate_inp": "block_sparse_moe.gate"}
_MIXTRAL_EXPERTS = {
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
_GPT_OSS = {**_ATTENTION, "post_attention_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.router"}
_LATENT = {
    **_MOE,
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_QWEN2_MOE = {
    **_MOE,
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}


@dataclass(frozen=True)
class Form:
    """A tensor of ours and what it is made of: tensors of a layer (or of the whole model) and a function of them, which
    may do no more than put rows in another order."""

    name: str
    sources: tuple[str, ...]
    make: Callable[..., Tensor]
    by_rows: bool = False


@dataclass(frozen=True)
class Layout:
    """Names of an architecture. ``layer``: theirs in ``blk.N.`` -> ours in ``model.layers.N.``, with ``.weight`` or
    ``.bias`` behind; ``experts``: those that hold all experts of a layer, ``{}`` for the expert's number; ``forms``,
    whole names: by layer, and of the whole model."""

    layer: Mapping[str, str]
    experts: Mapping[str, str] = field(default_factory=dict)
    forms: tuple[Form, ...] = ()
    whole_forms: tuple[Form, ...] = ()


def layout_of(config: ModelConfig) -> Layout:
    """The layout of a config's architecture."""
    match config.architecture:
        case "LlamaForCausalLM":
            return Layout(_DENSE, forms=_from_pairs(config))
        case "MixtralForCausalLM":
            return Layout(_MIXTRAL, _MIXTRAL_EXPERTS, _from_pairs(config))
        case "Qwen2MoeForCausalLM":
            gate = Form("mlp.shared_expert_gate.weight", ("ffn_gate_inp_shexp.weight",), _as_row)
            return Layout(_QWEN2_MOE, _EXPERTS, (gate,))
        case "Gemma3ForCausalLM":
            norms = tuple(Form(f"{_GEMMA3[n]}.weight", (f"{n}.weight",), _less_one) for n in _GEMMA3 if "norm" in n)
            return Layout(_GEMMA3, {}, norms, (Form("model.norm.weight", ("output_norm.weight",), _less_one),))
        case "GptOssForCausalLM":
            return Layout(_GPT_OSS, forms=_INTERLEAVED)
        case "DeepseekV2ForCausalLM" | "DeepseekV3ForCausalLM":
            latents = Form("self_attn.kv_b_proj.weight", ("attn_k_b.weight", "attn_v_b.weight"), _keys_and_values)
            bias = Form("mlp.gate.e_score_correction_bias", ("exp_probs_b.bias",), _itself)
            return Layout(_LATENT, _EXPERTS, (latents, bias))
    return Layout(_MOE, _EXPERTS)


def _from_pairs(config: ModelConfig) -> tuple[Form, ...]:
    """q and k of Llama's plan are there for rotating neighbours; here halves are rotated."""
    counts = {"q": config.num_heads, "k": config.num_kv_heads}
    return tuple(
        Form(f"self_attn.{part}_proj.{kind}", (f"attn_{part}.{kind}",), partial(_halves_from_pairs, heads=heads), True)
        for part, heads in counts.items()
        for kind in ("weight", "bias")
    )


def _halves_from_pairs(x: Tensor, heads: int) -> Tensor:
    return x.reshape(heads, -1, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def _itself(x: Tensor) -> Tensor:
    return x


def _as_row(x: Tensor) -> Tensor:
    return x.reshape(1, -1)


def _less_one(x: Tensor) -> Tensor:
    """Gemma's norms multiply by one more than their weight; in the file they have it."""
    return x - 1


def _keys_and_values(keys: Tensor, values: Tensor) -> Tensor:
    """[heads, rank, nope] and [heads, v, rank] as [heads (nope + v), rank]."""
    return torch.cat((keys.transpose(1, 2), values), dim=1).flatten(0, 1)


def _columns(gate: Tensor, up: Tensor) -> Tensor:
    """[experts, size, hidden] twice as [experts, hidden, 2 size], columns gate, up, gate, up ..."""
    return torch.stack((gate, up), dim=2).flatten(1, 2).transpose(1, 2)


def _in_turn(gate: Tensor, up: Tensor) -> Tensor:
    return torch.stack((gate, up), dim=2).flatten(1)


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


_INTERLEAVED = (
    Form("mlp.experts.gate_up_proj", ("ffn_gate_exps.weight", "ffn_up_exps.weight"), _columns),
    Form("mlp.experts.gate_up_proj_bias", ("ffn_gate_exps.bias", "ffn_up_exps.bias"), _in_turn),
    Form("mlp.experts.down_proj", ("ffn_down_exps.weight",), _transposed),
    Form("mlp.experts.down_proj_bias", ("ffn_down_exps.bias",), _itself),
    Form("self_attn.sinks", ("attn_sinks.weight",), _itself),
)
