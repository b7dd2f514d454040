"""config.json and generation_config.json: both generations of the format, and a refusal that names what is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_config

from sglite.runtime.model.architectures import READERS, parse_config, read_config
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import MAX_JSON_BYTES, read_json
from sglite.runtime.model.generation import GenerationDefaults, read_generation_defaults
from sglite.runtime.model.layers.rotary import attention_scale, inverse_frequencies
from sglite.runtime.model.registry import ARCHITECTURES
from sglite.runtime.model.rope_config import RopeConfig


def test_old_and_new_style_of_the_same_config_read_the_same() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = tiny_config(
        "llama",
        rope_theta=5e5,
        rope_scaling={"type": "llama3", **scaling},
        dtype=None,
        torch_dtype="bfloat16",
    )
    new = tiny_config(
        "llama",
        rope_theta=None,
        rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling},
        dtype="bfloat16",
    )
    assert parse_config(old) == parse_config(new)
    assert parse_config(new).rope.theta == 5e5 and parse_config(new).dtype == "bfloat16"


def test_nested_text_config_is_the_body_and_the_outside_fills_its_gaps() -> None:
    flat = tiny_config("qwen3", tie_word_embeddings=True)
    outer = {name: flat.pop(name) for name in ("architectures", "tie_word_embeddings", "dtype", "eos_token_id")}
    assert parse_config({**outer, "text_config": flat}) == parse_config({**outer, **flat})


def test_defaults_that_configs_leave_out() -> None:
    config = parse_config(tiny_config("llama", head_dim=None, num_key_value_heads=None, eos_token_id=[1, 2]))
    assert (config.head_dim, config.num_kv_heads, config.eos_token_ids) == (16, 4, (1, 2))
    assert config.rope == RopeConfig(theta=10000.0)


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}, 512),
        ({"type": "linear", "factor": 4.0}, 2048),
        ({"rope_type": "default"}, 512),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1,
                "high_freq_factor": 4,
                "original_max_position_embeddings": 64,
            },
            512,
        ),
    ],
)
def test_context_includes_what_rope_scaling_adds(rope: dict[str, Any], context: int) -> None:
    assert parse_config(tiny_config(rope_scaling=rope)).max_context == context


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "field 'hidden_size' is missing; it must be a positive integer"),
        ({"hidden_size": "64"}, "field 'hidden_size' is '64'; it must be a positive integer"),
        ({"num_hidden_layers": 0}, "field 'num_hidden_layers' is 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is more than 1000"),
        ({"vocab_size": True}, "field 'vocab_size' is True"),
        ({"rms_norm_eps": -1.0}, "field 'rms_norm_eps' is -1.0; it must be a number above 0"),
        ({"rope_theta": math.inf}, "field 'rope_theta' is inf; it must be a finite number"),
        ({"tie_word_embeddings": 1}, "field 'tie_word_embeddings' is 1; it must be true or false"),
        ({"dtype": 16}, "field 'dtype' is 16; it must be a string"),
        ({"eos_token_id": [-1]}, "field 'eos_token_id' is [-1]"),
        ({"architectures": []}, "field 'architectures' is []"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is not a multiple of num_key_value_heads=3"),
        ({"head_dim": None, "num_attention_heads": 6}, "hidden_size=64 is not a multiple of num_attention_heads=6"),
        ({"head_dim": 15}, "head_dim=15 is odd"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported"),
        (
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": "2"},
            "field 'max_window_layers' is '2'; it must be a number of layers",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "is not supported; only full_attention"),
        ({"quantization": {"bits": 4}}, "field 'quantization' is that of MLX"),
        ({"architectures": ["MistralForCausalLM"], "model_type": "ministral3"}, "model_type='ministral3' is not"),
        ({"layer_types": "all"}, "field 'layer_types' is 'all'; it must be a list"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic' is not supported (its keys change"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type='longrope' is not supported; supported: default,"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: field 'factor' is missing"),
        ({"rope_scaling": []}, "field 'rope_scaling' is []; it must be an object"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "field 'low_freq_factor' is missing"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
            "high_freq_factor=4 must exceed low_freq_factor=4",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "per layer type"),
    ],
)
def test_a_bad_field_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    raw = tiny_config()
    raw.update(change)
    raw = {name: value for name, value in raw.items() if value is not None}
    with pytest.raises(ModelError) as error:
        parse_config(raw, "folder/config.json")
    assert words in str(error.value)
    assert "folder/config.json" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_config_or_with_a_broken_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"it has no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="holds list, not an object"):
        read_config(tmp_path)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(ModelError, match="more than the"):
        read_json(tmp_path / "config.json")


def test_an_unknown_architecture_is_told_the_nearest_known_ones() -> None:
    words = "'Qwen3MoeForCausalLMEagle' is not supported; nearest of the .* that are: Qwen3MoeForCausalLM, Qwen"
    with pytest.raises(ModelError, match=words):
        parse_config(tiny_config(architectures=["Qwen3MoeForCausalLMEagle"]))


def test_every_config_that_is_read_has_a_class_that_serves_it() -> None:
    assert ARCHITECTURES.keys() == READERS.keys()


def test_generation_defaults_join_end_ids_of_both_files(tmp_path: Path) -> None:
    config = parse_config(tiny_config(eos_token_id=2))
    assert read_generation_defaults(tmp_path, config) == GenerationDefaults(eos_token_ids=(2,))
    raw = {"eos_token_id": [5, 2], "temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.1}
    (tmp_path / "generation_config.json").write_text(json.dumps(raw))
    assert read_generation_defaults(tmp_path, config) == GenerationDefaults(
        eos_token_ids=(2, 5), temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.1
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_p": "high"}))
    with pytest.raises(ModelError, match="'top_p' is 'high'; it must be a finite number"):
        read_generation_defaults(tmp_path, config)


def test_yarn_without_stretch_keeps_the_plain_frequencies() -> None:
    yarn = RopeConfig(rope_type="yarn", factor=1.0, original_max_positions=512)
    torch.testing.assert_close(inverse_frequencies(yarn, 16), inverse_frequencies(RopeConfig(), 16))
    assert attention_scale(yarn) == 1.0
