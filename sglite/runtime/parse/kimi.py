"""Kimi K2's calls: each with an id of its own, ``functions.name:number``, and JSON arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sglite.runtime.parse import grammar
from sglite.runtime.parse.base import Call, Tool, ToolFormat, TurnParser
from sglite.runtime.parse.machine import Reading
from sglite.runtime.parse.marked import MarkedTurn

_BEGIN, _END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_OPEN, _NAMED, _CLOSE = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
_PREFIX = "functions."


class KimiK2(ToolFormat):
    """``<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{...}<|tool_call_end|>`` in one frame."""

    name = "kimi_k2"
    marks = (_BEGIN, _END, _OPEN, _NAMED, _CLOSE)

    def parser(self, tools: Sequence[Tool]) -> TurnParser:
        return _Turn()

    def calls(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        tags = []
        for tool in tools:
            # The number counts the calls of the whole conversation.
            content = grammar.sequence(grammar.regex("[0-9]{1,3}"), grammar.text(_NAMED), grammar.arguments(tool))
            tags.append(grammar.tag(f"{_OPEN}{_PREFIX}{tool.name}:", content, _CLOSE))
        return grammar.tag(_BEGIN, grammar.listed(tags, "", several=several), _END)

    def free(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        return grammar.triggered([_BEGIN], [self.calls(tools, several=several)], several=False)

    def write(self, content: str, calls: Sequence[Call]) -> str:
        written = [
            f"{_OPEN}{_PREFIX}{call.name}:{i}{_NAMED}{json.dumps(call.arguments, ensure_ascii=False)}{_CLOSE}"
            for i, call in enumerate(calls)
        ]
        return content + (_BEGIN + "".join(written) + _END if written else "")


class _Turn(MarkedTurn):
    def __init__(self) -> None:
        super().__init__(_OPEN, _BEGIN, _END, _NAMED, _CLOSE)

    def _call(self) -> Reading[None]:
        head = yield from self.head(_NAMED)
        if not head:
            return
        name, colon, number = head.removeprefix(_PREFIX).rpartition(":")
        self.begin_call(name if colon and name and number.isdecimal() else head.removeprefix(_PREFIX), head)
        yield from self.body(_CLOSE)
