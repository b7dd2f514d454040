"""GGUF files of the families that llama.cpp keeps in another form than the hub does, against the hub's own layout.

The tensors are rearranged here as llama.cpp's converter rearranges them, row by row, and must come back.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import U32, pairs, write_gguf
from model_families import FAMILIES, make_family
from paged_runner import Extend, PagedRunner
from safetensors.torch import load_file
from tiny_models import VOCAB_SIZE
from torch import Tensor

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.loader import load_model

Tensors = dict[str, Tensor]
COMMON = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    **{f"self_attn.{part}_proj.{kind}": f"attn_{part}.{kind}" for part in "qkv" for kind in ("weight", "bias")},
    **{f"self_attn.o_proj.{kind}": f"attn_output.{kind}" for kind in ("weight", "bias")},
    **{f"mlp.{part}_proj.weight": f"ffn_{part}.weight" for part in ("gate", "up", "down")},
}


@dataclass(frozen=True)
class Family:
    """``keys`` of the metadata from a config; ``convert`` a layer's tensors to those of ``blk.N.``."""

    architecture: str
    keys: Callable[[Mapping[str, Any]], dict[str, Any]]
    convert: Callable[[Mapping[str, Any], Tensors], Tensors]
    norm: Callable[[Tensor], Tensor] = lambda x: x


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "block_count": U32(config["num_hidden_layers"]),
        "context_length": U32(config["max_position_embeddings"]),
        "embedding_length": U32(config["hidden_size"]),
        "feed_forward_length": U32(config["intermediate_size"]),
        "attention.head_count": U32(config["num_attention_heads"]),
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    }


def heads(config: Mapping[str, Any]) -> dict[str, Any]:
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    keys = {"attention.head_count_kv": config["num_key_value_heads"], "attention.key_length": dim}
    return {key: U32(value) for key, value in {**keys, "attention.value_length": dim}.items()}


def yarn(rope: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"rope.freq_base": float(rope["rope_theta"])}
    if rope["rope_type"] == "yarn":
        found |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(rope["factor"])}
        found["rope.scaling.original_context_length"] = U32(rope["original_max_position_embeddings"])
    return found


def experts(config: Mapping[str, Any], count: str) -> dict[str, Any]:
    return {"expert_count": U32(config[count]), "expert_used_count": U32(config["num_experts_per_tok"])}


def renamed(layer: Tensors, names: Mapping[str, str]) -> Tensors:
    return {names[name]: tensor for name, tensor in layer.items() if name in names}


def stacked(layer: Tensors, name: str) -> Tensor:
    """All experts' ``name``, with a place for the number."""
    count = sum(name.format(i) in layer for i in range(64))
    return torch.stack([layer[name.format(i)] for i in range(count)])


def mixtral(config: Mapping[str, Any], layer: Tensors) -> Tensors:
    block = "block_sparse_moe."
    made = renamed(layer, {**COMMON, f"{block}gate.weight": "ffn_gate_inp.weight"})
    for part, count in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
        made[f"attn_{part}.weight"] = pairs(made[f"attn_{part}.weight"], config[count])
    for part, name in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        made[f"ffn_{part}_exps.weight"] = stacked(layer, f"{block}experts.{{}}.{name}.weight")
    return made


def gemma3(config: Mapping[str, Any], layer: Tensors) -> Tensors:
    norms = {
        "post_attention_layernorm.weight": "post_attention_norm.weight",
        "pre_feedforward_layernorm.weight": "ffn_norm.weight",
        "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
        "self_attn.q_norm.weight": "attn_q_norm.weight",
        "self_attn.k_norm.weight": "attn_k_norm.weight",
    }
    made = renamed(layer, {**COMMON, **norms})
    return {name: tensor + 1 if "norm" in name else tensor for name, tensor in made.items()}


def gemma3_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = config["rope_parameters"]
    found = {**sizes(config), **heads(config), "attention.sliding_window": U32(config["sliding_window"])}
    found["rope.freq_base"] = float(rope["full_attention"]["rope_theta"])
    if rope["full_attention"]["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["full_attention"]["factor"])}
    return found | {"rope.freq_base_swa": float(rope["sliding_attention"]["rope_theta"])}


def gpt_oss(config: Mapping[str, Any], layer: Tensors) -> Tensors:
    names = {f"mlp.router.{kind}": f"ffn_gate_inp.{kind}" for kind in ("weight", "bias")}
    names |= {"self_attn.sinks": "attn_sinks.weight", "post_attention_layernorm.weight": "post_attention_norm.weight"}
    made = renamed(layer, {**COMMON, **names})
    both, bias = layer["mlp.experts.gate_up_proj"].transpose(1, 2), layer["mlp.experts.gate_up_proj_bias"]
    for part, first in (("gate", 0), ("up", 1)):
        made[f"ffn_{part}_exps.weight"], made[f"ffn_{part}_exps.bias"] = both[:, first::2], bias[:, first::2]
    made["ffn_down_exps.weight"] = layer["mlp.experts.down_proj"].transpose(1, 2)
    made["ffn_down_exps.bias"] = layer["mlp.experts.down_proj_bias"]
    return made


def gpt_oss_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        **sizes(config),
        **heads(config),
        **experts(config, "num_local_experts"),
        **yarn(config["rope_parameters"]),
    }
    found["attention.sliding_window"] = U32(config["sliding_window"])
    return found | {"expert_feed_forward_length": U32(config["intermediate_size"])}


def deepseek(config: Mapping[str, Any], layer: Tensors, *, split: bool = True) -> Tensors:
    names = {"mlp.gate.weight": "ffn_gate_inp.weight", "mlp.gate.e_score_correction_bias": "exp_probs_b.bias"}
    names |= {f"self_attn.{ours}_proj.weight": f"attn_{ours}.weight" for ours in ("q_a", "q_b")}
    names["self_attn.kv_a_proj_with_mqa.weight"] = "attn_kv_a_mqa.weight"
    names |= {f"self_attn.{part}_layernorm.weight": f"attn_{part}_norm.weight" for part in ("q_a", "kv_a")}
    for part in ("gate", "up", "down"):
        names[f"mlp.shared_experts.{part}_proj.weight"] = f"ffn_{part}_shexp.weight"
    made = renamed(layer, {**COMMON, **names})
    if "ffn_gate_inp.weight" in made:
        for part in ("gate", "up", "down"):
            made[f"ffn_{part}_exps.weight"] = stacked(layer, f"mlp.experts.{{}}.{part}_proj.weight")
    both = layer["self_attn.kv_b_proj.weight"]
    if not split:
        return {**made, "attn_kv_b.weight": both}
    per_head = both.view(config["num_attention_heads"], -1, config["kv_lora_rank"])
    nope = config["qk_nope_head_dim"]
    return {**made, "attn_k_b.weight": per_head[:, :nope].transpose(1, 2), "attn_v_b.weight": per_head[:, nope:]}


def unsplit(config: Mapping[str, Any], layer: Tensors) -> Tensors:
    return deepseek(config, layer, split=False)


def deepseek_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of newer files, in which latent attention is that of one key."""
    rank, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
    numbers = {
        "attention.kv_lora_rank": rank,
        "attention.head_count_kv": 1,
        "attention.key_length": rank + rotated,
        "attention.value_length": rank,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rotated,
        "attention.value_length_mla": config["v_head_dim"],
        "rope.dimension_count": rotated,
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_gating_func": 2 if config["model_type"] == "deepseek_v3" else 1,
        "expert_group_count": config["n_group"],
        "expert_group_used_count": config["topk_group"],
    }
    if config.get("q_lora_rank"):
        numbers["attention.q_lora_rank"] = config["q_lora_rank"]
    found = {**sizes(config), **experts(config, "n_routed_experts"), **yarn(config["rope_parameters"])}
    weights = {"expert_weights_scale": float(config["routed_scaling_factor"])}
    if config["rope_parameters"].get("mscale_all_dim"):
        weights["rope.scaling.yarn_log_multiplier"] = 0.1 * config["rope_parameters"]["mscale_all_dim"]
    found |= {**{key: U32(value) for key, value in numbers.items() if value is not None}, **weights}
    return found | {"expert_weights_norm": bool(config.get("norm_topk_prob"))}


def older_deepseek_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of files from before that, with heads of their own."""
    found = {key: value for key, value in deepseek_keys(config).items() if not key.endswith("_mla")}
    key = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    heads = {"head_count_kv": config["num_attention_heads"], "key_length": key, "value_length": config["v_head_dim"]}
    return found | {f"attention.{name}": U32(value) for name, value in heads.items()}


def mixtral_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    base = {"rope.freq_base": float(config["rope_parameters"]["rope_theta"])}
    return {**sizes(config), **heads(config), **experts(config, "num_local_experts"), **base}


MIXTRAL = Family("llama", mixtral_keys, mixtral)
GEMMA3 = Family("gemma3", gemma3_keys, gemma3, lambda norm: norm + 1)
DEEPSEEK = Family("deepseek2", deepseek_keys, deepseek)
OLDER = Family("deepseek2", older_deepseek_keys, unsplit)
GPT_OSS = Family("gpt-oss", gpt_oss_keys, gpt_oss)
CASES: dict[str, tuple[str, Family, dict[str, Any]]] = {
    "mixtral": ("mixtral", MIXTRAL, {"sliding_window": None}),
    "gemma3": ("gemma3", GEMMA3, {"query_pre_attn_scalar": 16, "sliding_window_pattern": 6, "num_hidden_layers": 7}),
    "gpt_oss": ("gpt_oss", GPT_OSS, {}),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK, {}),
    "deepseek_v2-lite": ("deepseek_v2-lite", OLDER, {}),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK, {"mscale": 0.8}),
}


def make(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    source, _, changed = CASES[name]
    family = FAMILIES[source]
    rope = family.config.get("rope_parameters")
    if "mscale" in changed:  # files have one number for both
        changed = {"rope_parameters": {**rope, **changed}}
    monkeypatch.setitem(FAMILIES, name, type(family)(family.model_type, {**family.config, **changed}))
    return make_family(name, folder)


def to_gguf(family: Family, folder: Path, path: Path, **more: Any) -> Path:
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    made = {"token_embd.weight": tensors["model.embed_tokens.weight"]}
    made["output_norm.weight"] = family.norm(tensors["model.norm.weight"])
    if "lm_head.weight" in tensors:
        made["output.weight"] = tensors["lm_head.weight"]
    for number in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{number}."
        layer = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        made |= {f"blk.{number}.{name}": tensor.contiguous() for name, tensor in family.convert(config, layer).items()}
    keys = {f"{family.architecture}.{key}": value for key, value in {**family.keys(config), **more}.items()}
    return write_gguf(path, {"general.architecture": family.architecture, **keys}, made)


def logits(path: Path) -> Tensor:
    loaded = load_model(path, backend=CPUBackend(), dtype="float32")
    ids = random.Random(0).choices(range(3, VOCAB_SIZE), k=60)
    return PagedRunner(loaded, CPUBackend()).step([Extend("row", ids)])[0]


@pytest.mark.parametrize("name", CASES)
def test_a_gguf_file_gives_the_logits_of_the_hubs_layout(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(name, tmp_path / "plain", monkeypatch)
    expected = logits(folder)
    assert expected.std() > 0.5
    found = logits(to_gguf(CASES[name][1], folder, tmp_path / "m.gguf"))
    # Norms plus one lose their last bits, and numbers of the metadata are of single precision.
    exact = name in ("mixtral", "gpt_oss")
    torch.testing.assert_close(found, expected, atol=0 if exact else 2e-5, rtol=0)


def test_tensors_that_do_not_go_together_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make("deepseek_v2", tmp_path / "plain", monkeypatch)

    def crooked(config: Mapping[str, Any], layer: Tensors) -> Tensors:
        made = deepseek(config, layer)
        return {**made, "attn_v_b.weight": made["attn_v_b.weight"][:, :, :-1]}

    with pytest.raises(ModelError, match=r"kv_b_proj.weight cannot be made of blk\.0\.attn_k_b.weight \[") as error:
        logits(to_gguf(Family("deepseek2", deepseek_keys, crooked), folder, tmp_path / "m.gguf"))
    assert "\n" not in str(error.value)


def test_a_key_that_a_family_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make("gemma3", tmp_path / "plain", monkeypatch)
    path = to_gguf(GEMMA3, folder, tmp_path / "m.gguf", **{"final_logit_softcapping": 30.0})
    with pytest.raises(ModelError, match=r"gemma3\.final_logit_softcapping"):
        logits(path)
