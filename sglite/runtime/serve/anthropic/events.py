"""A turn as Anthropic's clients read it: content blocks, one after the other, as they grow or whole.

message_start
  content_block_start  content_block_delta ...  content_block_stop       for each block
message_delta (why it ended, what it cost)
message_stop
"""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic_core import from_json

from sglite.runtime.serve.chat.call import CallDelta, ChatDelta, ChatTurn
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.openai.usage import usage_of
from sglite.runtime.serve.responses import SSE
from sglite.runtime.serve.streaming import Wire

PATH = "/v1/messages"
Event = dict[str, Any]


def encoded(event: Event) -> bytes:
    """One server-sent event, called what its type is."""
    return b"event: " + str(event["type"]).encode() + b"\ndata: " + msgspec.json.encode(event) + b"\n\n"


def _failed(refused: Refused) -> bytes:
    return encoded(refused.body(PATH))


WIRE = Wire(SSE, _failed, idle=encoded({"type": "ping"}))
"""Anthropic's events: pings while nothing happens, an error event when all went wrong."""


class Blocks:
    """The blocks of one turn, from its news."""

    def __init__(self) -> None:
        self._index = -1
        self._open = ""
        """Type of the block that grows."""

    def add(self, delta: ChatDelta) -> list[Event]:
        """Events for what a delta adds. A call that has begun is written on before anything else begins."""
        found: list[Event] = []
        calls = list(delta.calls)
        while calls and calls[0].name is None:
            found += self._write("tool_use", "input_json_delta", "partial_json", calls.pop(0).arguments)
        if delta.reasoning:
            found += self._write("thinking", "thinking_delta", "thinking", delta.reasoning)
        if delta.content:
            found += self._write("text", "text_delta", "text", delta.content)
        for call in calls:
            if call.name is not None:
                found += [*self.close(), self._start(_called(call))]
            if call.arguments:
                found += self._write("tool_use", "input_json_delta", "partial_json", call.arguments)
        return found

    def close(self) -> list[Event]:
        """Events that end the open block, if there is one."""
        if not self._open:
            return []
        found: list[Event] = []
        if self._open == "thinking":
            found.append(self._delta({"type": "signature_delta", "signature": ""}))
        self._open = ""
        return [*found, {"type": "content_block_stop", "index": self._index}]

    def _write(self, block: str, kind: str, field: str, text: str) -> list[Event]:
        """More of a block, which is begun if it is not the open one."""
        begun: list[Event] = []
        if self._open != block:
            empty = {"type": block, field: "", **({"signature": ""} if block == "thinking" else {})}
            begun = [*self.close(), self._start(empty)]
        return [*begun, self._delta({"type": kind, field: text})]

    def _start(self, block: dict[str, Any]) -> Event:
        self._index += 1
        self._open = block["type"]
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _called(call: CallDelta) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}


def content_of(turn: ChatTurn) -> list[dict[str, Any]]:
    """The blocks of a whole turn. Of a call that was broken off: the arguments that are whole."""
    found: list[dict[str, Any]] = []
    if turn.reasoning:
        found.append({"type": "thinking", "thinking": turn.reasoning, "signature": ""})
    if turn.content:
        found.append({"type": "text", "text": turn.content})
    for call in turn.calls:
        given = from_json(call.arguments or "{}", allow_partial=True)
        found.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
    return found


def ending(finish: str, event: dict[str, Any], limit: int) -> dict[str, Any]:
    """Why a turn ended. ``limit``: what the client allowed, which may be more than the context had room for."""
    meta = event["meta_info"]
    matched = (meta["finish_reason"] or {}).get("matched")
    if isinstance(matched, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": matched}
    if finish == "length":
        full = meta["completion_tokens"] < limit
        return {"stop_reason": "model_context_window_exceeded" if full else "max_tokens", "stop_sequence": None}
    reasons = {"tool_calls": "tool_use", "stop": "end_turn"}
    return {"stop_reason": reasons.get(finish, "pause_turn"), "stop_sequence": None}


def usage(event: dict[str, Any], thinking_tokens: int | None = None, over: bool = True) -> dict[str, Any]:
    """What a turn costs; with ``over``, all of it, with our own accounting. ``input_tokens`` are those of the prompt
    that were not found in the cache; the two together are the prompt."""
    meta = event["meta_info"]
    found: dict[str, Any] = {
        "input_tokens": meta["prompt_tokens"] - meta["cached_tokens"],
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": meta["cached_tokens"],
        "output_tokens": meta["completion_tokens"] if over else 0,
    }
    if over:
        found["sglite"] = usage_of([event], [1])["sglite"]
    return (
        found if thinking_tokens is None else {**found, "output_tokens_details": {"thinking_tokens": thinking_tokens}}
    )
