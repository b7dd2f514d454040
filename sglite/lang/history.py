"""What a conversation's prompt is when the model's chat template writes it, and how to get there from what was sent.

Templates may write earlier turns anew (Qwen3 leaves out old thinking, most write a tool call in their own spacing). A
run's ``history`` says what then happens: ``append`` keeps every token that was generated and adds only what follows
it, unless the tools change, which the prompt has to tell; ``template`` writes the whole prompt anew, so that its tokens
are always exactly those of the template's text, and pays for computing again what they are not the generated ones of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sglite.lang.messages import Message, ToolSpec

Render = Callable[[Sequence[Message], Sequence[ToolSpec]], str | None]
GENERATED = "generated"
"""Key of a reply under which is noted where its text ends, in characters, and with which tools it was asked for."""
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
    if history == "template":
        return Change(rendered, 0)
    if rendered.startswith(text):
        return Change(rendered[len(text) :])
    following = _after_last_reply(render, messages, tools)
    if following is None:
        return Change(rendered, common_length(rendered, text))
    end, rest = following
    return Change(rest) if end == len(text) else Change(text[:end] + rest, end)


def _after_last_reply(render: Render, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> tuple[int, str] | None:
    """Where the text of the assistant's last turn ends, and what the template writes after its content.

    None where the template does not show it, or where the turn was asked for with other tools.
    """
    last = next((i for i in reversed(range(len(messages))) if messages[i].get("role") == "assistant"), None)
    if last is None or GENERATED not in messages[last]:
        return None
    end, told = messages[last][GENERATED]
    if told != tuple(tools):
        return None
    plain: dict[str, Any] = {"role": "assistant", "content": _STAND_IN}
    try:
        rendered = render([*messages[:last], plain, *messages[last + 1 :]], tools) or ""
    except ValueError:
        return None
    _, found, rest = rendered.partition(_STAND_IN)
    return (end, rest) if found and _STAND_IN not in rest else None


def common_length(a: str, b: str) -> int:
    """How many characters both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def shown(message: Message) -> Message:
    """A message as programs and templates see it: without what is only noted for this module."""
    return {key: value for key, value in message.items() if key != GENERATED}


def noted(messages: Sequence[Message], note: str) -> list[Message]:
    """The messages with ``note`` behind the system text, or where there is none before the first message."""
    told = [dict(message) for message in messages]
    if not note:
        return told
    if not told:
        return [{"role": "user", "content": note}]
    first, content = told[0], str(told[0].get("content") or "")
    first["content"] = f"{content}\n\n{note}" if first.get("role") == "system" else f"{note}\n\n{content}"
    return told
