"""What callers may ask of a checkpoint's quantisation and of the cache's type, and what they are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_checkpoints import FORMATS, write_quantised
from tiny_models import make_checkpoint

from sglite import Engine
from sglite.runtime.config import ConfigError, EngineArgs
from sglite.runtime.executor.build import in_cache_dtype
from sglite.runtime.model.architectures import read_config
from sglite.runtime.model.errors import ModelError
from sglite.runtime.protocol import GroupSpec
from sglite.runtime.quant.methods import check_request, summary

AGREE = {
    "fp8": ["fp8-block"],
    "compressed-tensors": ["ct-int8", "ct-w4a16"],
    "w8a8_int8": ["ct-int8"],
    "awq": ["awq"],
    "awq_marlin": ["awq"],
    "gptq": ["gptq-v2-asym"],
    "gptq_marlin": ["gptq"],
    "moe_wna16": ["awq", "gptq"],
    "modelopt_fp8": ["modelopt"],
    "auto": ["fp8-block", "awq"],
}


@pytest.mark.parametrize(("asked", "name"), [(asked, name) for asked, names in AGREE.items() for name in names])
def test_a_name_that_agrees_is_taken(asked: str, name: str) -> None:
    check_request(EngineArgs(quantization=asked).quantization, FORMATS[name].config, Path("m"))


def test_a_name_that_does_not_agree_is_refused_with_what_is_there() -> None:
    with pytest.raises(ModelError, match=r"quantization='awq': m is quantised with gptq; leave it out"):
        check_request("awq", FORMATS["gptq"].config, Path("m"))
    with pytest.raises(ModelError, match=r"quantization='fp8': m is not quantised; .* with int8 or int4"):
        check_request("fp8", None, Path("m"))


@pytest.mark.parametrize("name", ["bitsandbytes", "w4afp8", "torchao"])
def test_a_name_that_nothing_is_known_of_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"quantization='{name}' is unknown; int8 or int4 quantise a model while"):
        EngineArgs(quantization=name)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_what_is_quantised_is_not_quantised_again(name: str) -> None:
    check_request(EngineArgs(quantization=name).quantization, None, Path("m"))
    for settings, method in ((FORMATS["gptq"].config, "gptq"), ({"quant_method": "gguf"}, "gguf")):
        with pytest.raises(ModelError, match=rf"quantization='{name}': m is quantised already, with {method}, and"):
            check_request(name, settings, Path("m"))


@pytest.mark.parametrize("name", ["fp8", "fp8_e4m3", "fp8_e5m2", "int4", "fp4_e2m1", "float16"])
def test_types_that_the_cache_has_not_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"kv_cache_dtype='{name}': .* use auto, bfloat16, bf16, float32, int8"):
        EngineArgs(kv_cache_dtype=name)


def test_a_cache_of_another_type_has_its_size_and_states_keep_theirs() -> None:
    paged = GroupSpec(name="attention", dtype="float32", bytes_per_token=4096)
    state = GroupSpec(name="recurrent", kind="state", layout="recurrent", bytes_per_state=64)
    assert in_cache_dtype([paged, state], "auto") == [paged, state]
    half, same = in_cache_dtype([paged, state], "bf16")
    assert (half.dtype, half.bytes_per_token, same) == ("bfloat16", 2048, state)
    assert in_cache_dtype([half], "float32") == [paged]


def test_a_cache_of_int8_has_scales_beside_its_numbers_and_no_latents() -> None:
    size = 3 * 2 * 2 * 64 * 2
    paged = GroupSpec(name="attention", num_layers=3, num_kv_heads=2, dtype="bfloat16", bytes_per_token=size)
    (small,) = in_cache_dtype([paged], "int8")
    assert (small.dtype, small.bytes_per_token) == ("int8", 3 * 2 * 2 * (64 + 4))
    with pytest.raises(ConfigError, match="kv_cache_dtype='int8': the latents of group 'a' are kept in floating point"):
        in_cache_dtype([GroupSpec(name="a", layout="mla")], "int8")


EXPORTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gptq": ("quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False}, "gptq, 4 bits"),
    "awq": (
        "quant_config.json",
        {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"},
        "awq, 4 bits",
    ),
    "modelopt": (
        "hf_quant_config.json",
        {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}},
        "modelopt, 8 bits",
    ),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_files_of_older_exports_are_read(tmp_path: Path, name: str) -> None:
    from paged_runner import Extend, PagedRunner

    from sglite.runtime.backend.cpu import CPUBackend
    from sglite.runtime.model.loader import load_model

    write_quantised(make_checkpoint(tmp_path / "source"), name, tmp_path / "quantised", tmp_path / "plain")
    config = json.loads((tmp_path / "quantised" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "quantised" / "config.json").write_text(json.dumps(config))
    file, settings, told = EXPORTS[name]
    (tmp_path / "quantised" / file).write_text(json.dumps(settings))
    found = read_config(tmp_path / "quantised").quantization
    assert found is not None and summary(found) == told
    results = []
    for folder in ("quantised", "plain"):
        runner = PagedRunner(load_model(tmp_path / folder, backend=CPUBackend()), CPUBackend())
        results.append(runner.step([Extend("row", [5, 9, 77])])[0])
    assert torch.equal(*results)


def test_the_older_name_of_the_field_is_read(tmp_path: Path) -> None:
    config = FORMATS["ct-int8"].config
    folder = make_checkpoint(tmp_path / "m", compression_config=config)
    found = read_config(folder).quantization
    assert found == config and summary(found) == "compressed-tensors, 8 bits"


def test_engines_say_how_their_weights_are_quantised(tmp_path: Path) -> None:
    write_quantised(make_checkpoint(tmp_path / "source"), "gptq", tmp_path / "quantised", tmp_path / "plain")
    common: dict[str, Any] = {"skip_tokenizer_init": True, "max_total_tokens": 256}
    sampling = {"temperature": 0, "max_new_tokens": 5, "ignore_eos": True}
    with Engine(tmp_path / "quantised", quantization="gptq", kv_cache_dtype="bfloat16", **common) as engine:
        said = engine.config.quantization
        assert said is not None and said.startswith("gptq, 4 bits") and engine.config.cache_dtype == "bfloat16"
        assert engine.config.origins["cache_dtype"] == "argument"
        engine.generate(input_ids=[5, 6, 7], sampling_params=sampling)
    with Engine(tmp_path / "plain", **common) as engine:
        assert engine.config.quantization is None and engine.config.cache_dtype == "float32"
    with pytest.raises(ModelError, match="is quantised with gptq"):
        Engine(tmp_path / "quantised", quantization="fp8", **common)


def test_the_banner_says_it() -> None:
    from sglite.runtime.parse.detect import Formats
    from sglite.runtime.serve.banner import EngineFacts, banner
    from sglite.runtime.serve.options import ServeOptions

    facts = EngineFacts("m", 8, 16, "cpu", "bfloat16", "native", quantization="fp8, 8 bits")
    said = banner(facts, ServeOptions(), "http://h", Formats(None, None))
    assert "fp8, 8 bits; computed in bfloat16" in said
