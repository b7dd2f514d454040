"""Page tables of many rows as one array: what planning a step of many rows mostly takes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter

import numpy as np
import numpy.typing as npt

TYPECODE = "i"
"""Of tables that are arrays: C's int, which has 32 bits wherever numpy's int32 is one."""
_TYPECODE_OF = attrgetter("typecode")


def joined(tables: Sequence[Sequence[int]], counts: Sequence[int]) -> npt.NDArray[np.int32]:
    """The first numbers of every table, so many as ``counts`` says, one behind the other.

    Tables that are arrays of ``TYPECODE`` are copied as they lie, several times as fast as others number by number.
    """
    used = [table[:count] for table, count in zip(tables, counts, strict=True)]
    if set(map(type, used)) == {array} and set(map(_TYPECODE_OF, used)) == {TYPECODE}:
        return np.frombuffer(bytearray().join(used), dtype=np.int32)  # type: ignore[arg-type]
    return np.fromiter(chain.from_iterable(used), dtype=np.int32)
