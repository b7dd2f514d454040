"""Kernels compile for an H100, whether or not there is one, and what they need fits into it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
SHARED = 227 * 1024
"""Bytes that a block may have of an H100's shared memory."""
SPILLED = {"cuda_launches": 64, "cuda_launches_attention": 256, "cuda_launches_rows": 64}
"""Bytes of a thread that may lie outside of registers: most of latents, whose sums alone are 512 numbers a query."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("module", "launches"),
    [
        *(("cuda_launches", name) for name in ("experts", "choices", "recurrence", "products")),
        ("cuda_launches_attention", "launches"),
        ("cuda_launches_rows", "launches"),
    ],
)
def test_kernels_compile_for_an_h100(module: str, launches: str, tmp_path: Path) -> None:
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path)}
    script = [sys.executable, str(TESTS / "compiled_kernels.py"), module, launches]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert kernels
    assert [kernel for kernel in kernels if kernel["shared"] > SHARED or kernel["local"] > SPILLED[module]] == []
    if launches in ("experts", "products") or module == "cuda_launches_attention":
        assert any(kernel["tensor_cores"] for kernel in kernels)
