"""Families with sliding windows as the hub has them: old configs and new, names of two generations, the text part of
models that also see. What transformers makes of the same files is the measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_families import COMMON, FAMILIES, make_family, randomise
from paged_runner import Extend, PagedRunner
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB_SIZE
from torch import Tensor

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.architectures import parse_config
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.loader import load_model

IDS = torch.randint(3, VOCAB_SIZE, (50,), generator=torch.Generator().manual_seed(0)).tolist()
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWERS = {"gemma3": "siglip_vision_model", "mistral3": "pixtral"}
TEXTS = {"gemma3": "gemma3_text", "mistral3": "mistral"}
WRAPPERS = list(TOWERS)


def our_logits(folder: Path) -> Tensor:
    backend = CPUBackend()
    return PagedRunner(load_model(folder, backend=backend), backend).step([Extend("row", IDS)])[0]


@torch.no_grad()
def save_wrapper(kind: str, folder: Path) -> Tensor:
    """Write a model with a tower for images, by transformers; returns the logits of ``IDS``."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = {**COMMON, **FAMILIES[kind.rstrip("3") if kind == "mistral3" else kind].config, "model_type": TEXTS[kind]}
    tower = {**TOWER, "model_type": TOWERS[kind], "image_size": 28, "patch_size": 14}
    for_model: Any = AutoConfig.for_model
    make: Any = AutoModelForImageTextToText.from_config
    model = make(for_model(kind, text_config=text, vision_config=tower), attn_implementation="eager").eval()
    randomise(model, 1)
    model.save_pretrained(folder)
    logits: Tensor = model(torch.tensor([IDS]), use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_text_part_of_a_model_that_sees(kind: str, tmp_path: Path) -> None:
    expected = save_wrapper(kind, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "language_model.model.norm.weight" in tensors and any(name.startswith("vision_tower") for name in tensors)
    torch.testing.assert_close(our_logits(tmp_path), expected, atol=1e-4, rtol=0)
    renamed = {_newer_name(name): tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    torch.testing.assert_close(our_logits(tmp_path), expected, atol=1e-4, rtol=0)


def _newer_name(name: str) -> str:
    return f"model.{name.replace('language_model.model.', 'language_model.')}"


def test_mixtral_and_gpt_oss_are_written_as_the_hub_has_them(tmp_path: Path) -> None:
    mixtral = load_file(make_family("mixtral", tmp_path / "mixtral") / "model.safetensors")
    assert mixtral["model.layers.1.block_sparse_moe.experts.7.w2.weight"].shape == (64, 96)
    gpt_oss = load_file(make_family("gpt_oss", tmp_path / "gpt_oss") / "model.safetensors")
    assert gpt_oss["model.layers.1.mlp.experts.gate_up_proj"].shape == (8, 64, 80)
    assert gpt_oss["model.layers.1.mlp.experts.down_proj"].shape == (8, 40, 64)


GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "eos_token_id": [1, 106],
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"model_type": "siglip_vision_model"},
}
GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
GPT_OSS_20B = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "attention_bias": True,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "vocab_size": 201088,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
NEMO = {
    **MISTRAL_7B,
    "head_dim": 128,
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "rope_theta": 1e6,
    "sliding_window": None,
}
MISTRAL_SMALL = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "text_config": {**NEMO, "rope_theta": 1e9, "vocab_size": 131072, "intermediate_size": 32768},
    "vision_config": {"model_type": "pixtral"},
}
MIXTRAL = {
    **MISTRAL_7B,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "rope_theta": 1e6,
    "sliding_window": None,
}
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 20,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "sliding_window": 131072,
    "vocab_size": 152064,
}
MISTRAL_SILENT = {name: value for name, value in MISTRAL_7B.items() if name != "sliding_window"}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3-4b": GEMMA3_4B,
    "gemma3-1b": GEMMA3_1B,
    "gemma3-bare": {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"},
    "gpt-oss": GPT_OSS_20B,
    "gpt-oss-bare": {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"},
    "mistral": MISTRAL_7B,
    "mistral-silent": MISTRAL_SILENT,
    "nemo": NEMO,
    "mistral-small": MISTRAL_SMALL,
    "mixtral": MIXTRAL,
    "mixtral-bare": {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"},
    "qwen": QWEN,
    "qwen-window": {**QWEN, "use_sliding_window": True},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rewritten", [False, True], ids=["as on the hub", "as transformers writes it"])
def test_a_config_means_what_transformers_takes_it_to_mean(name: str, rewritten: bool, tmp_path: Path) -> None:
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    load: Any = AutoConfig.from_pretrained
    theirs = load(tmp_path)
    raw = CONFIGS[name]
    if rewritten:
        theirs.save_pretrained(tmp_path)
        raw = json.loads((tmp_path / "config.json").read_text())
    assert meaning(parse_config(raw)) == expected_meaning(theirs)


def meaning(config: ModelConfig) -> dict[str, Any]:
    local = config.local_rope or config.rope
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_context,
        "windows": [config.window(layer) for layer in range(config.num_layers)],
        "ropes": [(rope.theta, rope.rope_type, rope.factor) for rope in (config.rope, local)],
        "scale": config.attention_scale or config.head_dim**-0.5,
        "experts": (config.moe.num_experts, config.moe.top_k) if config.moe is not None else None,
        "eos": config.eos_token_ids,
    }


def expected_meaning(whole: Any) -> dict[str, Any]:
    config = whole.get_text_config()
    window = getattr(config, "sliding_window", None)
    plain = window is not None and config.model_type in ("mistral", "mixtral")
    kinds = ["sliding_attention" if plain else "full_attention"] * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or kinds
    ropes = config.rope_parameters
    both = [ropes.get(kind, ropes) for kind in ("full_attention", "sliding_attention")]
    eos = whole.eos_token_id if getattr(whole, "eos_token_id", None) is not None else config.eos_token_id
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        **{name: getattr(config, name) for name in (*names, "rms_norm_eps", "max_position_embeddings")},
        "head_dim": head_dim,
        "windows": [window if kind == "sliding_attention" else None for kind in kinds],
        "ropes": [(rope["rope_theta"], rope["rope_type"], rope.get("factor", 1.0)) for rope in both],
        "scale": getattr(config, "query_pre_attn_scalar", head_dim) ** -0.5,
        "experts": (config.num_local_experts, config.num_experts_per_tok) if hasattr(config, "num_experts") else None,
        "eos": tuple(eos) if isinstance(eos, list) else (() if eos is None else (eos,)),
    }


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("gemma3-1b", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported; only null is"),
        ("gemma3-1b", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not supported"),
        ("gemma3-1b", {"use_bidirectional_attention": True}, "use_bidirectional_attention=true is not supported"),
        ("gemma3-1b", {"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters has rope_theta; only full_attention"),
        ("gemma3-1b", {"sliding_window_pattern": 0}, "field 'sliding_window_pattern' is 0"),
        ("gemma3-1b", {"layer_types": ["full_attention", "chunked_attention"]}, "'chunked_attention'"),
        ("gpt-oss", {"swiglu_limit": 5.0}, "swiglu_limit=5 is not supported; only 7 is"),
        ("gpt-oss", {"swiglu_alpha": 1.0}, "swiglu_alpha=1 is not supported; only 1.702 is"),
        ("gpt-oss", {"num_experts_per_tok": 40}, "num_experts_per_tok=40 exceeds num_local_experts=32"),
        ("gpt-oss", {"sliding_window": -1}, "field 'sliding_window' is -1"),
        ("mistral", {"layer_types": ["full_attention"] * 32}, "layer_types ['full_attention'] is not supported"),
        ("mistral", {"sliding_window": 0}, "field 'sliding_window' is 0; it must be a positive integer"),
    ],
)
def test_what_would_change_results_and_is_not_served_is_refused(name: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as error:
        parse_config({**CONFIGS[name], **change})
    assert words in str(error.value) and "\n" not in str(error.value)
