"""``system`` and ``messages``, in the form of the chat layer.

    user [tool_result, tool_result, text]           ->  tool, tool, user
    assistant [thinking, text, tool_use, tool_use]  ->  assistant with reasoning_content, content and tool_calls

Turns of the same role in a row are one, as with Anthropic.
"""

from __future__ import annotations

from typing import Any

from sglite.runtime.serve.anthropic.blocks_in import (
    blocks_of,
    call_of,
    joined,
    result_of,
    text_of,
    texts_of,
    thought_of,
    wrong,
)
from sglite.runtime.serve.fields import Fields

_BILLING = "x-anthropic-billing-header"
"""Begins a system block that some clients send for Anthropic's accounts. It is another one in each request, so in a
prompt it would keep every prefix from being found in the cache."""


def read_conversation(fields: Fields) -> tuple[list[dict[str, Any]], list[str]]:
    """Messages, and what of the blocks has no effect. ``Refused`` names the block that is wrong."""
    ignored: list[str] = []
    found = _system(fields.raw("system"), "system", ignored)
    given = fields.objects("messages")
    if not given:
        raise wrong("messages", "must be a list of at least one message")
    for index, message in enumerate(given):
        where = f"messages[{index}]"
        role, content = message.get("role"), message.get("content")
        if role == "user":
            made = _user(content, f"{where}.content")
        elif role == "assistant":
            made = [_assistant(content, f"{where}.content", ignored)]
        elif role == "system":
            made = _system(content, f"{where}.content", ignored)
        else:
            raise wrong(f"{where}.role", f"must be user, assistant or system, got {str(role)[:40]!a}")
        for one in made:
            _add(found, one)
    return found, ignored


def _system(value: Any, where: str, ignored: list[str]) -> list[dict[str, Any]]:
    texts = [] if value is None and where == "system" else texts_of(value, where)
    kept = [text for text in texts if not text.startswith(_BILLING)]
    if len(kept) < len(texts) and f"system.{_BILLING}" not in ignored:
        ignored.append(f"system.{_BILLING}")
    text = joined(kept)
    return [{"role": "system", "content": text}] if text else []


def _user(content: Any, where: str) -> list[dict[str, Any]]:
    """Results of tools, and what the user says before, between and after them."""
    found: list[dict[str, Any]] = []
    for index, block in enumerate(blocks_of(content, where)):
        place = f"{where}[{index}]"
        if block["type"] == "tool_result":
            found.append(result_of(block, place))
        else:
            _add(found, {"role": "user", "content": text_of(block, place)})
    if not any(message["role"] == "tool" or message["content"] for message in found):
        raise wrong(where, "is empty")
    return found


def _assistant(content: Any, where: str, ignored: list[str]) -> dict[str, Any]:
    texts, thoughts, calls = [], [], []
    for index, block in enumerate(blocks_of(content, where)):
        place = f"{where}[{index}]"
        if block["type"] == "tool_use":
            calls.append(call_of(block, place))
        elif block["type"] in ("thinking", "redacted_thinking"):
            thoughts.append(thought_of(block, place))
        else:
            texts.append(text_of(block, place))
        if block["type"] == "redacted_thinking" and "redacted_thinking" not in ignored:
            ignored.append("redacted_thinking")
    found: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if any(thoughts):
        found["reasoning_content"] = joined(thoughts)
    if calls:
        found["tool_calls"] = calls
    return found


def _add(messages: list[dict[str, Any]], message: dict[str, Any]) -> None:
    """Appends a message, or what it says to the last one if that is of the same role."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != message["role"] or message["role"] == "tool":
        messages.append(message)
        return
    for name in ("content", "reasoning_content"):
        if name in message:
            last[name] = joined([last.get(name, ""), message[name]])
    if "tool_calls" in message:
        last["tool_calls"] = [*last.get("tool_calls", []), *message["tool_calls"]]
