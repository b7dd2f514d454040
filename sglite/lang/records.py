"""What a run notes of its nodes; views and explanations read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class NodeRecord:
    """What became of a node in a run; nodes that only concern text have none.

    ``started``, ``ended``: seconds since the run began. ``text``: what the node added to its stream. ``meta``: what
    the back end said of its last request (SGLang's ``meta_info``; a list with n > 1), ``metas``: of every attempt.
    ``prompt_chars``: length of the stream before it. ``token_ids``: of the output, where the back end tells them.
    """

    started: float
    ended: float | None = None
    text: str = ""
    meta: Any = None
    metas: list[Any] = field(default_factory=list)
    prompt_chars: int = 0
    attempts: int = 1
    error: str | None = None
    token_ids: tuple[int, ...] | None = None
