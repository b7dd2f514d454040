"""Matrices of small whole numbers with scales: what they stand for, and how they are made of others.

    number[n, k] = (code[n, k] - zero[n, g]) * scale[n, g]          g = k / group

    8 bits     codes from -128 to 127, int8 [out, in]; zeros are 0
    4 bits     codes from -8 to 7, uint8 [out, in / 2]: two a byte, each plus 8, that of the even input in the low half

Numbers are made in float32, the product rounded once. What products with such matrices are: ``backend/cpu_quantised``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 16
"""Outputs of a matrix that may be coded are a multiple of it."""
STEP = 8
"""As are inputs that share a scale of this."""
PIECE = 2**20
"""Numbers that are made or read at a time."""
_LEAST = 1e-30
"""Of a scale that anything is divided by; what is below stands for zeros."""


@dataclass(frozen=True)
class Coding:
    """How a matrix is coded."""

    bits: int
    """8 or 4."""
    group: int | None = None
    """Inputs that share a scale; ``None``: all of an output."""
    zeros: bool = False
    """There are zeros. With four bits only."""

    def fits(self, outputs: int, inputs: int) -> bool:
        """Whether a matrix of that size may be coded so."""
        group = self.group or inputs
        return outputs % BLOCK == 0 and group % STEP == 0 and inputs % group == 0 and inputs > 0

    def groups(self, inputs: int) -> int:
        """Scales of an output."""
        return inputs // (self.group or inputs)


@dataclass(frozen=True)
class Codes:
    """A coded matrix."""

    coding: Coding
    values: Tensor
    """See the module."""
    scales: Tensor
    """[out, groups] float32"""
    zeros: Tensor | None = None
    """[out, groups] float32"""
    dtype: torch.dtype = torch.float32
    """Of the numbers where they are read row by row, and of what they are multiplied with."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        outputs, width = self.values.shape
        return outputs, width * 8 // self.coding.bits

    @property
    def nbytes(self) -> int:
        """Memory, scales included."""
        return self.values.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)

    def rows(self, first: int, count: int) -> Codes:
        """Some of its rows, a view."""
        part = slice(first, first + count)
        zeros = None if self.zeros is None else self.zeros[part]
        return Codes(self.coding, self.values[part], self.scales[part], zeros, self.dtype)

    def at(self, rows: Tensor) -> Codes:
        """The rows of these numbers [n] int64, a copy."""
        zeros = None if self.zeros is None else self.zeros[rows]
        return Codes(self.coding, self.values[rows], self.scales[rows], zeros, self.dtype)

    def numbers(self) -> Tensor:
        """What it stands for, [out, in] float32."""
        outputs, inputs = self.shape
        whole = self.whole().float().view(outputs, self.scales.shape[1], -1)
        if self.zeros is not None:
            whole -= self.zeros[:, :, None]
        whole *= self.scales[:, :, None]
        return whole.view(outputs, inputs)

    def whole(self) -> Tensor:
        """The codes, int8 [out, in]."""
        if self.coding.bits == 8:
            return self.values
        pairs = torch.stack((self.values & 15, self.values >> 4), dim=-1).flatten(-2)
        return pairs.view(torch.int8) - 8

    def take(self, other: Codes) -> None:
        """Become equal to ``other``, of the same coding and shape."""
        self.values.copy_(other.values)
        self.scales.copy_(other.scales)
        if self.zeros is not None and other.zeros is not None:
            self.zeros.copy_(other.zeros)

    def encode(self, numbers: Tensor) -> None:
        """Become the codes of ``numbers`` [out, in] of any floating type, in pieces. NaN and infinity get into scales,
        and nowhere else."""
        step = max(1, PIECE // max(1, numbers.shape[1]))
        for first in range(0, len(numbers), step):
            rows = numbers[first : first + step]
            self.rows(first, len(rows)).take(encoded(rows, self.coding))

    def equal(self, other: Codes) -> bool:
        """Whether all codes and scales are."""
        zeros = self.zeros is None or (other.zeros is not None and torch.equal(self.zeros, other.zeros))
        return zeros and torch.equal(self.values, other.values) and torch.equal(self.scales, other.scales)


class Allocate(Protocol):
    """As ``torch.empty``."""

    def __call__(self, *shape: int, dtype: torch.dtype) -> Tensor: ...


def empty(coding: Coding, outputs: int, inputs: int, *, dtype: torch.dtype, allocate: Allocate = torch.empty) -> Codes:
    """Codes of a matrix, not filled."""
    kind = torch.int8 if coding.bits == 8 else torch.uint8
    values = allocate(outputs, inputs * coding.bits // 8, dtype=kind)
    table = (outputs, coding.groups(inputs))
    scales = allocate(*table, dtype=torch.float32)
    return Codes(coding, values, scales, allocate(*table, dtype=torch.float32) if coding.zeros else None, dtype)


def encoded(numbers: Tensor, coding: Coding) -> Codes:
    """The codes that are nearest to ``numbers`` [out, in], by groups:

    8 bits          the largest magnitude is 127
    4 bits          the largest magnitude is -8, whatever its sign: all sixteen codes are used
    4 bits, zeros   the range, with 0 in it, is cut into fifteen equal steps of which 0 is one
    """
    outputs, inputs = numbers.shape
    parts = numbers.float().view(outputs, coding.groups(inputs), -1)
    low, high = parts.aminmax(dim=-1)
    zeros = None
    if coding.bits == 8:
        scales = torch.maximum(high, -low) / 127
    elif coding.zeros:
        low, high = low.clamp(max=0), high.clamp(min=0)
        scales = (high - low) / 15
        zeros = (-low * _inverse(scales)).round_() - 8
    else:
        scales = torch.where(high > -low, high, low) / -8
    whole = parts * _inverse(scales)[:, :, None]
    if zeros is not None:
        whole += zeros[:, :, None]
    most = 127 if coding.bits == 8 else 7
    codes = whole.round_().clamp_(-most - (coding.bits == 4), most).to(torch.int8).view(outputs, inputs)
    return Codes(coding, codes if coding.bits == 8 else halves(codes), scales, zeros, numbers.dtype)


def halves(codes: Tensor) -> Tensor:
    """Codes from -8 to 7, [out, in] int8, two a byte."""
    whole = (codes + 8).view(torch.uint8)
    return whole[:, ::2] | (whole[:, 1::2] << 4)


def _inverse(scales: Tensor) -> Tensor:
    return torch.where(scales.abs() > _LEAST, 1 / scales, 0.0)


def groups_of(inputs: int) -> int | None:
    """Inputs that share a scale of four bits where a model is quantised while it is loaded; ``None``: it cannot be."""
    return next((group for group in (128, 64, 32) if inputs % group == 0), None)
