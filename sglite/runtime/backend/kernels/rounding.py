"""Rounding to a tensor's type as the specification does it: to nearest, ties to even.

On a GPU that is what a conversion does. Triton's interpreter cuts bits off instead where it makes bfloat16 of float32,
and counts with the bits of bfloat16 as whole numbers: kernels compute in float32 and come back by way of ``rounded``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sglite.runtime.backend.kernels.device import INTERPRETED

_CUTS = tl.constexpr(INTERPRETED)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 ``x`` as ``dtype``."""
    if _CUTS and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def through(x, dtype: tl.constexpr):
    """float32 ``x`` as it is after a stay in ``dtype``."""
    return rounded(x, dtype).to(tl.float32)
