"""Whether and how hard to think, in the names that chat templates know it by."""

from __future__ import annotations

from typing import Any


def thinking_kwargs(wanted: bool | None, effort: str | float | None = None) -> dict[str, Any]:
    """Template variables. ``wanted`` and ``effort`` ``None``: as the template has it.

    ``enable_thinking`` is Qwen's and GLM's name, ``thinking`` DeepSeek's, ``reasoning_effort`` that of gpt-oss.
    """
    found: dict[str, Any] = {} if wanted is None else {"enable_thinking": wanted, "thinking": wanted}
    return found if effort is None else {**found, "reasoning_effort": effort}
