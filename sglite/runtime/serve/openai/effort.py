"""Whether and how hard to think, as OpenAI's and SGLang's clients ask for it."""

from __future__ import annotations

from typing import Any

from sglite.runtime.serve.chat.thinking import thinking_kwargs
from sglite.runtime.serve.fields import Fields

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_MOST = 0.99
"""Of an effort that is a number, for templates that read one."""


def read_effort(fields: Fields) -> tuple[dict[str, Any], list[str]]:
    """Template variables of a chat request's ``reasoning_effort`` or ``reasoning: {"effort", "enabled"}``, and the
    fields of the latter without effect."""
    inner = Fields(fields.object("reasoning") or {}, "reasoning.")
    nested, flat = effort_kwargs(inner, "effort"), effort_kwargs(fields, "reasoning_effort")
    enabled = inner.flag("enabled") if inner.raw("enabled") is not None else None
    found = nested or flat or thinking_kwargs(enabled)
    return found, [f"reasoning.{name}" for name in inner.unread()]


def effort_kwargs(fields: Fields, name: str) -> dict[str, Any]:
    """Template variables of one effort. One of ``none`` turns thinking off, any other turns it on."""
    value = fields.raw(name)
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    effort = fields.number(name, 0, _MOST) if numeric else fields.one_of(name, _EFFORTS)
    return {} if effort is None else thinking_kwargs(effort != "none", effort)
