"""The output of a response, item by item: built from the same news whether it is streamed or given whole.

reasoning -> message -> function_call -> custom_tool_call ...        one item is open at a time
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from sglite.runtime.serve.chat.call import CallDelta, ChatDelta
from sglite.runtime.serve.chat.custom import InputText
from sglite.runtime.serve.responses_api.tools import Declared

Event = dict[str, Any]


RESPONSE = "resp"
"""What ids of responses begin with."""


def new_id(prefix: str) -> str:
    """An id nobody can guess."""
    return f"{prefix}_{uuid.uuid4().hex}"


class Output:
    """Items so far. ``add`` and ``close`` yield the events of what they change, without sequence numbers."""

    def __init__(self, declared: Mapping[str, Declared]) -> None:
        self._declared = declared
        self._input = InputText()
        self.items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None

    def add(self, delta: ChatDelta, rows: list[dict[str, Any]]) -> Iterator[Event]:
        """News of the turn. ``rows``: log probabilities of its new tokens."""
        if delta.reasoning:
            yield from self._ensure("reasoning")
            yield from self._grow(delta.reasoning, "response.reasoning_text.delta", [])
        if delta.content:
            yield from self._ensure("message")
            yield from self._grow(delta.content, "response.output_text.delta", rows)
        for call in delta.calls:
            if call.name is not None:
                yield from self.close()
                yield from self._begin(self._called(call.name, call))
            if call.arguments and self._open is not None:
                yield from self._argue(call.arguments)

    def close(self, status: str = "completed") -> Iterator[Event]:
        """The open item ends."""
        item, self._open = self._open, None
        if item is None:
            return
        at = {"output_index": len(self.items) - 1, "item_id": item["id"]}
        if item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield {"type": "response.function_call_arguments.done", **at, **done}
        elif item["type"] == "custom_tool_call":
            yield {"type": "response.custom_tool_call_input.done", **at, "input": item["input"]}
        else:
            part = item["content"][0]
            kind = "output_text" if item["type"] == "message" else "reasoning_text"
            done = {"text": part["text"]} | ({"logprobs": part["logprobs"]} if kind == "output_text" else {})
            yield {"type": f"response.{kind}.done", **at, "content_index": 0, **done}
            yield {"type": "response.content_part.done", **at, "content_index": 0, "part": part}
        item["status"] = status
        yield {"type": "response.output_item.done", "output_index": at["output_index"], "item": item}

    def _ensure(self, kind: str) -> Iterator[Event]:
        if self._open is not None and self._open["type"] == kind:
            return
        yield from self.close()
        if kind == "message":
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item: dict[str, Any] = {
                "type": kind,
                "id": new_id("msg"),
                "role": "assistant",
                "status": "in_progress",
                "content": [],
            }
        else:
            part = {"type": "reasoning_text", "text": ""}
            item = {"type": kind, "id": new_id("rs"), "summary": [], "status": "in_progress", "content": []}
        yield from self._begin(item)
        yield {**self._at("response.content_part.added"), "content_index": 0, "part": dict(part)}
        item["content"] = [part]

    def _called(self, flat: str, call: CallDelta) -> dict[str, Any]:
        """The item of a call that begins."""
        tool = self._declared.get(flat, Declared(flat))
        head = {"call_id": call.id, **tool.named(), "status": "in_progress"}
        if not tool.custom:
            return {"type": "function_call", "id": new_id("fc"), **head, "arguments": ""}
        self._input = InputText()
        return {"type": "custom_tool_call", "id": new_id("ctc"), **head, "input": ""}

    def _argue(self, arguments: str) -> Iterator[Event]:
        """More of the open call's arguments."""
        assert self._open is not None
        if self._open["type"] == "function_call":
            self._open["arguments"] += arguments
            yield {**self._at("response.function_call_arguments.delta"), "delta": arguments}
        elif more := self._input.feed(arguments):
            self._open["input"] += more
            yield {**self._at("response.custom_tool_call_input.delta"), "delta": more}

    def _begin(self, item: dict[str, Any]) -> Iterator[Event]:
        self.items.append(item)
        self._open = item
        shown = {**item, "content": []} if "content" in item else dict(item)
        yield {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": shown}

    def _grow(self, text: str, kind: str, rows: list[dict[str, Any]]) -> Iterator[Event]:
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += text
        event = {**self._at(kind), "content_index": 0, "delta": text}
        if "logprobs" in part:
            part["logprobs"] += rows
            event["logprobs"] = rows
        yield event

    def _at(self, kind: str) -> Event:
        assert self._open is not None
        return {"type": kind, "output_index": len(self.items) - 1, "item_id": self._open["id"]}
