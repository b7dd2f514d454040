"""Checkpoints of hybrids as the hub has them and ``save_pretrained`` does not write them; configs that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_families import FAMILIES, random_model
from paged_runner import Extend, PagedRunner
from safetensors.torch import save_file
from tiny_models import VOCAB_SIZE
from torch import Tensor

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.architectures import parse_config
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.loader import load_model

IDS = [(7 * i * i + 3) % VOCAB_SIZE for i in range(70)]
Tensors = dict[str, Tensor]


def whole_model(folder: Path, tensors: Tensors, text_config: dict[str, Any], **outer: Any) -> Path:
    """A checkpoint that sees images too: nested config, the language model under its own prefix, parts nobody uses."""
    moe = "num_experts" in text_config
    config = {
        "architectures": [f"Qwen3_5{'Moe' if moe else ''}ForConditionalGeneration"],
        "model_type": "qwen3_5_moe" if moe else "qwen3_5",
        "text_config": text_config,
        "vision_config": {"depth": 1, "hidden_size": 16},
        "image_token_id": 5,
        **outer,
    }
    renamed = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    renamed["model.visual.blocks.0.attn.qkv.weight"] = torch.ones(48, 16)
    renamed["mtp.fc.weight"] = renamed["mtp.layers.0.self_attn.q_proj.weight"] = torch.ones(8, 8)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous().clone() for name, tensor in renamed.items()}, folder / "model.safetensors")
    return folder


def text_config(model: Any) -> dict[str, Any]:
    """As hub configs have it: with the switches that transformers takes for granted."""
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    rope = {**config["rope_parameters"], "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return {
        **config,
        "rope_parameters": rope,
        "attn_output_gate": True,
        "output_gate_type": "swish",
        "mamba_ssm_dtype": "float32",
        "full_attention_interval": 4,
        "mtp_num_hidden_layers": 1,
    }


def as_it_is(name: str, tensor: Tensor) -> Tensors:
    return {name: tensor}


def transposed(name: str, tensor: Tensor) -> Tensors:
    return {name: tensor.transpose(1, 2) if ".experts." in name else tensor}


def one_by_one(name: str, tensor: Tensor) -> Tensors:
    if ".experts." not in name:
        return {name: tensor}
    base, kind = name.rsplit(".", 1)
    if kind == "down_proj":
        return {f"{base}.{i}.down_proj.weight": part for i, part in enumerate(tensor)}
    halves = [(i, half, part) for i, both in enumerate(tensor) for half, part in zip("gu", both.chunk(2), strict=True)]
    return {f"{base}.{i}.{'gate' if half == 'g' else 'up'}_proj.weight": part for i, half, part in halves}


def check(folder: Path, model: Any) -> None:
    loaded = load_model(folder, backend=CPUBackend())
    with torch.no_grad():
        expected = model(torch.tensor([IDS]), use_cache=False).logits[0]
    found = PagedRunner(loaded, CPUBackend()).step([Extend("row", IDS)])[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", [as_it_is, transposed, one_by_one])
def test_experts_are_read_from_every_layout(tmp_path: Path, layout: Any) -> None:
    model = random_model(FAMILIES["qwen3_5_moe"])
    tensors: Tensors = {}
    for name, tensor in model.state_dict().items():
        tensors |= layout(name, tensor)
    assert any(".experts." in name for name in tensors)
    check(whole_model(tmp_path / "model", tensors, text_config(model)), model)


def test_the_language_model_of_a_dense_one_is_served(tmp_path: Path) -> None:
    model = random_model(FAMILIES["qwen3_5"])
    check(whole_model(tmp_path / "model", model.state_dict(), text_config(model)), model)


def test_a_head_is_tied_as_the_whole_model_says(tmp_path: Path) -> None:
    """The part for text says what transformers' default is."""
    model = random_model(FAMILIES["qwen3_5"])
    model.lm_head.weight = model.model.embed_tokens.weight
    model.model.embed_tokens.weight.data /= 8
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    config = {**text_config(model), "tie_word_embeddings": False}
    check(whole_model(tmp_path / "model", tensors, config, tie_word_embeddings=True), model)


def test_states_stay_exact_where_weights_are_not(tmp_path: Path) -> None:
    """In bfloat16 the memory is float32 all the same: an error of the weights' rounding, not one that grows."""
    model = random_model(FAMILIES["qwen3_next"])
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, backend=CPUBackend(), dtype="bfloat16")
    (states,) = (group for group in loaded.groups if group.kind == "state")
    assert [tensor.dtype for tensor in states.state_tensors] == ["bfloat16", "float32"]
    with torch.no_grad():
        expected = model.to(torch.bfloat16)(torch.tensor([IDS]), use_cache=False).logits[0].float()
    runner = PagedRunner(loaded, CPUBackend())
    found = torch.cat([runner.step([Extend("row", IDS[i : i + 10])])[0] for i in range(0, len(IDS), 10)])
    assert (found - expected).abs().mean() < 0.1 < expected.abs().mean()


def test_what_configs_leave_out() -> None:
    """Sizes that the first configs of the family did not mention."""
    model = random_model(FAMILIES["qwen3_next"])
    raw: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    raw["architectures"] = ["Qwen3NextForCausalLM"]
    raw["num_hidden_layers"] = 8
    for name in ("layer_types", "head_dim", "rope_parameters", "norm_topk_prob"):
        raw.pop(name)
    config = parse_config(raw)
    assert config.layer_kinds == ("linear_attention", "linear_attention", "linear_attention", "full_attention") * 2
    assert (config.head_dim, config.rotary_dim) == (256, 64)
    assert config.moe is not None and config.moe.renormalize


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("attn_output_gate", False, "attn_output_gate=false is not supported"),
        ("hidden_act", "gelu", "hidden_act='gelu' is not supported; only silu is"),
        ("output_gate_type", "sigmoid", "output_gate_type='sigmoid' is not supported; only silu is"),
        ("linear_num_value_heads", 5, "linear_num_value_heads=5 is not a multiple of linear_num_key_heads=2"),
        ("linear_conv_kernel_dim", 1, "linear_conv_kernel_dim=1 must be at least 2"),
        ("linear_key_head_dim", None, "'linear_key_head_dim' is missing"),
        ("layer_types", ["full_attention", "sliding_attention"] * 2, "only full_attention, linear_attention"),
    ],
)
def test_what_is_not_served_is_refused_by_name(field: str, value: Any, message: str) -> None:
    raw: dict[str, Any] = json.loads(random_model(FAMILIES["qwen3_next"]).config.to_json_string(use_diff=False))
    with pytest.raises(ModelError, match=message) as error:
        parse_config({**raw, "architectures": ["Qwen3NextForCausalLM"], field: value}, "config.json")
    assert "\n" not in str(error.value)
