"""What a conversation's prompt is when the model's chat template writes it, and how to get there from what was sent.

Templates may write earlier turns anew (Qwen3 leaves out old thinking, most write a tool call in their own spacing). A
run's ``history`` says what then happens: ``append`` keeps every token that was generated and adds only what follows
it; ``template`` takes back what the template writes differently, so that the prompt is always exactly the template's,
and pays for computing the rest again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sglite.lang.messages import Message, ToolSpec

Render = Callable[[Sequence[Message], Sequence[ToolSpec]], str | None]
_STAND_IN = "\uf8f2reply\uf8f2"
"""What stands for a reply while its template is asked what follows it."""


@dataclass(frozen=True)
class Change:
    """``text`` follows; with ``common`` it is the whole prompt, of which so many characters are as they were."""

    text: str
    common: int | None = None


def reconciled(
    render: Render, messages: Sequence[Message], tools: Sequence[ToolSpec], text: str, history: str
) -> Change:
    """How ``text``, the prompt so far, becomes the prompt of ``messages``. ValueError: the template refuses them."""
    rendered = render(messages, tools)
    assert rendered is not None, "asked only of back ends with a template"
    if rendered.startswith(text):
        return Change(rendered[len(text) :])
    if history == "append":
        rest = _after_last_reply(render, messages, tools)
        if rest is not None:
            return Change(rest)
    return Change(rendered, _common(rendered, text))


def _after_last_reply(render: Render, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str | None:
    """What the template writes after the content of the assistant's last turn; None where it does not show it.

    Only for a reply whose own text ends the prompt so far: what was told since is in ``messages`` alone.
    """
    last = next((i for i in reversed(range(len(messages))) if messages[i].get("role") == "assistant"), None)
    if last is None or not messages[last].get("generated"):
        return None
    plain: dict[str, Any] = {"role": "assistant", "content": _STAND_IN}
    try:
        rendered = render([*messages[:last], plain, *messages[last + 1 :]], tools) or ""
    except ValueError:
        return None
    _, found, rest = rendered.partition(_STAND_IN)
    return rest if found and _STAND_IN not in rest else None


def _common(a: str, b: str) -> int:
    """How many characters both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def shown(message: Message) -> Message:
    """A message as programs and templates see it: without what is only noted for this module."""
    return {key: value for key, value in message.items() if key != "generated"}
