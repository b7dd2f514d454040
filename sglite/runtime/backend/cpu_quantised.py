"""The specification of products with coded matrices, in plain torch.

8 bits (W8A8): the rows of ``x`` are coded too, when they come, in the same groups; whole numbers are multiplied and
added up exactly:

    scale = absmax(x) / 127      q = x * (127 / absmax(x)), rounded to nearest, ties to even
    out   = sum over groups of (sum of q code) * scale of the weight * scale of x

4 bits: numbers as they are coded for times ``x``, in float32, so that nothing is rounded but the sums.

A group of ``x`` whose largest magnitude is below ``LEAST`` counts as zeros; one that has NaN or infinity gives NaN.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sglite.runtime.quant.codes import PIECE, Codes

LEAST = 2.0**-100
"""127 divided by anything larger is a number."""


def product(x: Tensor, codes: Codes, bias: Tensor | None = None) -> Tensor:
    """``x`` [..., in] times a coded matrix [out, in] transposed, plus ``bias``: [..., out] float32."""
    rows = x.reshape(-1, x.shape[-1])
    out = _whole_product(rows, codes) if codes.coding.bits == 8 else _float_product(rows, codes)
    if bias is not None:
        out += bias.float()
    return out.view(*x.shape[:-1], -1)


def rows_in_codes(x: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
    """``x`` [rows, in] as int8 codes and float32 scales [rows, groups]."""
    parts = x.float().reshape(len(x), groups, -1)
    largest = parts.abs().amax(dim=-1, keepdim=True)
    counts = (largest >= LEAST) & largest.isfinite()
    factor = torch.full_like(largest, 127.0) / largest  # a number divided by a tensor is rounded twice
    whole = (parts * torch.where(counts, factor, 0.0)).nan_to_num_(0, 0, 0).round_()
    scales = torch.where(counts, largest / 127, torch.where(largest.isfinite(), 0.0, math.nan))
    return whole.to(torch.int8).view(x.shape), scales[..., 0]


def _whole_product(x: Tensor, codes: Codes) -> Tensor:
    groups = codes.scales.shape[1]
    out = torch.zeros(len(x), len(codes.values))
    if len(x):
        whole, scales = rows_in_codes(x, groups)
        parts = zip(whole.chunk(groups, 1), codes.values.chunk(groups, 1), codes.scales.unbind(1), strict=True)
        for g, (part, values, scale) in enumerate(parts):
            out += torch._int_mm(part.contiguous(), values.t()).float() * scale * scales[:, g, None]
    return out


def _float_product(x: Tensor, codes: Codes) -> Tensor:
    outputs, inputs = codes.shape
    step = max(1, PIECE // inputs)
    x = x.float()
    out = torch.empty(len(x), outputs)
    for first in range(0, outputs, step):
        out[:, first : first + step] = F.linear(x, codes.rows(first, step).numbers())
    return out
