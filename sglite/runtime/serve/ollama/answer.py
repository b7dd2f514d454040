"""Answers of ``/api/chat`` and ``/api/generate``: lines of news, then one that says how it ended and what it cost.

    {"model", "created_at", "message" | "response", "done": false} ... {..., "done": true, "done_reason", counters}

The whole answer is those lines put together, so both say the same. Calls are given whole, with their arguments as an
object; one that the limit broke off is none, and is left out.

Times are nanoseconds and add up: ``total_duration`` = ``load_duration`` (in the queue; the model is always loaded)
+ ``prompt_eval_duration`` (until the first token) + ``eval_duration``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from datetime import datetime, timezone
from typing import Any

from sglite.runtime.serve.chat.call import CalledTool, ChatDelta
from sglite.runtime.serve.chat.run import ChatRun
from sglite.runtime.serve.openai.logprobs import chat_rows
from sglite.runtime.serve.responses import ndjson
from sglite.runtime.serve.serving import Serving

_MS = 1_000_000
_REASONS = {"tool_calls": "stop"}


class Answer:
    """One answer. ``chat``: in the shape of ``/api/chat``, else of ``/api/generate``."""

    def __init__(self, serving: Serving, name: str, chat: bool, run: ChatRun) -> None:
        self._serving = serving
        self._name = name
        self._chat = chat
        self._run = run
        self._calls: list[CalledTool] = []
        self._told_calls = 0
        self._told_rows = 0
        self._first: dict[str, Any] | None = None

    async def whole(self) -> dict[str, Any]:
        """All of it as one object."""
        text, thinking, calls, rows = "", "", [], []
        line: dict[str, Any] = {}
        async for line in self._lines():
            part = line["message"] if self._chat else line
            text += part["content" if self._chat else "response"]
            thinking += part.get("thinking", "")
            calls += part.get("tool_calls", [])
            rows += line.get("logprobs", [])
        told = shaped(self._name, self._chat, text, thinking, calls)
        return {**line, **told, **({"logprobs": rows} if rows else {})}

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """As JSON, line by line."""
        async for line in self._lines():
            yield ndjson(line)

    async def _lines(self) -> AsyncGenerator[dict[str, Any], None]:
        async for delta in self._run.deltas():
            self._first = self._first or delta.event["meta_info"]
            calls, rows = self._finished_calls(delta), self._rows(delta.event)
            if delta.content or delta.reasoning or calls or rows:
                news = shaped(self._name, self._chat, delta.content, delta.reasoning, calls)
                yield {**news, "done": False, **({"logprobs": rows} if rows else {})}
            if delta.finish is not None:
                reason = _REASONS.get(delta.finish, delta.finish)
                yield {**shaped(self._name, self._chat), "done": True, "done_reason": reason, **self._costs(delta)}

    def _finished_calls(self, delta: ChatDelta) -> list[dict[str, Any]]:
        """Calls that are whole since the last time: a call is once another has begun, or the turn has ended."""
        for news in delta.calls:
            if news.name is not None:
                self._calls.append(CalledTool(id=news.id or "", name=news.name))
            self._calls[news.index].arguments += news.arguments
        over = len(self._calls) if delta.finish is not None else max(len(self._calls) - 1, 0)
        found = []
        for index in range(self._told_calls, over):
            call = self._calls[index]
            arguments = _object(call.arguments)
            if arguments is not None:
                function = {"index": index, "name": call.name, "arguments": arguments}
                found.append({"id": call.id, "function": function})
        self._told_calls = max(self._told_calls, over)
        return found

    def _rows(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """Log probabilities that were not shown yet."""
        meta, tokenizer = event["meta_info"], self._serving.engine.tokenizer
        if "output_token_logprobs" not in meta or tokenizer is None:
            return []
        rows, tops = meta["output_token_logprobs"], meta.get("output_top_logprobs", [])
        found = chat_rows(tokenizer, rows[self._told_rows :], tops[self._told_rows :])
        self._told_rows = len(rows)
        return found

    def _costs(self, delta: ChatDelta) -> dict[str, int]:
        meta, first = delta.event["meta_info"], self._first or delta.event["meta_info"]
        total = round(meta["e2e_ms"] * _MS)
        queued = min(round(meta["queue_ms"] * _MS), total)
        prompt = min(max(round(first["e2e_ms"] * _MS) - queued, 0), total - queued)
        return {
            "total_duration": total,
            "load_duration": queued,
            "prompt_eval_count": meta["prompt_tokens"],
            "prompt_eval_duration": prompt,
            "eval_count": meta["completion_tokens"],
            "eval_duration": total - queued - prompt,
        }


def shaped(name: str, chat: bool, text: str = "", thinking: str = "", calls: list[Any] | None = None) -> dict[str, Any]:
    """Text in the shape of either route, with model and time."""
    head: dict[str, Any] = {"model": name, "created_at": now()}
    more: dict[str, Any] = {"thinking": thinking} if thinking else {}
    if not chat:
        return {**head, "response": text, **more}
    if calls:
        more["tool_calls"] = calls
    return {**head, "message": {"role": "assistant", "content": text, **more}}


def now() -> str:
    """The time, as Ollama writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _object(text: str) -> dict[str, Any] | None:
    """The arguments of a whole call."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
