"""The shared library of the native kernels: what it is made of. ``sglite/compiled.py`` finds or builds it.

One library has the kernels of every instruction set; the processor decides when it runs. A wheel may carry it beside
the sources (``csrc/libsglite_kernels.so``).
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from sglite import compiled
from sglite.compiled import NativeUnavailable, cache_folder

__all__ = ["PREBUILT", "SOURCES", "VARIANTS", "NativeUnavailable", "build", "cache_folder", "load"]

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wno-psabi", "-pthread")
_WIDE = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512")
_TILES = ("-mamx-tile", "-mamx-bf16", "-mamx-int8", "-DSG_TILES")
_PRODUCTS = (*_WIDE, "-mavx512bf16", "-mavx512vnni")
VARIANTS = {
    "avx2": ("-mavx2", "-mfma"),
    "avx512": _WIDE,
    "avx512_bf16": _PRODUCTS,
    "avx512_amx": (*_PRODUCTS, *_TILES),
}
"""Instruction sets, and what has the compiler use them in ``kernels.cpp``."""
SOURCES = compiled.Sources(
    what="native kernels",
    plural=True,
    name="kernels",
    folder=Path(__file__).resolve().parent / "csrc",
    flags=FLAGS,
    variants={
        "kernels.cpp": {name: (*flags, f"-DSG_TABLE=sg_{name}") for name, flags in VARIANTS.items()},
        "byte_products.cpp": {"": (*_WIDE, "-mavx512vnni")},
    },
)
PREBUILT = SOURCES.folder / "libsglite_kernels.so"


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The library. Raises NativeUnavailable."""
    if platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux":
        raise NativeUnavailable(f"native kernels are for x86-64 Linux, not {platform.machine()} {platform.system()}")
    return compiled.load(SOURCES, PREBUILT)


def build(folder: Path, link: Sequence[str] = ()) -> Path:
    """The library in ``folder``, compiled unless it is there; see ``compiled.build``."""
    return compiled.build(SOURCES, folder, link)
