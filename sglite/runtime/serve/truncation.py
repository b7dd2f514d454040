"""``truncate_prompt_tokens`` and ``truncation_side``, as vLLM has them: a part of a prompt that is too long."""

from __future__ import annotations

from dataclasses import dataclass

from sglite.runtime.serve.fields import Fields
from sglite.runtime.serve.serving import Serving


@dataclass(frozen=True)
class Truncation:
    """How many tokens of a prompt are kept, and whether from its end or from its beginning."""

    keep: int
    side: str = "left"
    """The side that is cut off."""

    def cut(self, ids: list[int]) -> list[int]:
        """What is kept of ``ids``."""
        return ids[-self.keep :] if self.side == "left" else ids[: self.keep]


def read_truncation(serving: Serving, fields: Fields, max_tokens: int | None) -> Truncation | None:
    """``None``: prompts are taken whole. -1 keeps what leaves room for ``max_tokens``."""
    most = serving.capacity
    keep = fields.integer("truncate_prompt_tokens", -1, most)
    side = fields.one_of("truncation_side", ("left", "right")) or "left"
    if keep == 0:
        raise fields.wrong("truncate_prompt_tokens", f"must be -1 or in [1, {most}]")
    if keep is None:
        return None
    return Truncation(max(1, most - (1 if max_tokens is None else max_tokens)) if keep == -1 else keep, side)
