"""Whole quantised models give, to the bit, what the same models give with the weights that they stand for; and, where
transformers unpacks a format rightly, what transformers gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from model_families import COMMON, FAMILIES, random_model
from paged_runner import Extend, PagedRunner
from quantised_checkpoints import FORMATS, microscaled, write_folder, write_quantised
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB_SIZE, make_checkpoint
from torch import Tensor

from sglite import Engine
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.architectures import read_config
from sglite.runtime.model.loader import load_model, open_source

IDS = list(range(3, VOCAB_SIZE, 9))
SIZES = {"num_hidden_layers": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "v_head_dim": 16}
"""Sizes that packed words and groups divide."""
KINDS = {"qwen3_moe": SIZES, "qwen2_moe": SIZES, "deepseek_v3": {**SIZES, **LATENT}}
CHECKED = [("dense", name) for name in FORMATS] + [
    (kind, name) for kind in KINDS for name in ("fp8-block", "fp8-small-block", "ct-w4a16", "gptq-act-order", "awq")
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unquantised checkpoints, each written once."""
    root = tmp_path_factory.mktemp("plain")

    @cache
    def make(kind: str) -> Path:
        if kind == "dense":
            return make_checkpoint(root / kind)
        family = FAMILIES[kind]
        sizes = {name: size for name, size in KINDS[kind].items() if name in family.config or name in COMMON}
        random_model(replace(family, config={**family.config, **sizes})).save_pretrained(root / kind)
        return root / kind

    return make


def logits(folder: Path) -> Tensor:
    return PagedRunner(load_model(folder, backend=CPUBackend()), CPUBackend()).step([Extend("row", IDS)])[0]


@pytest.mark.parametrize(("kind", "name"), CHECKED)
def test_a_quantised_model_is_the_model_with_its_weights(
    made: Callable[[str], Path], tmp_path: Path, kind: str, name: str
) -> None:
    write_quantised(made(kind), name, tmp_path / "quantised", tmp_path / "plain")
    found = logits(tmp_path / "quantised")
    assert found.std() > 0.3 and torch.equal(found, logits(tmp_path / "plain"))
    assert not torch.equal(found, logits(made(kind)))


def oracle_weights(folder: Path, **options: Any) -> dict[str, Tensor]:
    """The weights that transformers makes of a checkpoint."""
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    weights: dict[str, Tensor] = load(folder, **options).state_dict()
    return weights


def test_fp8_blocks_are_what_transformers_makes_of_them(tmp_path: Path) -> None:
    """transformers divides matrices into equal blocks, so it is right where there are no partial ones."""
    config: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 2, "head_dim": 128}
    make_checkpoint(tmp_path / "source", **config, num_key_value_heads=1, dtype="bfloat16")
    write_quantised(tmp_path / "source", "fp8-block", tmp_path / "quantised", tmp_path / "plain")
    expected = oracle_weights(tmp_path / "quantised", dtype=torch.bfloat16)
    model_config = read_config(tmp_path / "quantised")
    source = open_source(tmp_path / "quantised", model_config)
    found = {name: tensor.bfloat16() for name, tensor in source.read(set(source.tensors))}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_mxfp4_experts_are_what_transformers_makes_of_them(tmp_path: Path) -> None:
    family = FAMILIES["gpt_oss"]
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    random_model(replace(family, config={**family.config, **sizes})).save_pretrained(tmp_path / "source")
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(tmp_path / "source" / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            made = [microscaled(expert.T.contiguous())[0] for expert in tensor]
            blocks = torch.stack([parts["weight_packed"] for parts in made])
            tensors[f"{name}_blocks"] = blocks.view(*blocks.shape[:2], -1, 16)
            tensors[f"{name}_scales"] = torch.stack([parts["weight_scale"] for parts in made])
        else:
            tensors[name] = tensor.bfloat16()
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": skipped}
    folder = write_folder(
        tmp_path / "quantised", {**config, "dtype": "bfloat16", "quantization_config": quantization}, tensors
    )
    expected = oracle_weights(folder, dtype=torch.bfloat16)
    source = open_source(folder, read_config(folder))
    found = dict(source.read(set(source.tensors)))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    whole = write_folder(tmp_path / "plain", {**config, "dtype": "bfloat16"}, expected)
    assert torch.equal(logits(folder), logits(whole))


def test_weights_of_one_quantisation_replace_those_of_another(tmp_path: Path) -> None:
    """Where weights are whole, a folder's own configuration says how its tensors are to be read."""
    prompt, sampling = list(range(9, 60, 3)), {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    for seed, name in enumerate(("gptq", "fp8-block")):
        make_checkpoint(tmp_path / f"{name}-source", seed=seed)
        write_quantised(tmp_path / f"{name}-source", name, tmp_path / name, tmp_path / f"{name}-plain")

    def first(engine: Engine) -> Any:
        engine.flush_cache()
        found = engine.generate(input_ids=prompt, sampling_params=sampling, return_logprob=True)
        return found["output_ids"], found["meta_info"]["output_token_logprobs"]

    common: dict[str, Any] = {"skip_tokenizer_init": True, "max_total_tokens": 512, "cpu_kernels": "torch"}
    expected = {}
    for name in ("gptq", "fp8-block"):
        with Engine(tmp_path / f"{name}-plain", **common) as engine:
            expected[name] = first(engine)
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "fp8-block", broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_scale_inv"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors")
    with Engine(tmp_path / "gptq", **common) as engine:
        for name, folder in (("fp8-block", "fp8-block"), ("gptq", "gptq-plain"), ("gptq", "gptq")):
            success, message, _ = engine.update_weights_from_disk(str(tmp_path / folder))
            assert success, message
            assert first(engine) == expected[name]
        success, message, _ = engine.update_weights_from_disk(str(broken))
        assert not success and "model.layers.1.mlp.up_proj.weight holds NaN or infinity" in message
        assert first(engine) == expected["gptq"]
