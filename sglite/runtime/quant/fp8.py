"""Weights in eight-bit floats: ``fp8`` (DeepSeek, Qwen and others) and ModelOpt's FP8.

    X.weight [N, K] F8     X.weight_scale_inv [ceil N/128, ceil K/128]     one scale a block of weight_block_size
                           X.weight_scale     one number, or one a row     weight = value * scale, despite the "inv"

Fused experts, ``experts.gate_up_proj`` [E, N, K], have ``experts.gate_up_proj_scale_inv`` and the like. Scales of
activations (``input_scale``) are for products in FP8 and not needed: activations are not quantised.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sglite.runtime.model.checkpoint import FLOAT_TYPES, TensorInfo, TensorSource
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields
from sglite.runtime.quant.arithmetic import blocks, dequantise
from sglite.runtime.quant.packed import PackedWeight, Unpacked
from sglite.runtime.quant.stored import Stored

F8_TYPES = ("F8_E4M3", "F8_E5M2")
SCALE_TYPES = (*FLOAT_TYPES, "F8_E8M0")
ZERO_TYPES = ("I8", "U8", "I16", "I32")
Block = tuple[int, int]


def fp8(source: TensorSource, fields: Fields) -> Unpacked:
    """The view of an ``fp8`` checkpoint."""
    block = read_block(fields, "weight_block_size")
    stored = Stored(source, "fp8")
    find_fp8(stored, block)
    return stored.view()


def modelopt(source: TensorSource, fields: Fields) -> Unpacked:
    """The view of an FP8 checkpoint of ModelOpt; its other formats are refused."""
    algorithm = fields.text("quant_algo", "unnamed")
    if algorithm.upper() != "FP8":
        raise ModelError(
            f"{fields.where}.quant_algo={algorithm!r:.80} is not supported; supported: FP8; "
            "use an FP8 or the unquantised checkpoint"
        )
    stored = Stored(source, "modelopt")
    find_fp8(stored, None)
    return stored.view()


def read_block(fields: Fields, name: str) -> Block | None:
    """Rows and columns that share a scale; ``None`` when absent."""
    sizes = fields.sequence(name)
    if not sizes:
        return None
    if len(sizes) != 2 or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise ModelError(f"{fields.where}: field {name!r} is {sizes!r:.80}; it must be two positive integers")
    return sizes[0], sizes[1]


def find_fp8(stored: Stored, block: Block | None) -> None:
    """Claim every tensor of eight-bit floats, with its scales."""
    for name, info in stored.ending("", *F8_TYPES):
        scale = next((name + end for end in ("_scale_inv", "_scale") if stored.has(name + end)), None)
        if scale is None:
            stored.refuse(f"{name} is {info.dtype}, but {name}_scale_inv and {name}_scale are missing")
        stored.weights[name] = scaled(stored, name, info, scale, block)
        base = name.removesuffix(".weight")
        kinds = ("input_scale", "activation_scale")
        stored.drop(*(f"{base}.{kind}" for kind in kinds), *(f"{name}_{kind}" for kind in kinds))


def scaled(
    stored: Stored, name: str, info: TensorInfo, scale: str, block: Block | None, zero: str | None = None
) -> PackedWeight:
    """A weight of small numbers times scales, with a scale a ``block``, or a row or tensor where it is None.

    ``zero``: what is taken off the numbers before, in the scales' shape.
    """
    if len(info.shape) < 2 or 0 in info.shape:
        stored.refuse(f"{name} has shape {list(info.shape)}; it must be a matrix")
    *outer, rows, columns = info.shape
    if block is None:
        block = _rows_or_all(stored, info.shape, scale)
        table = (*outer, blocks(rows, block[0]), 1)
    else:
        table = (*outer, blocks(rows, block[0]), blocks(columns, block[1]))
        stored.part(scale, SCALE_TYPES, table)
    parts = {"values": name, "scales": scale}
    if zero is not None:
        stored.part(zero, ZERO_TYPES, stored.part(scale, SCALE_TYPES).shape)
        parts["zeros"] = zero

    def unpack(found: Mapping[str, Tensor]) -> Tensor:
        zeros = _table(found["zeros"], table) if "zeros" in found else None
        return dequantise(found["values"], _table(found["scales"], table), block, zeros)

    return PackedWeight(info.shape, parts, unpack)


def _rows_or_all(stored: Stored, shape: tuple[int, ...], scale: str) -> Block:
    """The block of a scale a row or a tensor; of several experts in one tensor, also of one an expert."""
    *outer, rows, columns = shape
    each_row = ((*outer, rows, 1), (*outer, rows))
    found = stored.part(scale, SCALE_TYPES, *each_row, (*outer, 1, 1), (*outer, 1), tuple(outer), (1,), ())
    return (1, columns) if found.shape in each_row else (rows, columns)


def _table(numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
    """In the shape of the blocks; a single number is that of all."""
    return numbers.float().expand(shape) if numbers.numel() == 1 else numbers.float().reshape(shape)
