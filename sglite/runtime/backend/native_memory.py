"""Memory for the first pages of a pool before a prompt needs it.

A pool takes memory as it is filled, and the system clears what it hands out: a fifth of the time of a first long prompt
on a virtual machine. So what is handed out first is brought in beside whatever comes after loading; not at a lower
priority, since whoever brings in memory holds a lock that the whole process waits for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from torch import Tensor

from sglite.runtime.backend.native_library import Library
from sglite.runtime.cache.pool import KVPool

MOST_BYTES = 256 << 20
MOST_SHARE = 8
"""No more than one part in so many of a pool."""
_AT_ONCE = 8 << 20


def bring_first_pages(library: Library, pool: KVPool) -> threading.Thread | None:
    """Start a thread that does so; ``None`` where a pool is too small to be worth it."""
    whole = sum(tensor.nbytes for tensor in (*pool.paged(False), *pool.paged(True)))
    wanted = min(MOST_BYTES, whole // MOST_SHARE)
    if wanted < _AT_ONCE:
        return None
    thread = threading.Thread(target=_bring, args=(library, pool, wanted / whole), name="sglite-memory", daemon=True)
    thread.start()
    return thread


def _bring(library: Library, pool: KVPool, share: float) -> None:
    for part in _parts(pool, share):
        library.bring(part)


def _parts(pool: KVPool, share: float) -> Iterator[Tensor]:
    """The first rows of all tensors, some of every tensor before more of one: as pages are handed out."""
    tensors = (*pool.paged(False), *pool.paged(True))
    steps = max(1, int(share * sum(tensor.nbytes for tensor in tensors)) // _AT_ONCE)
    for step in range(steps):
        for tensor in tensors:
            rows = share * len(tensor) / steps
            yield tensor[int(rows * step) : int(rows * (step + 1))]
