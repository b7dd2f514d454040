"""What becomes of memory that a step has freed: it stays in the process, for the next step wants as much.

A step's tensors live for milliseconds. A C library that hands them back to the system at once, and fetches them anew,
spends more time on pages being cleared than many a step spends on sampling.
"""

from __future__ import annotations

import ctypes

KEPT = 128 * 2**20
"""Bytes that are kept at most, a thread."""
LARGEST = 32 * 2**20
"""Bytes of a piece of memory beyond which it is handed back all the same."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's ``mallopt``."""


def keep_freed_memory() -> bool:
    """From now on freed memory stays in this process; ``False``: the C library leaves no choice."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT))
