"""What rows ask of the draw: their parameters side by side and the random number of each.

What a number stands for is said in ``backend/cpu_sample.py``.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from sglite.runtime.backend.draws import Draws
from sglite.runtime.sample.adjust import SampleRow

_KEY = struct.Struct("<QQQ")


def uniform(seed: int, position: int, attempt: int) -> float:
    """The random number in [0, 1), a multiple of 2**-53, of one draw: a hash of its key, so that it depends on
    nothing else and needs no state (counter-based, after Salmon et al., SC 2011, with BLAKE2b as the hash)."""
    key = _KEY.pack(seed % 2**64, position, attempt)
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 11) * 2.0**-53


def draws_of(rows: Sequence[SampleRow]) -> Draws:
    """The draws of ``rows``; greedy ones need no random number."""
    heats, numbers = [], []
    for row in rows:
        greedy = row.params.is_greedy
        heats.append(0.0 if greedy else row.params.temperature)
        numbers.append(0.0 if greedy else uniform(row.seed, row.position, row.attempt))
    every = [row.params for row in rows]
    return Draws(
        temperatures=_tensor(heats, np.float32),
        top_k=_tensor([max(0, params.top_k) for params in every], np.int32),
        top_p=_tensor([params.top_p for params in every], np.float64),
        min_p=_tensor([params.min_p for params in every], np.float64),
        uniforms=_tensor(numbers, np.float64),
    )


def _tensor(numbers: Sequence[float], kind: DTypeLike) -> Tensor:
    return torch.from_numpy(np.array(numbers, dtype=kind))  # faster than torch's own way
