"""What a run has cost so far: sums over its requests of what back ends report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_COUNTERS = (
    "prompt_tokens",
    "cached_tokens",
    "computed_prompt_tokens",
    "completion_tokens",
    "forced_tokens",
    "forward_passes",
    "replayed_tokens",
)


@dataclass
class Usage:
    """Counts over the requests of one run; a retry and a ``select`` are one request each. What a back end does not
    report counts as 0. What forks computed ahead of their branches is in the engine's own accounting only."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_prompt_tokens: int = 0
    completion_tokens: int = 0
    forced_tokens: int = 0
    forward_passes: int = 0
    replayed_tokens: int = 0

    def add(self, metas: list[dict[str, Any]]) -> None:
        """One more request, whose outputs report ``metas``."""
        self.requests += 1
        for meta in metas:
            for name in _COUNTERS:
                count = meta.get(name)
                if isinstance(count, (int, float)):
                    setattr(self, name, getattr(self, name) + int(count))

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        names = self.__dataclass_fields__
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in names})
