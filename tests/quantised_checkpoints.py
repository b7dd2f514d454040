"""Quantised checkpoints made from plain ones, and what their weights are, both written from the formats' definitions.

    stored, weight = FORMATS["gptq"].quantise(tensor)      parts by the end of their names; the weight they stand for
    write_quantised(folder, "gptq", quantised, plain)      the same model twice: quantised, and with those weights

Packing goes through single bits, so it shares nothing with what is tested: the numbers of a row are one sequence of
bits, the first number's lowest bit first, which is cut into words.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
Parts = dict[str, Tensor]
KEPT = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight", "shared_expert_gate.weight")
"""What checkpoints leave unquantised."""
FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


@dataclass(frozen=True)
class Format:
    """A quantisation: what config.json says, and how a weight [N, K] is stored under the ends of its name."""

    config: dict[str, Any]
    quantise: Callable[[Tensor], tuple[Parts, Tensor]]


def words(codes: Tensor, bits: int) -> Tensor:
    """[rows, n] whole numbers to [rows, ceil(n * bits / 32)] int32."""
    sequence = ((codes.long()[..., None] >> torch.arange(bits)) & 1).flatten(1)  # every bit of a row, lowest first
    sequence = torch.nn.functional.pad(sequence, (0, -sequence.shape[1] % 32))
    whole = (sequence.view(len(codes), -1, 32) << torch.arange(32)).sum(-1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).int()


def each(table: Tensor, block: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """[blocks, blocks] to [N, K]: the entry of every weight."""
    rows, columns = (torch.arange(size) // width for size, width in zip(shape, block, strict=True))
    return table[rows[:, None], columns]


def grouped(weight: Tensor, bits: int, group: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, K], scales [N, G] rounded to float16, zeros [N, G] of a weight, by groups of inputs."""
    parts = torch.split(weight, group, dim=1)
    low = torch.stack([part.amin(1) for part in parts], 1).clamp(max=0)
    high = torch.stack([part.amax(1) for part in parts], 1).clamp(min=0)
    top = 2**bits - 1
    scales = torch.maximum(-low, high) * 2 / top if symmetric else (high - low) / top
    scales = scales.clamp(min=1e-4).half().float()
    zeros = torch.full_like(scales, 2 ** (bits - 1)) if symmetric else (-low / scales).round().clamp(1, top)
    shape = (len(weight), weight.shape[1])
    codes = (weight / each(scales, (1, group), shape) + each(zeros, (1, group), shape)).round().clamp(0, top)
    return codes.int(), scales, zeros.int()


def affine(codes: Tensor, scales: Tensor, zeros: Tensor, groups: list[int]) -> Tensor:
    """(code - zero) * scale, in float32."""
    columns = [(codes[:, k] - zeros[:, g]).float() * scales[:, g] for k, g in enumerate(groups)]
    return torch.stack(columns, 1)


def ordered(
    weight: Tensor, bits: int, size: int, symmetric: bool, shuffled: bool
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """``grouped`` and the group of each input, which are in order or not."""
    inputs = weight.shape[1]
    order = torch.arange(inputs)
    if shuffled:
        order = torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))
    codes, scales, zeros = grouped(weight[:, order], bits, size, symmetric)
    back = order.argsort()
    return codes[:, back], scales, zeros, [int(k) // size for k in back]


def gptq(
    weight: Tensor,
    *,
    bits: int = 4,
    group: int = GROUP,
    symmetric: bool = True,
    v2: bool = False,
    act_order: bool = False,
) -> tuple[Parts, Tensor]:
    inputs = weight.shape[1]
    size = inputs if group == -1 else group
    codes, scales, zeros, groups = ordered(weight, bits, size, symmetric, act_order)
    stored = {
        "qweight": words(codes, bits).T.contiguous(),
        "scales": scales.T.contiguous().half(),
        "qzeros": words(zeros.T - (0 if v2 else 1), bits),
        "g_idx": torch.tensor(groups, dtype=torch.int32),
    }
    return stored, affine(codes, scales, zeros, groups)


def awq(weight: Tensor) -> tuple[Parts, Tensor]:
    codes, scales, zeros = grouped(weight, 4, GROUP, symmetric=False)

    def packed(columns: Tensor) -> Tensor:
        order = [8 * (i // 8) + (0, 2, 4, 6, 1, 3, 5, 7)[i % 8] for i in range(columns.shape[1])]
        return words(columns[:, order], 4)

    stored = {"qweight": packed(codes.T), "qzeros": packed(zeros.T), "scales": scales.T.contiguous().half()}
    return stored, affine(codes, scales, zeros, [k // GROUP for k in range(weight.shape[1])])


def fp8(weight: Tensor, *, block: tuple[int, int], ue8m0: bool = False) -> tuple[Parts, Tensor]:
    rows, columns = -(-len(weight) // block[0]), -(-weight.shape[1] // block[1])
    scales = torch.zeros(rows, columns)
    for i in range(rows):
        for j in range(columns):
            part = weight[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scales[i, j] = part.abs().max() / 448
    if ue8m0:
        scales = torch.exp2(scales.log2().ceil())
    spread = each(scales, block, (len(weight), weight.shape[1]))
    values = (weight / spread).to(torch.float8_e4m3fn)
    kept = scales.to(torch.float8_e8m0fnu) if ue8m0 else scales
    return {"weight": values, "weight_scale_inv": kept}, values.float() * spread


def scaled(
    weight: Tensor,
    *,
    dtype: torch.dtype,
    whole: bool = False,
    scale_dtype: torch.dtype = torch.float32,
    static: bool = False,
) -> tuple[Parts, Tensor]:
    """One number a byte, one scale a row or for all."""
    top = 448.0 if dtype.is_floating_point else 127.0
    scale = (weight.abs().amax() if whole else weight.abs().amax(1, keepdim=True)) / top
    scale = scale.to(scale_dtype)
    codes = weight / scale.float()
    values = codes.to(dtype) if dtype.is_floating_point else codes.round().clamp(-128, 127).to(dtype)
    stored = {"weight": values, "weight_scale": scale.reshape(1) if whole else scale}
    if static:
        stored["input_scale"] = torch.tensor([0.5])
    return stored, values.float() * scale.float()


def int8_asymmetric(weight: Tensor) -> tuple[Parts, Tensor]:
    """Whole numbers a byte, with a zero a row."""
    codes, scales, zeros = grouped(weight, 8, weight.shape[1], symmetric=False)
    stored = {"weight": (codes - 128).to(torch.int8), "weight_zero_point": (zeros - 128).to(torch.int8)}
    return {**stored, "weight_scale": scales}, (codes - zeros).float() * scales


def pack_quantized(
    weight: Tensor, *, bits: int, group: int, symmetric: bool, order: bool = False
) -> tuple[Parts, Tensor]:
    shape = (len(weight), weight.shape[1])
    size = shape[1] if group == -1 else group
    codes, scales, zeros, groups = ordered(weight, bits, size, symmetric, order)
    stored = {"weight_packed": words(codes, bits), "weight_scale": scales.half(), "weight_shape": torch.tensor(shape)}
    if not symmetric:
        stored["weight_zero_point"] = words(zeros.T, bits).T.contiguous()
    if order:
        stored["weight_g_idx"] = torch.tensor(groups, dtype=torch.int32)
    return stored, affine(codes, scales, zeros, groups)


def microscaled(weight: Tensor, *, nvidia: bool = False) -> tuple[Parts, Tensor]:
    """Four-bit floats in compressed-tensors' layout: with powers of two, or with eight-bit floats and one for all."""
    size = 16 if nvidia else 32
    peaks = torch.stack([part.abs().amax(1) for part in torch.split(weight, size, 1)], 1) / 6
    shared = torch.tensor([1000.0])
    eighth = (peaks * shared).to(torch.float8_e4m3fn)
    exponents = peaks.log2().ceil().int() + 127
    scales = eighth.float() / shared if nvidia else torch.exp2((exponents - 127).float())
    spread = each(scales, (1, size), (len(weight), weight.shape[1]))
    table = torch.tensor(FP4)
    codes = ((weight / spread)[..., None] - table).abs().argmin(-1)
    stored = {"weight_packed": (codes[:, ::2] | (codes[:, 1::2] << 4)).to(torch.uint8)}
    stored["weight_scale"] = eighth if nvidia else exponents.to(torch.uint8)
    if nvidia:
        stored["weight_global_scale"] = shared
    return stored, table[codes] * spread


def ct(kind: str, layout: str, *, whole_rows: bool = False, **weights: Any) -> dict[str, Any]:
    settings = {"type": kind, "symmetric": True, **weights}
    rows = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
    group = {"targets": ["Linear"], "weights": settings, "input_activations": rows if whole_rows else None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*gate$"],
    }


def _gptq_config(**more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True, **more}


E4M3 = torch.float8_e4m3fn
FORMATS: dict[str, Format] = {
    "fp8-block": Format(
        {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"},
        lambda w: fp8(w, block=(128, 128)),
    ),
    "fp8-small-block": Format({"quant_method": "fp8", "weight_block_size": [24, 40]}, lambda w: fp8(w, block=(24, 40))),
    "fp8-ue8m0": Format(
        {"quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"},
        lambda w: fp8(w, block=(32, 32), ue8m0=True),
    ),
    "fp8-tensor": Format(
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
        lambda w: scaled(w, dtype=E4M3, whole=True, static=True),
    ),
    "fp8-channel": Format({"quant_method": "fp8"}, lambda w: scaled(w, dtype=E4M3)),
    "modelopt": Format(
        {"quant_method": "modelopt", "quant_algo": "FP8"}, lambda w: scaled(w, dtype=E4M3, whole=True, static=True)
    ),
    "ct-fp8-channel": Format(
        ct("float", "float-quantized", num_bits=8, strategy="channel"),
        lambda w: scaled(w, dtype=E4M3, scale_dtype=torch.bfloat16),
    ),
    "ct-fp8-tensor": Format(
        ct("float", "float-quantized", num_bits=8, strategy="tensor"),
        lambda w: scaled(w, dtype=E4M3, whole=True, static=True),
    ),
    "ct-int8": Format(
        ct("int", "int-quantized", num_bits=8, strategy="channel"), lambda w: scaled(w, dtype=torch.int8)
    ),
    "ct-w8a8": Format(
        ct("int", "int-quantized", num_bits=8, strategy="channel", whole_rows=True),
        lambda w: scaled(w, dtype=torch.int8),
    ),
    "ct-int8-asym": Format(
        ct("int", "int-quantized", num_bits=8, strategy="channel", symmetric=False), int8_asymmetric
    ),
    "ct-w4a16": Format(
        ct("int", "pack-quantized", num_bits=4, strategy="group", group_size=GROUP),
        lambda w: pack_quantized(w, bits=4, group=GROUP, symmetric=True),
    ),
    "ct-w4a16-asym": Format(
        ct("int", "pack-quantized", num_bits=4, strategy="group", group_size=GROUP, symmetric=False),
        lambda w: pack_quantized(w, bits=4, group=GROUP, symmetric=False),
    ),
    "ct-w4a16-order": Format(
        ct("int", "pack-quantized", num_bits=4, strategy="group", group_size=GROUP, actorder="group"),
        lambda w: pack_quantized(w, bits=4, group=GROUP, symmetric=True, order=True),
    ),
    "ct-w4a16-channel": Format(
        ct("int", "pack-quantized", num_bits=4, strategy="channel", group_size=None),
        lambda w: pack_quantized(w, bits=4, group=-1, symmetric=True),
    ),
    "ct-w8a16": Format(
        ct("int", "pack-quantized", num_bits=8, strategy="channel", group_size=-1),
        lambda w: pack_quantized(w, bits=8, group=-1, symmetric=True),
    ),
    "ct-mxfp4": Format(
        ct("float", "mxfp4-pack-quantized", num_bits=4, strategy="group", group_size=32), lambda w: microscaled(w)
    ),
    "ct-nvfp4": Format(
        ct("float", "nvfp4-pack-quantized", num_bits=4, strategy="tensor_group", group_size=16),
        lambda w: microscaled(w, nvidia=True),
    ),
    "awq": Format(
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}, lambda w: awq(w)
    ),
    "gptq": Format(_gptq_config(), lambda w: gptq(w)),
    "gptq-v2-asym": Format(
        _gptq_config(sym=False, checkpoint_format="gptq_v2"), lambda w: gptq(w, symmetric=False, v2=True)
    ),
    "gptq-act-order": Format(
        _gptq_config(desc_act=True, sym=False), lambda w: gptq(w, symmetric=False, act_order=True)
    ),
    "gptq-8": Format(_gptq_config(bits=8, group_size=-1), lambda w: gptq(w, bits=8, group=-1)),
    "gptq-3": Format(_gptq_config(bits=3, sym=False), lambda w: gptq(w, bits=3, symmetric=False)),
    "gptq-2": Format(_gptq_config(bits=2, sym=False), lambda w: gptq(w, bits=2, symmetric=False)),
}
"""By name: what checkpoints are made like."""


def write_quantised(source: Path, name: str, quantised: Path, plain: Path) -> None:
    """The checkpoint in ``source`` twice: quantised, and in float32 with the weights that the first stands for."""
    made = FORMATS[name]
    stored: Parts = {}
    whole: Parts = {}
    for key, tensor in load_file(source / "model.safetensors").items():
        if tensor.ndim == 2 and not key.endswith(KEPT):
            parts, whole[key] = made.quantise(tensor.float())
            stored |= {f"{key.removesuffix('weight')}{part}": value.clone() for part, value in parts.items()}
        else:
            stored[key] = whole[key] = tensor
    config = json.loads((source / "config.json").read_text())
    write_folder(plain, {**config, "dtype": "float32"}, whole)
    write_folder(quantised, {**config, "dtype": "float32", "quantization_config": made.config}, stored)


def write_folder(folder: Path, config: dict[str, Any], tensors: Parts) -> Path:
    """A checkpoint without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder
