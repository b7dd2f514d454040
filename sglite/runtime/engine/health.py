"""How an engine is and what it does, as far as that is known without waiting for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Health:
    """How an engine is, as far as is known without waiting for it."""

    state: Literal["starting", "running", "dead"]
    reason: str = ""
    """Why it is not running, in one line."""
    age_s: float = 0.0
    """Seconds since its step loop was last heard of; a step that takes long counts."""
    restarts: int = 0
    """How often its process was started again."""


@dataclass(frozen=True)
class Load:
    """An engine's counters as they were ``age_s`` seconds ago; see ``EngineCore.statistics``."""

    age_s: float = 0.0
    statistics: Mapping[str, Any] = field(default_factory=dict)
