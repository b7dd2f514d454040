"""Hermes calls: each a JSON object between ``<tool_call>`` and ``</tool_call>``. Qwen 2.5, Qwen 3, Hermes 2 and 3."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sglite.runtime.parse import grammar
from sglite.runtime.parse.base import Call, Tool, ToolFormat, TurnParser
from sglite.runtime.parse.call_object import Outcome, read_call
from sglite.runtime.parse.machine import Machine, Reading
from sglite.runtime.parse.marks import Marks

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BOTH, _END = Marks(_OPEN, _CLOSE), Marks(_CLOSE)


class Hermes(ToolFormat):
    name = "hermes"
    aliases = ("qwen", "qwen25", "qwen2_5")
    marks = (_OPEN, _CLOSE)

    def parser(self, tools: Sequence[Tool]) -> TurnParser:
        return _Turn()

    def calls(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        return grammar.listed(_tags(tools), "\n", several=several)

    def free(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        return grammar.triggered([_OPEN], _tags(tools), several=several)

    def write(self, content: str, calls: Sequence[Call]) -> str:
        written = [_written(call) for call in calls]
        return "\n".join(([content] if content else []) + written)


def _written(call: Call) -> str:
    body = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    return f"{_OPEN}\n{body}\n{_CLOSE}"


def _tags(tools: Sequence[Tool]) -> list[grammar.Format]:
    return [
        grammar.tag(
            f'{_OPEN}\n{{"name": {grammar.quoted(tool.name)}, "arguments": ', grammar.arguments(tool), f"}}\n{_CLOSE}"
        )
        for tool in tools
    ]


class _Turn(Machine):
    """A closing mark that closes no call is text, as is an opening one that no call follows."""

    def _turn(self) -> Reading[None]:
        mark = yield from self.content_until(_BOTH)
        if mark == _OPEN:
            yield from self._call()
        elif mark == _CLOSE and self.after_mark:
            self.mark()
        elif mark is not None:
            self.content(mark)

    def _call(self) -> Reading[None]:
        place = self.keep()
        yield from self.skip_space()
        outcome = yield from read_call(self)
        if outcome is Outcome.NONE:
            self.rewind(place)
            self.content(_OPEN)
        elif outcome is Outcome.BROKEN:
            yield from self.until(_END, self.arguments)
        self.release()
