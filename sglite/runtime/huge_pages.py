"""A process's memory in huge pages, once it has loaded what it needs.

A request that comes after a pause looks at thousands of places all over the interpreter's memory and finds neither them
nor their addresses in the processor's caches. Finding an address takes several more looks into memory, in a virtual
machine up to two dozen. With pages of two megabytes in place of four kilobytes most of those are spared.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPPINGS = Path("/proc/self/maps")
_PAGES = Path("/proc/self/pagemap")
_ANONYMOUS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0 *(?:\[heap\])?$", re.MULTILINE)
"""A mapping of private memory without a file: where it begins and ends."""
_SIZE = 2 * 2**20
_MADV_COLLAPSE = 25
"""Since Linux 6.1."""


def use() -> int:
    """Have the memory that is in use in huge pages from now on; how many bytes of it, 0 where the system has none or
    its owner wants none. Takes some ten milliseconds; at most as much memory is added as is there."""
    try:
        if "[never]" in _SETTING.read_text():
            return 0
        mappings = _ANONYMOUS.findall(_MAPPINGS.read_text())
        used = [run for begin, end in mappings for run in _used(int(begin, 16), int(end, 16))]
    except OSError:  # another system
        return 0
    libc = ctypes.CDLL(None)
    return sum(
        end - begin
        for begin, end in used
        if libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_COLLAPSE) == 0
    )


def _used(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Stretches of ``[begin, end)``, in whole huge pages, of each of which at least half is there."""
    first = None
    with _PAGES.open("rb") as pages:
        for at in range(-(-begin // _SIZE) * _SIZE, end // _SIZE * _SIZE + 1, _SIZE):
            pages.seek(at // mmap.PAGESIZE * 8)
            flags = pages.read(_SIZE // mmap.PAGESIZE * 8)[7::8] if at + _SIZE <= end else b""
            full = sum(flag >> 7 for flag in flags) * mmap.PAGESIZE * 2 >= _SIZE
            if full and first is None:
                first = at
            elif not full and first is not None:
                yield first, at
                first = None
