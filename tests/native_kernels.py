"""Backends by what computes, for tests that hold for all of them; skipped where the processor or a compiler lacks."""

from __future__ import annotations

import functools

import pytest

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cpu_native import NativeBackend, cpu_backend
from sglite.runtime.backend.native_library import LEVELS

FAST = ("avx2", "avx512_bf16")
NATIVE = [level if level in FAST else pytest.param(level, marks=pytest.mark.slow) for level in LEVELS]
"""Instruction sets, as parameters; tests of all of them take their time."""
CODED = [level if level in (*FAST, "avx512_vnni") else pytest.param(level, marks=pytest.mark.slow) for level in LEVELS]
"""The same for what reads codes, where one more has kernels of its own."""


@functools.lru_cache
def backend_of(kernels: str) -> CPUBackend:
    """``torch``, ``auto`` or an instruction set; two threads, so that work is shared out."""
    try:
        made = cpu_backend(2, kernels)
    except BackendError as error:
        if "not compile" in str(error):
            raise
        pytest.skip(str(error))
    if kernels != "torch" and not isinstance(made, NativeBackend):
        pytest.skip("there are no native kernels here")
    return made
