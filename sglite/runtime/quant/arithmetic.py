"""From small numbers and scales to weights, in float32, in pieces of bounded size.

    weight[..., n, k] = (value[..., n, k] - zero[..., n / rows, k / columns]) * scale[..., n / rows, k / columns]

A *block* is the rows and columns that share a scale: (1, 128) for groups of 128 inputs, (128, 128) for FP8 blocks. The
last block of a row or column may be partial. Values and zeros are whole or tiny floats, so the difference is exact and
the product rounds once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PIECE = 2**22
"""Weights that are made at a time, besides the result itself."""
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What the sixteen codes of four-bit floats (E2M1) stand for."""


def dequantise(
    values: Tensor,
    scales: Tensor,
    block: tuple[int, int],
    zeros: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """``values`` [..., N, K] of any type to float32. ``scales`` and ``zeros`` [..., ceil(N / rows), ceil(K / columns)].

    ``groups`` [K]: which column of ``scales`` each input has, where they are not in order.
    """
    rows, columns = values.shape[-2:]
    out = torch.empty(values.shape, dtype=torch.float32)
    pairs = zip(out.view(-1, rows, columns), values.reshape(-1, rows, columns), strict=True)
    step = _lines(columns)
    for i, (whole, source) in enumerate(pairs):
        tables = [table.reshape(-1, *table.shape[-2:])[i].float() for table in (scales, zeros) if table is not None]
        for first in range(0, rows, step):
            part = whole[first : first + step]
            part.copy_(source[first : first + step])
            lines = torch.arange(first, first + len(part)) // block[0]
            if zeros is not None:
                _spread(part, tables[1][lines], block[1], groups, Tensor.sub_)
            _spread(part, tables[0][lines], block[1], groups, Tensor.mul_)
    return out


def _spread(
    part: Tensor, table: Tensor, width: int, groups: Tensor | None, apply: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Apply each number of ``table`` [n, blocks] to its ``width`` columns of ``part`` [n, K]."""
    columns = part.shape[1]
    if groups is not None:
        apply(part, table.index_select(1, groups))
    elif table.shape[1] * width == columns:
        apply(part.view(len(part), -1, width), table[:, :, None])
    else:
        apply(part, table.repeat_interleave(width, dim=1)[:, :columns])


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """Unsigned numbers of ``bits`` (1 to 8), packed without gaps, lowest bits first: ``words`` [..., W] of any whole
    type to uint8 [..., count]."""
    data = words.reshape(-1).view(torch.uint8).view(*words.shape[:-1], -1)
    if bits == 8:
        return data[..., :count]
    if bits == 4:
        return torch.stack((data & 15, data >> 4), dim=-1).flatten(-2)[..., :count]
    lines = data.view(-1, data.shape[-1])
    out = torch.empty((len(lines), count), dtype=torch.uint8)
    for first in range(0, len(lines), _lines(count)):
        part = slice(first, first + _lines(count))
        out[part] = _across_bytes(lines[part], bits, count)
    return out.view(*words.shape[:-1], count)


def _across_bytes(data: Tensor, bits: int, count: int) -> Tensor:
    """Numbers that may begin in one byte and end in the next: uint8 [n, bytes] to int16 [n, count]."""
    first = torch.arange(count) * bits
    low = data[:, first // 8].to(torch.int16)
    high = data[:, (first // 8 + 1).clamp(max=data.shape[1] - 1)].to(torch.int16)
    numbers: Tensor = ((low | (high << 8)) >> (first % 8)) & (2**bits - 1)
    return numbers


def _lines(columns: int) -> int:
    """How many rows are a piece."""
    return max(1, PIECE // columns)


def from_fp4(data: Tensor) -> Tensor:
    """Two four-bit floats a byte, the low one first: uint8 [..., n] to float32 [..., 2 n]."""
    codes = unpack(data, 4, 2 * data.shape[-1])
    return torch.tensor(FP4).index_select(0, codes.flatten().int()).view(codes.shape)


def from_e8m0(exponents: Tensor) -> Tensor:
    """Powers of two as their exponents plus 127 (uint8), to float32; 255 is NaN."""
    return exponents.contiguous().view(torch.float8_e8m0fnu).float()


def blocks(size: int, block: int) -> int:
    """How many blocks a dimension has, the last perhaps partial."""
    return -(-size // block)


def groups_in_order(groups: Tensor | None, inputs: int, size: int) -> Tensor | None:
    """The groups of inputs, or ``None`` where they come one after the other. ValueError: a number is no group's."""
    if groups is None or bool((groups == -1).all()):
        return None
    if bool((groups < 0).any()) or bool((groups >= blocks(inputs, size)).any()):
        raise ValueError(f"groups of inputs (g_idx) must be from 0 to {blocks(inputs, size) - 1}")
    return None if torch.equal(groups, (torch.arange(inputs) // size).to(groups.dtype)) else groups.long()
