"""Configs as published models have them: all are read, and what is built of them is the published model.

Nothing is loaded: models are built on the ``meta`` device, checkpoints are their tables of names, types and shapes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from published_models import CONFIGS, DRAFT, MODELS
from torch import Tensor

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.architectures import parse_config
from sglite.runtime.model.checkpoint import TensorInfo
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.layers.cache_layout import cache_groups
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.model.loader import check_fit, resolve_dtype, weight_bytes
from sglite.runtime.model.registry import model_class
from sglite.runtime.quant.dequantise import dequantised

NOT_IN_TRANSFORMERS = {"qwen", "deepseek"}


@cache
def config_of(name: str) -> ModelConfig:
    return parse_config(CONFIGS[name])


@cache
def weights_of(name: str) -> WeightTable:
    """What the loader asks for, from a checkpoint in the hub's layout."""
    return built(config_of(name), fused_experts(config_of(name)))


def built(config: ModelConfig, found: Mapping[str, tuple[int, ...]] | None = None) -> WeightTable:
    weights = WeightTable(torch.bfloat16, torch.device("meta"), found)
    model_class(config)(config, weights, CPUBackend())
    return weights


def fused_experts(config: ModelConfig) -> dict[str, tuple[int, ...]] | None:
    """Qwen3.5 keeps all experts of a layer in two tensors; other families keep them one by one, or need not ask."""
    moe = config.moe
    if moe is None or not config.architecture.startswith("Qwen3_5Moe"):
        return None
    shape = (moe.num_experts, 2 * moe.intermediate_size, config.hidden_size)
    return {f"model.layers.{layer}.mlp.experts.gate_up_proj": shape for layer in range(config.num_layers)}


def elements(weights: WeightTable) -> int:
    return sum(part.numel() for part in weights.parts.values())


@dataclass(frozen=True)
class Listing:
    """A checkpoint of which only the names, types and shapes are known."""

    tensors: dict[str, TensorInfo]
    folder: Path = field(default=Path("listing"))

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Ones."""
        for name in names:
            yield name, torch.ones(self.tensors[name].shape)


def listing(table: Mapping[str, tuple[str, tuple[int, ...]]]) -> Listing:
    return Listing({name: TensorInfo("file", shape, dtype, name) for name, (dtype, shape) in table.items()})


def test_every_config_here_has_its_expectations() -> None:
    assert set(CONFIGS) == set(MODELS)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_means_what_the_model_is(name: str) -> None:
    config, published = config_of(name), MODELS[name]
    found = {path: reduce(getattr, path.split("."), config) for path in published.fields}
    assert found == {
        path: pytest.approx(value) if isinstance(value, float) else value for path, value in published.fields.items()
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_has_as_many_parameters_as_published(name: str) -> None:
    weights = weights_of(name)
    assert elements(weights) == pytest.approx(MODELS[name].parameters, rel=0.005)
    needed = weight_bytes(config_of(name), torch.bfloat16, CPUBackend(), fused_experts(config_of(name)))
    assert needed == sum(part.nbytes for part in weights.parts.values())  # nothing is allocated that nothing fills


@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_takes_as_much_cache_as_the_architecture_says(name: str) -> None:
    groups = cache_groups(config_of(name), torch.bfloat16)
    assert sum(group.bytes_per_token for group in groups) == MODELS[name].cache
    assert sum(group.bytes_per_state for group in groups) == MODELS[name].state


@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_of_the_checkpoint_are_asked_for_by_their_names(name: str) -> None:
    config, published, weights = config_of(name), MODELS[name], weights_of(name)
    table = model_class(config).name_table(config)
    known = {*weights.parts, *weights.tied}
    assert [theirs for theirs in published.names if table.of(theirs) not in known] == []
    assert [theirs for theirs in published.left if table.of(theirs) is not None] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CONFIGS if CONFIGS[n]["model_type"] not in NOT_IN_TRANSFORMERS])
def test_it_has_exactly_the_parameters_of_transformers_model(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = {key: value for key, value in CONFIGS[name].items() if key not in ("quantization_config", "auto_map")}
    inner = dict(raw.get("text_config", raw))
    kind = inner.pop("model_type")
    config = AutoConfig.for_model(kind, **inner)
    if "text_config" in raw and "tie_word_embeddings" in raw:
        config.tie_word_embeddings = raw["tie_word_embeddings"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    biases = sum(v.numel() for n, v in model.named_buffers() if n.endswith("e_score_correction_bias"))
    assert elements(weights_of(name)) == sum(p.numel() for p in model.parameters()) + biases


def test_the_largest_model_is_built_in_no_time() -> None:
    start = time.perf_counter()
    built(parse_config(CONFIGS["DeepSeek-V3"]))
    assert time.perf_counter() - start < 10


def test_layers_that_draft_are_asked_for_where_they_are_wanted() -> None:
    """11.5 billion parameters of their own, embedding and head are the model's."""
    config = replace(config_of("DeepSeek-V3"), drafts=True)
    weights = built(config)
    assert elements(weights) - elements(weights_of("DeepSeek-V3")) == pytest.approx(11.5e9, rel=0.01)
    assert {model_class(config).name_table(config).of(name) for name in DRAFT} <= {*weights.parts, *weights.tied}
    assert sum(group.bytes_per_token for group in cache_groups(config, torch.bfloat16)) == 62 * 576 * 2


def published_v2_lite() -> dict[str, tuple[str, tuple[int, ...]]]:
    """All 5291 tensors of DeepSeek-V2-Lite-Chat's files."""
    hidden, layers, experts = 2048, range(27), range(64)
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (102400, hidden), "norm": (hidden,)}
    for i in layers:
        attention = {"q_proj": (3072, hidden), "kv_a_proj_with_mqa": (576, hidden), "kv_a_layernorm": (512,)}
        attention |= {"kv_b_proj": (4096, 512), "o_proj": (hidden, hidden)}
        shapes |= {f"layers.{i}.self_attn.{part}": shape for part, shape in attention.items()}
        shapes |= {f"layers.{i}.{norm}": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        sizes = {f"mlp.experts.{e}": 1408 for e in experts} | {"mlp.shared_experts": 2816} if i else {"mlp": 10944}
        for part, size in sizes.items():
            shapes |= {f"layers.{i}.{part}.{side}_proj": (size, hidden) for side in ("gate", "up")}
            shapes[f"layers.{i}.{part}.down_proj"] = (hidden, size)
        if i:
            shapes[f"layers.{i}.mlp.gate"] = (64, hidden)
    named = {f"model.{name}.weight": ("BF16", shape) for name, shape in shapes.items()}
    return {**named, "lm_head.weight": ("BF16", (102400, hidden))}


def test_a_whole_checkpoint_fits_to_the_last_tensor() -> None:
    table = published_v2_lite()
    assert len(table) == 5291
    name = "DeepSeek-V2-Lite-Chat, written by transformers 5"
    check_fit(listing(table), weights_of(name), config_of(name))
    table["model.layers.26.mlp.gate.e_score_correction_bias"] = ("F32", (64,))
    with pytest.raises(ModelError, match=r"1 unexpected: model\.layers\.26\.mlp\.gate\.e_score_correction_bias"):
        check_fit(listing(table), weights_of(name), config_of(name))


Q, MLP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
AWQ = {
    **{f"{Q}.qweight": ("I32", (3584, 448)), f"{Q}.qzeros": ("I32", (28, 448)), f"{Q}.scales": ("F16", (28, 3584))},
    **{
        f"{MLP}.qweight": ("I32", (18944, 448)),
        f"{MLP}.qzeros": ("I32", (148, 448)),
        f"{MLP}.scales": ("F16", (148, 3584)),
    },
}
GPTQ = {
    **{f"{Q}.qweight": ("I32", (448, 3584)), f"{Q}.qzeros": ("I32", (28, 448)), f"{Q}.scales": ("F16", (28, 3584))},
    **{f"{Q}.g_idx": ("I32", (3584,)), f"{Q}.bias": ("F16", (3584,))},
}
INT8 = {f"{Q}.weight": ("I8", (3584, 3584)), f"{Q}.weight_scale": ("BF16", (3584, 1))}
FP8 = {f"{Q}.weight": ("F8_E4M3", (3584, 3584)), f"{Q}.weight_scale": ("BF16", (3584, 1))}
A, KV = "model.layers.0.self_attn.q_a_proj.weight", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
EXPERT = "model.layers.60.mlp.experts.255.down_proj.weight"
BLOCKS = {
    **{A: ("F8_E4M3", (1536, 7168)), f"{A}_scale_inv": ("F32", (12, 56))},
    **{KV: ("F8_E4M3", (576, 7168)), f"{KV}_scale_inv": ("F32", (5, 56))},
    **{EXPERT: ("F8_E4M3", (7168, 2048)), f"{EXPERT}_scale_inv": ("F32", (56, 16))},
}
UP, DOWN = "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"
MXFP4 = {
    **{f"{UP}_blocks": ("U8", (32, 5760, 90, 16)), f"{UP}_scales": ("U8", (32, 5760, 90))},
    **{f"{DOWN}_blocks": ("U8", (32, 2880, 90, 16)), f"{DOWN}_scales": ("U8", (32, 2880, 90))},
}


@pytest.mark.parametrize(
    ("name", "stored", "whole"),
    [
        ("Qwen2.5-7B-Instruct-AWQ", AWQ, {f"{Q}.weight", f"{MLP}.weight"}),
        ("Qwen2.5-7B-Instruct-GPTQ-Int4", GPTQ, {f"{Q}.weight", f"{Q}.bias"}),
        ("Qwen2.5-7B-Instruct-quantized.w8a8", INT8, {f"{Q}.weight"}),
        ("Qwen2.5-7B-Instruct-FP8-dynamic", FP8, {f"{Q}.weight"}),
        ("DeepSeek-V3", BLOCKS, {A, KV, EXPERT}),
        ("DeepSeek-V3.2-Exp", BLOCKS, {A, KV, EXPERT}),
        ("gpt-oss-20b", MXFP4, {UP, DOWN}),
    ],
)
def test_quantised_tensors_stand_for_those_that_are_asked_for(
    name: str, stored: dict[str, tuple[str, tuple[int, ...]]], whole: set[str]
) -> None:
    config, weights = config_of(name), weights_of(name)
    assert config.quantization is not None and config.quantization == CONFIGS[name]["quantization_config"]
    found = dequantised(listing(stored), config.quantization).tensors
    assert {theirs: info.shape for theirs, info in found.items()} == {ours: weights.shape(ours) for ours in whole}


@pytest.mark.parametrize(
    ("stored", "loaded"), [("F32", torch.float32), ("BF16", torch.bfloat16), ("F64", torch.float32)]
)
def test_weights_are_loaded_as_they_are_stored_where_the_config_names_no_type(stored: str, loaded: torch.dtype) -> None:
    backend, config = CPUBackend(), config_of("Qwen-7B")
    few = ("F32" if stored == "BF16" else "BF16", (3,))
    source = listing({"few": few, "most": (stored, (7, 7)), "counts": ("I64", (99, 99))})
    assert resolve_dtype("auto", config, backend, source) == loaded
    assert resolve_dtype("auto", replace(config, dtype="float32"), backend, source) == torch.float32


def test_weights_that_are_made_are_made_in_bfloat16_where_the_config_names_no_type() -> None:
    source = dequantised(listing(BLOCKS), CONFIGS["DeepSeek-V3"]["quantization_config"])
    assert {info.dtype for info in source.tensors.values()} == {"F32"}
    for name in ("DeepSeek-V3", "gpt-oss-20b"):
        unsaid = replace(config_of(name), dtype="")
        assert resolve_dtype("auto", unsaid, CPUBackend(), source) == torch.bfloat16
        assert resolve_dtype("auto", unsaid, CPUBackend()) == torch.bfloat16


def test_a_rope_of_gemma_in_the_spelling_of_release_candidates() -> None:
    """They wrote what is of no kind of layer beside the kinds, where it says nothing."""
    raw = CONFIGS["gemma-3-4b-it"]
    kinds = {
        "full_attention": {"factor": 8.0, "rope_theta": 1000000.0, "rope_type": "linear"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    }
    text = {key: value for key, value in raw["text_config"].items() if key != "rope_scaling"}
    mixed = {**kinds, "rope_theta": None, "rope_type": "default"}
    assert parse_config({**raw, "text_config": {**text, "rope_parameters": mixed}}) == config_of("gemma-3-4b-it")
    with pytest.raises(ModelError, match="rope_parameters has rope_theta; only full_attention and sliding_attention"):
        parse_config({**raw, "text_config": {**text, "rope_parameters": {**kinds, "rope_theta": 5.0}}})


def with_field(name: str, **changes: Any) -> ModelConfig:
    return parse_config({**CONFIGS[name], **changes})


def test_attention_in_chunks_ends_the_context_and_needs_its_length() -> None:
    name = "Qwen2.5-7B-Instruct-1M"
    assert with_field(name, dual_chunk_attention_config=None).max_context == 1010000
    assert with_field(name, max_position_embeddings=4096).max_context == 4096
    with pytest.raises(ModelError, match="dual_chunk_attention_config: field 'original_max_position_embeddings' is mi"):
        with_field(name, dual_chunk_attention_config={"chunk_size": 262144})
