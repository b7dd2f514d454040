"""What the blocks of GGUF's tensor types stand for, as float32.

    Q4_0, Q5_0, Q8_0    d (q - offset)                 32 numbers share d
    Q4_1, Q5_1          d q + m                        32 numbers share d and m
    Q2_K, Q4_K, Q5_K    d s q - m t                    256 share d and m, each 16 or 32 of them s and t
    Q3_K, Q6_K          d s (q - offset)               256 share d, each 16 of them s
    MXFP4               2^(e - 127) value(q)           32 share e (OCP Microscaling Formats 1.0)

Bits of q lie in low halves first, then in high halves, of the same bytes; d and m are float16. Sums and products are
made in the order of the formulas in float32, so the numbers are those of the format's own reference. Layouts:
ggml-common.h and ggml-quants.c of github.com/ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sglite.runtime.quant.codes import Codes, Coding, halves

CODINGS: Mapping[str, Coding] = {"Q8_0": Coding(8, 32), "Q4_0": Coding(4, 32)}
"""Types whose numbers are codes as we have them."""
BLOCKS_AT_ONCE = 2**12
"""Unpacking takes several times the memory of what it makes; this many blocks at a time stay in a core's cache."""
_MXFP4_DOUBLED = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0)


def unpacked(type_name: str, packed: Tensor) -> Tensor:
    """Rows of whole blocks, [rows, bytes] uint8, as numbers [rows, length] float32; ``type_name``: as GGUF calls it."""
    if type_name in _PLAIN:
        return packed.view(_PLAIN[type_name]).float()
    size, length, unpack = _BLOCKS[type_name]
    blocks = packed.reshape(-1, size)
    out = torch.empty(len(blocks), length, dtype=torch.float32)
    for first in range(0, len(blocks), BLOCKS_AT_ONCE):
        part = blocks[first : first + BLOCKS_AT_ONCE]
        out[first : first + len(part)] = unpack(part).reshape(len(part), length)
    return out.view(len(packed), -1)


def in_codes(type_name: str, packed: Tensor) -> Codes:
    """As ``unpacked``, of the types that ``CODINGS`` has."""
    size, length, _ = _BLOCKS[type_name]
    coding, blocks = CODINGS[type_name], packed.reshape(-1, size)
    scales = _half(blocks[:, :2]).view(len(packed), -1)
    if coding.bits == 8:
        return Codes(coding, blocks[:, 2:].contiguous().view(torch.int8).view(len(packed), -1), scales)
    values = _halves(blocks[:, 2:], length // 2).view(len(packed), -1)
    return Codes(coding, halves(values.view(torch.int8) - 8), scales)


def _half(x: Tensor) -> Tensor:
    """Two bytes a block as a number a block, [n, 1]."""
    return x.contiguous().view(torch.float16).float()


def _halves(x: Tensor, group: int) -> Tensor:
    """Nibbles, [n, bytes / group, 2 group]: of each ``group`` bytes first the low ones, then the high ones."""
    x = x.reshape(len(x), -1, group)
    return torch.cat((x & 0x0F, x >> 4), dim=-1)


def _bits(x: Tensor, group: int, width: int) -> Tensor:
    """[n, bytes / group, 8 / width, group]: numbers of ``width`` bits, of each ``group`` bytes the lowest first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8)[:, None]
    bits: Tensor = (x.reshape(len(x), -1, 1, group) >> shifts) & (2**width - 1)
    return bits


def _fifth(x: Tensor) -> Tensor:
    """[n, 32] of 4 bytes a block: the bit that belongs to each number, as 16 or 0."""
    bits = (x[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(1) << 4


def _q4_0(x: Tensor) -> Tensor:
    return _half(x[:, :2]) * (_halves(x[:, 2:], 16).flatten(1).float() - 8)


def _q4_1(x: Tensor) -> Tensor:
    return _half(x[:, :2]) * _halves(x[:, 4:], 16).flatten(1).float() + _half(x[:, 2:4])


def _q5_0(x: Tensor) -> Tensor:
    q = _halves(x[:, 6:], 16).flatten(1) | _fifth(x[:, 2:6])
    return _half(x[:, :2]) * (q.float() - 16)


def _q5_1(x: Tensor) -> Tensor:
    q = _halves(x[:, 8:], 16).flatten(1) | _fifth(x[:, 4:8])
    return _half(x[:, :2]) * q.float() + _half(x[:, 2:4])


def _q8_0(x: Tensor) -> Tensor:
    return _half(x[:, :2]) * x[:, 2:].contiguous().view(torch.int8).float()


def _q2_k(x: Tensor) -> Tensor:
    scales, d, m = x[:, :16], _half(x[:, 80:82]), _half(x[:, 82:84])
    q = _bits(x[:, 16:80], 32, 2).reshape(len(x), 16, 16).float()
    return (d * (scales & 0x0F).float())[..., None] * q - (m * (scales >> 4).float())[..., None]


def _q3_k(x: Tensor) -> Tensor:
    low = _bits(x[:, 32:96], 32, 2).reshape(len(x), 16, 16)
    high = _bits(x[:, :32], 32, 1).reshape(len(x), 16, 16)
    packed, d = x[:, 96:108], _half(x[:, 108:110])
    scales = _halves(packed[:, :8], 8).flatten(1) | (_bits(packed[:, 8:], 4, 2).reshape(len(x), 16) << 4)
    return (d * (scales.float() - 32))[..., None] * ((low | (high << 2)).float() - 4)


def _k_scales(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima of 6 bits each, [n, 8], from 12 bytes."""
    a, b, c = x[:, :4], x[:, 4:8], x[:, 8:]
    scales = torch.cat((a & 0x3F, (c & 0x0F) | ((a >> 2) & 0x30)), dim=1)
    minima = torch.cat((b & 0x3F, (c >> 4) | ((b >> 2) & 0x30)), dim=1)
    return scales.float(), minima.float()


def _q4_k(x: Tensor) -> Tensor:
    return _k_sum(x, _halves(x[:, 16:], 32).reshape(len(x), 8, 32))


def _q5_k(x: Tensor) -> Tensor:
    fifth = _bits(x[:, 16:48], 32, 1).reshape(len(x), 8, 32) << 4
    return _k_sum(x, _halves(x[:, 48:], 32).reshape(len(x), 8, 32) | fifth)


def _k_sum(x: Tensor, q: Tensor) -> Tensor:
    scales, minima = _k_scales(x[:, 4:16])
    d, m = _half(x[:, :2]) * scales, _half(x[:, 2:4]) * minima
    return d[..., None] * q.float() - m[..., None]


def _q6_k(x: Tensor) -> Tensor:
    low = _halves(x[:, :128], 64).reshape(len(x), 16, 16)
    high = _bits(x[:, 128:192], 32, 2).reshape(len(x), 16, 16)
    scales = x[:, 192:208].contiguous().view(torch.int8).float()
    return (_half(x[:, 208:210]) * scales)[..., None] * ((low | (high << 4)).float() - 32)


def _mxfp4(x: Tensor) -> Tensor:
    # Half of the scale times twice the value: the largest scale itself, 2^128, is no float32.
    scale = torch.ldexp(torch.ones(len(x), 1), x[:, :1].int() - 128)
    return scale * torch.tensor(_MXFP4_DOUBLED)[_halves(x[:, 1:], 16).flatten(1).long()]


_PLAIN: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCKS: Mapping[str, tuple[int, int, Callable[[Tensor], Tensor]]] = {
    "Q4_0": (18, 32, _q4_0),
    "Q4_1": (20, 32, _q4_1),
    "Q5_0": (22, 32, _q5_0),
    "Q5_1": (24, 32, _q5_1),
    "Q8_0": (34, 32, _q8_0),
    "Q2_K": (84, 256, _q2_k),
    "Q3_K": (110, 256, _q3_k),
    "Q4_K": (144, 256, _q4_k),
    "Q5_K": (176, 256, _q5_k),
    "Q6_K": (210, 256, _q6_k),
    "MXFP4": (17, 32, _mxfp4),
}
