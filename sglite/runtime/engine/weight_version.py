"""What an engine's weights are called."""

from __future__ import annotations

from typing import Any

FIRST_VERSION = "default"
"""Of the weights that an engine was started with, as in SGLang."""
MAX_VERSION = 256


class WeightVersion:
    """What the present weights are called; ``name`` changes with them. Outputs hold on to this and to no engine."""

    def __init__(self, name: str = FIRST_VERSION) -> None:
        self.name = name


def check_version(version: Any) -> None:
    """``ValueError`` for what cannot be the name of weights."""
    if not isinstance(version, str) or not 0 < len(version) <= MAX_VERSION:
        raise ValueError(f"weight_version must be text of 1 to {MAX_VERSION} characters, got {str(version)[:80]!r}")
