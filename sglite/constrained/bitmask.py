"""Packed token masks: int32 words, bit i of word w stands for token 32 * w + i, 1 means allowed.

The layout is the one that xgrammar and llguidance use and that the sampler reads.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.int32]


def words_for(size: int) -> int:
    """Words needed for `size` tokens."""
    return (size + 31) // 32


def allocate(rows: int, size: int) -> Mask:
    """An all-allowed mask, int32 [rows, words]."""
    return np.full((rows, words_for(size)), -1, dtype=np.int32)


def fill_all(mask: Mask) -> None:
    """Allow everything, padding bits included."""
    mask.fill(-1)


def is_all(mask: Mask) -> bool:
    """Whether every bit is set."""
    return bool((mask == -1).all())


def from_ids(ids: Iterable[int], size: int) -> Mask:
    """A row that allows exactly `ids`, int32 [words]."""
    mask = np.zeros(words_for(size), dtype=np.int32)
    allow(mask, ids)
    return mask


def allow(mask: Mask, ids: Iterable[int]) -> None:
    """Set the bits of `ids` in one row."""
    index = np.fromiter(ids, dtype=np.int64)
    np.bitwise_or.at(mask.view(np.uint32), index >> 5, np.uint32(1) << (index & 31).astype(np.uint32))


def forbid(mask: Mask, ids: Iterable[int]) -> None:
    """Clear the bits of `ids` in one row."""
    index = np.fromiter(ids, dtype=np.int64)
    np.bitwise_and.at(mask.view(np.uint32), index >> 5, ~(np.uint32(1) << (index & 31).astype(np.uint32)))


def clear_padding(mask: Mask, size: int) -> None:
    """Clear the bits of one row past the last token."""
    if size % 32:
        mask.view(np.uint32)[size // 32] &= np.uint32((1 << size % 32) - 1)


def allows(mask: Mask, token_id: int) -> bool:
    """Whether one id is allowed in one row."""
    return bool(mask.view(np.uint32)[token_id >> 5] >> np.uint32(token_id & 31) & np.uint32(1))


def to_ids(mask: Mask) -> NDArray[np.int64]:
    """The allowed ids of one row, ascending."""
    # only the words with a bit set are unpacked: most masks of a structural position have very few
    view = mask.view(np.uint32)
    where = np.flatnonzero(view)
    bits = np.unpackbits(view[where].astype("<u4").view(np.uint8), bitorder="little").reshape(-1, 32)
    word, bit = np.nonzero(bits)
    return (where[word] * 32 + bit).astype(np.int64)


def count(mask: Mask) -> int:
    """Number of bits set in one row."""
    return int(np.unpackbits(mask.view(np.uint8)).sum())


def only(mask: Mask) -> int | None:
    """The single allowed id of one row, or None when there are none or several."""
    view = mask.view(np.uint32)
    where = np.flatnonzero(view)
    if where.size != 1:
        return None
    word = int(view[where[0]])
    return None if word & (word - 1) else int(where[0]) * 32 + word.bit_length() - 1
