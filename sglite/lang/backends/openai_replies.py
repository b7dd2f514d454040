"""From the answers of OpenAI's APIs, whole or as a stream of chunks, to the language's cumulative outputs.

Read by attribute, so that the objects of other packages with the same fields will do.
"""

from __future__ import annotations

import time
from typing import Any

from sglite.lang.backends.api import TokenUsage
from sglite.lang.backends.base import Output
from sglite.lang.backends.schemas import Shape
from sglite.lang.errors import BackendError
from sglite.lang.messages import ToolCall

_REASONS = {"tool_calls": "tool_calls", "function_call": "tool_calls", "length": "length", "stop": "stop"}


class _Call:
    """A tool call that arrives in pieces."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments = ""

    def add(self, piece: Any) -> None:
        function = piece.function
        self.id = self.id or getattr(piece, "id", None) or ""
        self.name += (function and function.name) or ""
        self.arguments += (function and function.arguments) or ""


class _Choice:
    """One of the ``n`` answers so far."""

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.refusal = ""
        self.calls: dict[int, _Call] = {}
        self.finish: str | None = None
        self.matched: Any = None
        self.rows: list[list[Any]] = []
        self.top_rows: list[list[list[Any]]] = []

    def add(self, choice: Any) -> None:
        message = getattr(choice, "message", None) or getattr(choice, "delta", None)
        if message is not None:
            self._add_message(message)
        self.text += getattr(choice, "text", None) or ""
        self.finish = getattr(choice, "finish_reason", None) or self.finish
        self.matched = getattr(choice, "stop_reason", None) or self.matched
        self._add_logprobs(getattr(choice, "logprobs", None))

    def _add_message(self, message: Any) -> None:
        self.text += getattr(message, "content", None) or ""
        self.reasoning += getattr(message, "reasoning_content", None) or ""
        self.refusal += getattr(message, "refusal", None) or ""
        for position, piece in enumerate(getattr(message, "tool_calls", None) or ()):
            index = getattr(piece, "index", None)
            self.calls.setdefault(position if index is None else index, _Call()).add(piece)

    def _add_logprobs(self, logprobs: Any) -> None:
        for token in getattr(logprobs, "content", None) or ():
            self.rows.append([token.logprob, None, token.token])
            self.top_rows.append([[top.logprob, None, top.token] for top in token.top_logprobs or ()])
        values = getattr(logprobs, "token_logprobs", None)
        if values:
            self.rows += [[value, None, text] for value, text in zip(values, logprobs.tokens, strict=True)]
            tops = getattr(logprobs, "top_logprobs", None) or ()
            self.top_rows += [[[value, None, text] for text, value in (top or {}).items()] for top in tops]

    def reason(self) -> dict[str, Any]:
        """SGLang's ``finish_reason``; a provider that gives none has just ended."""
        given = self.finish or "stop"
        reason: dict[str, Any] = {"type": _REASONS.get(given, given)}
        return reason if self.matched is None else {**reason, "matched": self.matched}


class Replies:
    """Collects the answers to one request. ``shape``: where in the answers the wanted text is."""

    def __init__(self, n: int, shape: Shape | None = None) -> None:
        self._choices = [_Choice() for _ in range(n)]
        self._shape = shape or Shape({})
        self._started = time.monotonic()
        self._id: str | None = None
        self._usage: Any = None

    def add(self, event: Any) -> bool:
        """Takes a response or a chunk; whether there is more text to show."""
        before = sum(len(choice.text) for choice in self._choices)
        self._id = getattr(event, "id", None) or self._id
        self._usage = getattr(event, "usage", None) or self._usage
        for position, choice in enumerate(event.choices):
            index = getattr(choice, "index", None)
            self._choices[position if index is None else index].add(choice)
        return self._shape.inside == "whole" and sum(len(choice.text) for choice in self._choices) > before

    def so_far(self) -> tuple[Output, ...]:
        """The outputs while more is to come."""
        return tuple(Output(choice.text, {"id": self._id}) for choice in self._choices)

    def complete(self, usage: TokenUsage) -> tuple[Output, ...]:
        """The outputs at the end, counted in ``usage``. What the request used stands in the first one's meta.

        BackendError if the model refused to answer.
        """
        used = {**usage_meta(self._usage), "e2e_latency": time.monotonic() - self._started}
        usage.add(used)
        return tuple(self._output(choice, used if i == 0 else {}) for i, choice in enumerate(self._choices))

    def _output(self, choice: _Choice, used: dict[str, Any]) -> Output:
        if choice.refusal:
            raise BackendError(f"the model refused to answer: {choice.refusal}")
        meta = {"id": self._id, "finish_reason": choice.reason(), **used}
        if choice.rows:
            meta["output_token_logprobs"] = choice.rows
        if any(choice.top_rows):
            meta["output_top_logprobs"] = choice.top_rows
        if choice.reasoning:
            meta["reasoning_content"] = choice.reasoning
        calls = tuple(ToolCall(c.id, c.name, c.arguments) for _, c in sorted(choice.calls.items()))
        return Output(self._shape.read(choice.text), meta, calls)


def usage_meta(usage: Any) -> dict[str, Any]:
    """The counters of ``meta_info`` that a response's ``usage`` gives."""
    if usage is None:
        return {}
    meta = {name: getattr(usage, name, None) or 0 for name in ("prompt_tokens", "completion_tokens")}
    cached = getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None)
    reasoning = getattr(getattr(usage, "completion_tokens_details", None), "reasoning_tokens", None)
    if cached is not None:
        meta["cached_tokens"] = cached
    if reasoning is not None:
        meta["reasoning_tokens"] = reasoning
    return meta
