"""compressed-tensors, as llm-compressor writes it: whole or tiny numbers as they are, or packed into words.

    float-quantized, int-quantized   X.weight F8 or I8 [N, K]     X.weight_scale     X.weight_zero_point, as the scale
    pack-quantized                   X.weight_packed I32 [N, K * bits / 32]     X.weight_scale     X.weight_shape [2]
                                     X.weight_zero_point I32 [N * bits / 32, G]     X.weight_g_idx [K]
    mxfp4-pack-quantized             X.weight_packed U8 [N, K / 2]     X.weight_scale U8 [N, K / 32]
    nvfp4-pack-quantized             X.weight_packed U8 [N, K / 2]     X.weight_scale F8 [N, K / 16]
                                     X.weight_global_scale: scales are divided by it

Packed numbers are stored plus 2^(bits - 1). Scales are one a tensor, a row (channel), a group of inputs or a block. A
checkpoint may have several groups of layers with settings of their own; a layer's tensors tell which is its.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sglite.runtime.model.checkpoint import FLOAT_TYPES, TensorInfo, TensorSource
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields
from sglite.runtime.quant.arithmetic import blocks, dequantise, from_e8m0, from_fp4, groups_in_order, unpack
from sglite.runtime.quant.codes import Codes, Coding, halves
from sglite.runtime.quant.fp8 import F8_TYPES, SCALE_TYPES, Block, read_block, scaled
from sglite.runtime.quant.group_size import read_group_size
from sglite.runtime.quant.packed import PackedWeight, Unpacked
from sglite.runtime.quant.stored import Stored

FORMATS = (
    "dense", "naive-quantized", "float-quantized", "int-quantized", "pack-quantized", "mixed-precision",
    "mxfp4-pack-quantized", "nvfp4-pack-quantized",
)  # fmt: skip
PACKED_BITS = (2, 4, 8)
STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group", "token")
ACTIVATION_PARTS = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point")


@dataclass(frozen=True)
class _Scheme:
    """Settings of the weights of one group of layers. ``block``: what shares a scale, ``None`` for a row or all."""

    bits: int
    kind: str
    symmetric: bool
    block: Block | None
    inputs: bool
    """Rows of inputs are to be quantised to whole numbers of eight bits when they come."""


def compressed_tensors(source: TensorSource, fields: Fields) -> Unpacked:
    """The view of a compressed-tensors checkpoint. ModelError: a format, bits or transform that are not supported."""
    schemes = _read_schemes(fields)
    stored = Stored(source, "compressed-tensors")
    packed = [base for base, _ in stored.ending(".weight_packed", "I32")]
    shapes = _shapes(stored, packed)
    for base in packed:
        stored.weights[f"{base}.weight"] = _packed(stored, base, shapes[base], schemes)
    for base, info in stored.ending(".weight_packed", "U8"):
        stored.weights[f"{base}.weight"] = _fp4(stored, base, info)
    for base, info in stored.ending(".weight", *F8_TYPES, "I8"):
        stored.weights[f"{base}.weight"] = _plain(stored, base, info, schemes)
    for name in stored.weights:
        base = name.removesuffix(".weight")
        stored.drop(*(f"{base}.{part}" for part in ACTIVATION_PARTS))
    return stored.view()


def _read_schemes(fields: Fields) -> list[_Scheme]:
    _refuse_formats(fields, fields.text("format", "dense"))
    sparse = Fields(fields.mapping("sparsity_config"), f"{fields.where}.sparsity_config").text("format", "dense")
    if sparse != "dense":
        raise ModelError(
            f"{fields.where}.sparsity_config.format={sparse!r:.80} is not supported; use a dense checkpoint"
        )
    if fields.get("transform_config"):
        raise ModelError(
            f"{fields.where}.transform_config={fields.get('transform_config')!r:.80}: transforms of activations are "
            "not supported; use a checkpoint without them"
        )
    schemes = []
    for name in fields.mapping("config_groups"):
        groups = Fields(fields.mapping("config_groups"), f"{fields.where}.config_groups")
        group = Fields(groups.mapping(name), f"{groups.where}.{name}")
        _refuse_formats(group, group.text("format", "dense"))
        if group.get("weights") is not None:
            inputs = Fields(group.mapping("input_activations"), f"{group.where}.input_activations")
            scheme = _read_scheme(Fields(group.mapping("weights"), f"{group.where}.weights"))
            schemes.append(replace(scheme, inputs=_whole_rows(inputs)))
    return schemes


def _refuse_formats(fields: Fields, name: str) -> None:
    if name not in FORMATS:
        raise ModelError(
            f"{fields.where}.format={name!r:.80} is not supported; supported: {', '.join(FORMATS)}; "
            "use a checkpoint in one of them"
        )


def _read_scheme(fields: Fields) -> _Scheme:
    size, strategy = read_group_size(fields), fields.text("strategy", "unnamed")
    if strategy == "unnamed":
        strategy = "group" if size else "channel" if fields.get("group_size") == -1 else "tensor"
    if strategy not in STRATEGIES:
        raise ModelError(
            f"{fields.where}.strategy={strategy!r:.80} is not supported; supported: {', '.join(STRATEGIES)}"
        )
    block: Block | None = None
    if strategy in ("group", "tensor_group"):
        block = (1, fields.positive_int("group_size"))
    elif strategy == "block":
        block = read_block(fields, "block_structure")
        if block is None:
            raise ModelError(f"{fields.where}: field 'block_structure' is missing; it must be two positive integers")
    return _Scheme(
        fields.positive_int("num_bits", 8), fields.text("type", "int"), fields.flag("symmetric", True), block, False
    )


def _whole_rows(fields: Fields) -> bool:
    return (
        fields.get("num_bits") == 8
        and fields.text("type", "int") == "int"
        and fields.flag("symmetric", True)
        and fields.get("dynamic") is True
        and fields.text("strategy", "unnamed") == "token"
    )


def _plain(stored: Stored, base: str, info: TensorInfo, schemes: list[_Scheme]) -> PackedWeight:
    """One number a byte. Of several schemes, the one whose scales are in this shape."""
    name, kind = f"{base}.weight", "int" if info.dtype == "I8" else "float"
    scale, zero = f"{name}_scale", f"{name}_zero_point"
    fitting = [scheme for scheme in schemes if scheme.kind == kind]
    if not fitting:
        stored.refuse(f"{name} is {info.dtype}, but no group of config_groups has weights of type {kind}")
    shape = stored.part(scale, SCALE_TYPES).shape
    block = next((s.block for s in fitting if s.block and shape == _table(info.shape, s.block)), fitting[0].block)
    if block is not None and any(scheme.block is None for scheme in fitting) and shape != _table(info.shape, block):
        block = None
    needed = not any(scheme.symmetric for scheme in fitting)
    weight = scaled(stored, name, info, scale, block, zero if needed or stored.has(zero) else None)
    if kind == "int" and block is None and "zeros" not in weight.parts and all(scheme.inputs for scheme in fitting):
        return replace(weight, coding=Coding(8), codes=_row_codes)
    return weight


def _row_codes(found: Mapping[str, Tensor]) -> Codes:
    """One scale a row, or one for all."""
    scales = found["scales"].float().reshape(-1, 1)
    return Codes(Coding(8), found["values"], scales.expand(len(found["values"]), 1))


def _table(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    return (*shape[:-2], blocks(shape[-2], block[0]), blocks(shape[-1], block[1]))


def _shapes(stored: Stored, bases: list[str]) -> dict[str, tuple[int, int]]:
    """Rows and columns of packed weights, from the tensors that say them."""
    names = {f"{base}.weight_shape": base for base in bases}
    for name in names:
        stored.part(name, ("I64", "I32"), (2,))
    found = stored.read_small(set(names))
    stored.drop(*names)
    return {base: (found[name][0], found[name][1]) for name, base in names.items()}


def _packed(stored: Stored, base: str, shape: tuple[int, int], schemes: list[_Scheme]) -> PackedWeight:
    """Whole numbers in words."""
    name, (rows, columns) = f"{base}.weight", shape
    found = stored.matrix(f"{name}_packed", stored.part(f"{name}_packed", ("I32",)))
    fitting = [s for s in schemes if s.kind == "int" and found == (rows, blocks(columns * s.bits, 32))]
    if not fitting or min(shape) < 1:
        said = sorted({scheme.bits for scheme in schemes})
        stored.refuse(f"{name}_packed has shape {list(found)}, which [{rows}, {columns}] of {said} bits do not fill")
    bits = fitting[0].bits
    if bits not in PACKED_BITS:
        stored.refuse(f"{name}_packed has {bits} bits; supported: {', '.join(map(str, PACKED_BITS))}")
    scale = stored.part(f"{name}_scale", FLOAT_TYPES)
    block = _packed_block(stored, name, scale, shape, fitting)
    table = _table(shape, block)
    parts = {"values": f"{name}_packed", "scales": f"{name}_scale"}
    if not any(scheme.symmetric for scheme in fitting) or stored.has(f"{name}_zero_point"):
        stored.part(f"{name}_zero_point", ("I32",), (blocks(table[0] * bits, 32), table[1]))
        parts["zeros"] = f"{name}_zero_point"
    if stored.has(f"{name}_g_idx"):
        stored.part(f"{name}_g_idx", ("I32", "I64"), (columns,))
        parts["groups"] = f"{name}_g_idx"

    def make(found: Mapping[str, Tensor]) -> Tensor:
        values = unpack(found["values"], bits, columns)
        scales = found["scales"].reshape(table)
        zeros = scales.new_full((1, 1), 2 ** (bits - 1)).expand(table)
        if "zeros" in found:
            zeros = unpack(found["zeros"].T, bits, table[0]).T
        return dequantise(values, scales, block, zeros, groups_in_order(found.get("groups"), columns, block[1]))

    if bits != 4 or "groups" in parts or block[0] != 1:
        return PackedWeight(shape, parts, make)
    coding = Coding(4, block[1] if block[1] < columns else None, zeros="zeros" in parts)

    def codes(found: Mapping[str, Tensor]) -> Codes:
        zeros = unpack(found["zeros"].T, bits, table[0]).T.float() - 8 if "zeros" in found else None
        values = halves(unpack(found["values"], bits, columns).view(torch.int8) - 8)
        return Codes(coding, values, found["scales"].float().reshape(table), zeros)

    return PackedWeight(shape, parts, make, coding=coding, codes=codes)


def _packed_block(
    stored: Stored, name: str, scale: TensorInfo, shape: tuple[int, int], schemes: list[_Scheme]
) -> Block:
    """What shares a scale: of the scheme whose scales have this shape."""
    rows, columns = shape
    allowed: dict[tuple[int, ...], Block] = {}
    for scheme in schemes:
        if scheme.block is None:
            allowed |= {(1,): (rows, columns), (rows, 1): (1, columns), (rows,): (1, columns)}
        else:
            allowed[_table(shape, scheme.block)] = scheme.block
    return allowed[stored.part(f"{name}_scale", (scale.dtype,), *allowed).shape]


def _fp4(stored: Stored, base: str, info: TensorInfo) -> PackedWeight:
    """Two four-bit floats a byte, with powers of two (MXFP4) or eight-bit floats (NVFP4) as scales."""
    name = f"{base}.weight"
    rows, half = stored.matrix(f"{name}_packed", info)
    parts: dict[str, Any] = {"values": f"{name}_packed", "scales": f"{name}_scale"}
    shared = f"{name}_global_scale"
    size = 16 if stored.has(shared) else 32
    stored.part(f"{name}_scale", ("F8_E4M3",) if size == 16 else ("U8",), (rows, blocks(2 * half, size)))
    if size == 16:
        stored.part(shared, FLOAT_TYPES, (1,), ())
        parts["shared"] = shared

    def make(found: Mapping[str, Tensor]) -> Tensor:
        scales = found["scales"]
        scales = scales.float() / found["shared"].float() if "shared" in found else from_e8m0(scales)
        return dequantise(from_fp4(found["values"]), scales, (1, size))

    return PackedWeight((rows, 2 * half), parts, make)
