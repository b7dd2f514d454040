"""What kernels ask about where they run."""

from __future__ import annotations

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton runs its kernels in Python, on tensors of the CPU; its ``dot`` has no bfloat16 there."""
