"""The shared library of the native engine: what it is made of. `sglite/compiled.py` finds or builds it.

Built for any processor of the architecture. A wheel may carry it beside the sources (`csrc/libsglite_constrained.so`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from sglite import compiled
from sglite.compiled import NativeUnavailable, cache_folder

__all__ = ["PREBUILT", "SOURCES", "NativeUnavailable", "build", "cache_folder", "load", "loaded"]

SOURCES = compiled.Sources(
    what="native constraint engine",
    plural=False,
    name="constrained",
    folder=Path(__file__).resolve().parent.parent / "csrc",
    flags=("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-pthread"),
)
PREBUILT = SOURCES.folder / "libsglite_constrained.so"


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The library. Raises NativeUnavailable."""
    return compiled.load(SOURCES, PREBUILT)


def loaded() -> ctypes.CDLL | None:
    """The library if it was loaded before."""
    return load() if load.cache_info().currsize else None


def build(folder: Path, link: Sequence[str] = ()) -> Path:
    """The library in `folder`, compiled unless it is there; see `compiled.build`."""
    return compiled.build(SOURCES, folder, link)
