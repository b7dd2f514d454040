"""What is wrong with a quantised checkpoint is said in one line that names the tensor or the field, before weights are
read where that is possible."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_checkpoints import FORMATS, Parts, pack_quantized, write_folder

from sglite.runtime.model.checkpoint import open_checkpoint
from sglite.runtime.model.errors import ModelError
from sglite.runtime.quant.dequantise import dequantised

WEIGHT = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
NAME = "layers.0.q_proj"
Damage = Callable[[Parts], Any]


def refusal(tmp_path: Path, config: dict[str, Any], tensors: Parts) -> str:
    write_folder(tmp_path, {}, {f"{NAME}.{part}": tensor for part, tensor in tensors.items()})
    with pytest.raises(ModelError) as caught:
        source = dequantised(open_checkpoint(tmp_path), config)
        list(source.read(set(source.tensors)))
    message = str(caught.value)
    assert "\n" not in message and len(message.replace(str(tmp_path), "")) < 400
    return message


def unquantise(tensors: Parts) -> None:
    tensors.clear()
    tensors["weight"] = WEIGHT


DAMAGED: dict[str, tuple[str, Damage, str]] = {
    "no scale": (
        "fp8-block",
        lambda t: t.pop("weight_scale_inv"),
        f"{NAME}.weight_scale_inv and {NAME}.weight_scale are",
    ),
    "scale of another block": (
        "fp8-small-block",
        lambda t: t.update(weight_scale_inv=torch.ones(2, 3)),
        f"{NAME}.weight_scale_inv has shape [2, 3] instead of [3, 3]",
    ),
    "scale of nothing": (
        "fp8-channel",
        lambda t: t.update(weight_scale=torch.ones(7)),
        f"{NAME}.weight_scale has shape [7] instead of [64, 1] or [64]",
    ),
    "scale of another type": (
        "fp8-tensor",
        lambda t: t.update(weight_scale=torch.ones(1, dtype=torch.int32)),
        f"{NAME}.weight_scale has type I32 instead of F64 or F32",
    ),
    "no zeros": ("gptq", lambda t: t.pop("qzeros"), f"{NAME}.qzeros is missing"),
    "no order": ("gptq-act-order", lambda t: t.pop("g_idx"), f"{NAME}.g_idx is missing"),
    "an order of groups that are not there": (
        "gptq-act-order",
        lambda t: t.update(g_idx=t["g_idx"] + 1),
        f"{NAME}.weight: groups of inputs (g_idx) must be from 0 to 2",
    ),
    "words of other bits": (
        "gptq",
        lambda t: t.update(qweight=t["qweight"][:6]),
        f"{NAME}.scales has shape [3, 64] instead of [2, 64]",
    ),
    "words of another type": (
        "awq",
        lambda t: t.update(qweight=t["qweight"].float()),
        f"{NAME}.qweight has type F32 instead of I32",
    ),
    "no scales": ("awq", lambda t: t.pop("scales"), f"{NAME}.scales is missing"),
    "no shape": ("ct-w4a16", lambda t: t.pop("weight_shape"), f"{NAME}.weight_shape is missing"),
    "another shape": (
        "ct-w4a16",
        lambda t: t.update(weight_shape=torch.tensor([64, 200])),
        f"{NAME}.weight_packed has shape [64, 12], which [64, 200] of [4] bits do not fill",
    ),
    "an empty shape": (
        "ct-w4a16",
        lambda t: t.update(weight_packed=t["weight_packed"][:0], weight_shape=torch.tensor([0, 96])),
        f"{NAME}.weight_packed has shape [0, 12]",
    ),
    "no zeros of bytes": (
        "ct-int8-asym",
        lambda t: t.pop("weight_zero_point"),
        f"{NAME}.weight_zero_point is missing",
    ),
    "no packed zeros": ("ct-w4a16-asym", lambda t: t.pop("weight_zero_point"), f"{NAME}.weight_zero_point is missing"),
    "packed zeros of another shape": (
        "ct-w4a16-asym",
        lambda t: t.update(weight_zero_point=t["weight_zero_point"][:4]),
        f"{NAME}.weight_zero_point has shape [4, 3] instead of [8, 3]",
    ),
    "no quantised tensor": ("gptq", unquantise, "no tensor is quantised"),
    "whole numbers of a float group": (
        "ct-fp8-channel",
        lambda t: t.update(weight=torch.ones(64, 96, dtype=torch.int8)),
        f"{NAME}.weight is I8, but no group of config_groups has weights of type int",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_tensors_are_named(tmp_path: Path, name: str) -> None:
    made, damage, told = DAMAGED[name]
    tensors, _ = FORMATS[made].quantise(WEIGHT)
    damage(tensors)
    message = refusal(tmp_path, FORMATS[made].config, tensors)
    assert told in message and f"{tmp_path}: " in message


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return {**FORMATS[name].config, **fields}


def regrouped(name: str, **weights: Any) -> dict[str, Any]:
    config = json.loads(json.dumps(FORMATS[name].config))
    config["config_groups"]["group_0"]["weights"].update(weights)
    return dict(config)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "method": (
        "gptq",
        {"quant_method": "bitsandbytes"},
        "quant_method='bitsandbytes' is not supported; supported: fp8",
    ),
    "no method": ("gptq", {"bits": 4}, "quant_method='unnamed' is not supported"),
    "bits": (
        "gptq",
        changed("gptq", bits=5),
        "quantization_config.bits=5 is not supported for gptq; supported: 2, 3, 4, 8",
    ),
    "awq bits": ("awq", changed("awq", bits=8), "quantization_config.bits=8 is not supported for awq"),
    "awq layout": ("awq", changed("awq", version="gemv"), "quantization_config.version='gemv' is not supported"),
    "rules": (
        "gptq",
        changed("gptq", dynamic={"-:.*gate.*": {}}),
        "quantization_config.dynamic={'-:.*gate.*': {}}: rules",
    ),
    "gptq layout": ("gptq", changed("gptq", checkpoint_format="marlin"), "checkpoint_format='marlin' is not supported"),
    "group size": (
        "gptq",
        changed("gptq", group_size=0),
        "field 'group_size' is 0; it must be a positive integer or -1",
    ),
    "block": (
        "fp8-block",
        changed("fp8-block", weight_block_size=[128]),
        "field 'weight_block_size' is [128]; it must be two positive integers",
    ),
    "modelopt": (
        "modelopt",
        changed("modelopt", quant_algo="W4A8"),
        "quant_algo='W4A8' is not supported; supported: FP8",
    ),
    "sparse": (
        "ct-w4a16",
        changed("ct-w4a16", sparsity_config={"format": "sparse-24-bitmask"}),
        "sparsity_config.format='sparse-24-bitmask' is not supported",
    ),
    "transforms": (
        "ct-w4a16",
        changed("ct-w4a16", transform_config={"config_groups": {}}),
        "transforms of activations",
    ),
    "format": ("ct-w4a16", changed("ct-w4a16", format="marlin-24"), "quantization_config.format='marlin-24' is not"),
    "strategy": (
        "ct-w4a16",
        regrouped("ct-w4a16", strategy="attn_head"),
        "group_0.weights.strategy='attn_head' is not",
    ),
    "odd bits": ("ct-w4a16", regrouped("ct-w4a16", num_bits=3), f"{NAME}.weight_packed has shape [64, 12]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_are_not_served_are_refused_by_name(tmp_path: Path, name: str) -> None:
    made, config, told = REFUSED[name]
    tensors, _ = FORMATS[made].quantise(WEIGHT)
    assert told in refusal(tmp_path, config, tensors)


def test_bits_that_fill_their_words_but_are_not_served_are_refused(tmp_path: Path) -> None:
    tensors, _ = pack_quantized(WEIGHT, bits=3, group=32, symmetric=True)
    message = refusal(tmp_path, regrouped("ct-w4a16", num_bits=3), tensors)
    assert f"{NAME}.weight_packed has 3 bits; supported: 2, 4, 8" in message


def test_what_to_use_instead_is_said(tmp_path: Path) -> None:
    tensors, _ = FORMATS["gptq"].quantise(WEIGHT)
    message = refusal(tmp_path, {"quant_method": "bitsandbytes"}, tensors)
    assert message.endswith("use the unquantised checkpoint, or one in AWQ or GPTQ")
