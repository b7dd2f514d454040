"""``/parse_function_call`` and ``/separate_reasoning``: a text of the model's, read by the machines that chats use."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.config import ConfigError
from sglite.runtime.parse.base import CallArguments, CallStart, Content, Event, Reasoning, Tool
from sglite.runtime.parse.detect import Formats, formats_of
from sglite.runtime.serve.body import check_names, read_object
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields
from sglite.runtime.serve.native_schema import PARSE_CALLS, SEPARATE
from sglite.runtime.serve.openai.messages import read_tools
from sglite.runtime.serve.responses import json_response
from sglite.runtime.serve.serving import Route, Serving

_MAX_NAME = 64
_ALWAYS_OPENED = frozenset({"deepseekr1", "qwen3thinking", "step3"})
"""Formats of models whose prompts open a thought, as with SGLang: their texts begin within it."""


class ParseRoutes:
    """The routes. Formats are SGLang's names; without one the served model's is meant."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """See the module."""
        return [
            Route("/parse_function_call", ("POST",), self.calls, body=PARSE_CALLS),
            Route("/separate_reasoning", ("POST",), self.reasoning, body=SEPARATE),
        ]

    async def calls(self, request: Request) -> Response:
        """``{"text", "tools"}`` -> ``{"normal_text", "calls": [{"tool_index", "name", "parameters"}]}``."""
        body = await read_object(request)
        check_names(body, ("text", "tools", "tool_call_parser"), "/parse_function_call", {})
        fields = Fields(body)
        text, (tools, _) = _text(fields), read_tools(fields)
        formats = self._named(fields, "tool_call_parser")
        if formats.tools is None:
            raise Refused(400, "how this model writes calls is not known; name a format", param="tool_call_parser")
        events = await asyncio.to_thread(_read, Formats(tools=formats.tools), tools, False, text)
        found: dict[int, dict[str, Any]] = {}
        for event in events:
            if isinstance(event, CallStart):
                found[event.index] = {"tool_index": _place(tools, event.name), "name": event.name, "parameters": ""}
            elif isinstance(event, CallArguments):
                found[event.index]["parameters"] += event.text
        return json_response({"normal_text": _joined(events, Content), "calls": list(found.values())})

    async def reasoning(self, request: Request) -> Response:
        """``{"text", "reasoning_parser"}`` -> ``{"reasoning_text", "text"}``."""
        body = await read_object(request)
        check_names(body, ("text", "reasoning_parser", "return_blocks"), "/separate_reasoning", {})
        fields = Fields(body)
        fields.refuse({"return_blocks": "the thinking is given as one text"})
        text, formats = _text(fields), self._named(fields, "reasoning_parser")
        if formats.reasoning is None:
            message = "how this model marks its thinking is not known; name a format"
            raise Refused(400, message, param="reasoning_parser")
        form = formats.reasoning
        closing = form.closing if form.answer_follows else None
        opened = _begins_within(text, fields.text("reasoning_parser"), closing)
        events = await asyncio.to_thread(_read, Formats(reasoning=formats.reasoning), (), opened, text)
        return json_response({"reasoning_text": _joined(events, Reasoning), "text": _joined(events, Content)})

    def _named(self, fields: Fields, field: str) -> Formats:
        name = fields.text(field, _MAX_NAME)
        if name is None:
            return self._serving.formats
        names = (name, "none") if field == "tool_call_parser" else ("none", name)
        try:
            return formats_of(self._serving.engine.chat_template, self._serving.engine.tokenizer, *names)
        except ConfigError as error:
            raise Refused(400, f"{field}: {error}", param=field) from None


def _text(fields: Fields) -> str:
    text = fields.text("text")
    if text is None:
        raise Refused(400, "text is missing: the model's output", param="text")
    return text


def _begins_within(text: str, name: str | None, closing: str | None) -> bool:
    """Whether the prompt, which is not told, has opened the thought. Of the served model, whose format has no ``name``
    here, the text shows it."""
    if name is None:
        return closing is not None and closing in text
    return name.lower().replace("-", "").replace("_", "") in _ALWAYS_OPENED


def _read(formats: Formats, tools: Sequence[Tool], opened: bool, text: str) -> list[Event]:
    machine = formats.turn_parser(tools, opened)
    return [*machine.feed(text), *machine.finish()]


def _joined(events: Sequence[Event], kind: type[Content] | type[Reasoning]) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def _place(tools: Sequence[Tool], name: str) -> int:
    """Which of the tools is called so; -1: none."""
    return next((index for index, tool in enumerate(tools) if tool.name == name), -1)
