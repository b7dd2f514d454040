"""Rotary position embedding (Su et al., https://arxiv.org/abs/2104.09864) in the half-split layout: dimension i turns
together with dimension i + head_dim / 2.

Scaled variants change the frequencies once, from the config: ``linear`` (position interpolation,
https://arxiv.org/abs/2306.15595), ``llama3`` (Llama 3.1, by wavelength) and ``yarn`` (https://arxiv.org/abs/2309.00071).
Angles are computed in float32 from the positions of the step, so no table grows with the context.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sglite.runtime.model.rope_config import RopeConfig


class RotaryAngles(NamedTuple):
    """cos and sin of every token of a step, [T, 1, rotary_dim / 2], in the activations' dtype."""

    cos: Tensor
    sin: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        """Turn the first rotary_dim dimensions of x [T, heads, head_dim]."""
        turned, kept = x[..., : 2 * self.cos.shape[-1]], x[..., 2 * self.cos.shape[-1] :]
        a, b = turned.chunk(2, dim=-1)
        return torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin, kept), dim=-1)

    def rotate_pairs(self, x: Tensor) -> Tensor:
        """Turn x [T, heads, rotary_dim] where dimension 2 i turns together with 2 i + 1 (DeepSeek)."""
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * self.cos - b * self.sin, b * self.cos + a * self.sin), dim=-1).flatten(-2)


class Rotary:
    """Angles for given positions."""

    def __init__(self, rope: RopeConfig, head_dim: int, device: torch.device) -> None:
        self.inv_freq = inverse_frequencies(rope, head_dim).to(device)
        self.scale = attention_scale(rope)

    def angles(self, positions: Tensor, dtype: torch.dtype) -> RotaryAngles:
        """Angles at ``positions`` [T], integers."""
        angle = positions[:, None, None].to(torch.float32) * self.inv_freq
        return RotaryAngles((angle.cos() * self.scale).to(dtype), (angle.sin() * self.scale).to(dtype))


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position, [head_dim / 2] float32 on the host."""
    plain = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.divisors:
        return plain / torch.tensor(rope.divisors)
    if rope.rope_type == "linear":
        return plain / rope.factor
    if rope.rope_type == "llama3":
        return _llama3(plain, rope)
    if rope.rope_type == "yarn":
        return _yarn(plain, rope, head_dim)
    return plain


def attention_scale(rope: RopeConfig) -> float:
    """What cos and sin are multiplied by: yarn's temperature (section 3.4 of its paper), else 1."""
    if rope.rope_type != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return temperature(rope, rope.mscale) / temperature(rope, rope.mscale_all_dim)
    return temperature(rope, 1.0)


def temperature(rope: RopeConfig, mscale: float) -> float:
    """Yarn's factor on q and on k, weighted by ``mscale``."""
    return 1.0 if rope.factor <= 1 else 0.1 * mscale * math.log(rope.factor) + 1.0


def _llama3(plain: Tensor, rope: RopeConfig) -> Tensor:
    """Long wavelengths are interpolated, short ones kept, those between blended."""
    turns = rope.original_max_positions * plain / (2 * math.pi)  # over the original context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = blend.clamp(0.0, 1.0)
    return (1 - keep) * plain / rope.factor + keep * plain


def _yarn(plain: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    """Dimensions that turn more than ``beta_fast`` times over the original context are kept, those below
    ``beta_slow`` interpolated, with a linear ramp over the dimension index between."""

    def dimension(turns: float) -> float:
        return head_dim * math.log(rope.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    interpolate = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0.0, 1.0)
    return plain / rope.factor * interpolate + plain * (1 - interpolate)
