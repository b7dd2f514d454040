"""Anthropic's Messages API: requests from conversations, outputs from messages and from streams of events.

Field names: platform.claude.com/docs/en/api/messages. Conversations come in the OpenAI shape.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from sglite.lang.backends.api import TokenUsage
from sglite.lang.backends.base import Output
from sglite.lang.backends.schemas import Shape
from sglite.lang.errors import BackendError
from sglite.lang.messages import Message, ToolCall, ToolSpec

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
}


def system_and_messages(messages: Sequence[Message]) -> tuple[str, list[dict[str, Any]]]:
    """``system`` and ``messages``: system messages joined, results of tools as blocks of one user message."""
    system = "\n\n".join(str(m["content"]) for m in messages if m["role"] == "system")
    rest: list[dict[str, Any]] = []
    results: list[dict[str, Any]] | None = None
    for message in messages:
        if message["role"] == "tool":
            if results is None:
                results = []
                rest.append({"role": "user", "content": results})
            results.append(_result(message))
        elif message["role"] != "system":
            results = None
            rest.append({"role": message["role"], "content": _content(message)})
    return system, rest


def tool_fields(tools: Sequence[ToolSpec], choice: str) -> dict[str, Any]:
    """``tools`` and ``tool_choice``."""
    listed = [{"name": t.name, "description": t.description, "input_schema": t.parameters} for t in tools]
    kinds = {"auto": {"type": "auto"}, "none": {"type": "none"}, "required": {"type": "any"}}
    return {"tools": listed, "tool_choice": kinds.get(choice, {"type": "tool", "name": choice})}


def _result(message: Message) -> dict[str, Any]:
    return {
        "type": "tool_result",
        "tool_use_id": message.get("tool_call_id"),
        "content": _blocks(message.get("content")),
    }


def _content(message: Message) -> Any:
    calls = message.get("tool_calls")
    blocks = _blocks(message.get("content"))
    if not calls:
        return blocks
    said = [{"type": "text", "text": blocks}] if isinstance(blocks, str) and blocks else blocks or []
    return [*said, *(_tool_use(call) for call in calls)]


def _blocks(content: Any) -> Any:
    """Text as it is; a list of OpenAI's content parts as Anthropic's blocks."""
    if not isinstance(content, list):
        return content or ""
    return [_image(part) if part.get("type") == "image_url" else part for part in content]


def _image(part: dict[str, Any]) -> dict[str, Any]:
    url = str(part["image_url"]["url"])
    if not url.startswith("data:"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    kind, _, data = url.removeprefix("data:").partition(";base64,")
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _tool_use(call: dict[str, Any]) -> dict[str, Any]:
    """A call that the model made. The API wants an object; arguments that were none go in as text."""
    text = call["function"]["arguments"] or "{}"
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    told = arguments if isinstance(arguments, dict) else {"arguments": text}
    return {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": told}


class MessageReply:
    """Collects one message. ``add`` takes it whole, or the events of its stream. ``shape``: where in the answer
    the wanted text is."""

    def __init__(self, shape: Shape | None = None) -> None:
        self._shape = shape or Shape({})
        self._started = time.monotonic()
        self._id: str | None = None
        self._usage: dict[str, int] = {}
        self._stop_reason: str | None = None
        self._matched: str | None = None
        self._blocks: dict[int, dict[str, str]] = {}

    def add_message(self, message: Any) -> None:
        """A whole message."""
        self._begin(message)
        for index, block in enumerate(message.content):
            self._open(index, block)
            if block.type == "tool_use":
                self._blocks[index]["text"] = json.dumps(block.input, ensure_ascii=False)
        self._stop_reason, self._matched = message.stop_reason, message.stop_sequence

    def add_event(self, event: Any) -> bool:
        """One event of a stream; whether there is more text to show."""
        if event.type == "message_start":
            self._begin(event.message)
        elif event.type == "content_block_start":
            self._open(event.index, event.content_block)
        elif event.type == "content_block_delta":
            delta = event.delta
            told = [getattr(delta, name, None) for name in ("text", "partial_json", "thinking")]
            self._blocks[event.index]["text"] += next((text for text in told if text), "")
            return bool(delta.type == "text_delta" and self._shape.inside == "whole")
        elif event.type == "message_delta":
            self._stop_reason, self._matched = event.delta.stop_reason, event.delta.stop_sequence
            self._count(event.usage)
        return False

    def _begin(self, message: Any) -> None:
        self._id = message.id
        self._count(message.usage)

    def _open(self, index: int, block: Any) -> None:
        text = getattr(block, "text", None) or getattr(block, "thinking", None) or ""
        given = {"id": getattr(block, "id", "") or "", "name": getattr(block, "name", "") or ""}
        self._blocks[index] = {"type": block.type, "text": text, **given}

    def _count(self, usage: Any) -> None:
        for name in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
            count = getattr(usage, name, None)
            if count is not None:
                self._usage[name] = count

    def _texts(self, kind: str) -> str:
        return "".join(block["text"] for _, block in sorted(self._blocks.items()) if block["type"] == kind)

    def so_far(self) -> tuple[Output, ...]:
        """The output while more is to come."""
        return (Output(self._texts("text"), {"id": self._id}),)

    def complete(self, usage: TokenUsage) -> tuple[Output, ...]:
        """The output at the end, counted in ``usage``. BackendError if the model refused to answer."""
        meta = self._meta()
        usage.add(meta)
        if self._stop_reason == "refusal":
            raise BackendError(f"the model refused to answer, after {self._texts('text')[-80:]!r}")
        thinking = self._texts("thinking")
        if thinking:
            meta["reasoning_content"] = thinking
        calls = [b for _, b in sorted(self._blocks.items()) if b["type"] == "tool_use"]
        made = tuple(ToolCall(call["id"], call["name"], call["text"] or "{}") for call in calls)
        return (Output(self._shape.read(self._texts("text")), meta, made),)

    def _meta(self) -> dict[str, Any]:
        cached = self._usage.get("cache_read_input_tokens", 0)
        # input_tokens is what came neither from the cache nor went into it.
        prompt = self._usage.get("input_tokens", 0) + cached + self._usage.get("cache_creation_input_tokens", 0)
        given = self._stop_reason or "end_turn"
        reason: dict[str, Any] = {"type": _REASONS.get(given, given)}
        if self._matched is not None:
            reason["matched"] = self._matched
        return {
            "id": self._id,
            "finish_reason": reason,
            "prompt_tokens": prompt,
            "completion_tokens": self._usage.get("output_tokens", 0),
            "cached_tokens": cached,
            "e2e_latency": time.monotonic() - self._started,
        }
