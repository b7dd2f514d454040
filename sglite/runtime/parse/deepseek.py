"""DeepSeek's calls: JSON arguments behind the name, all calls of a turn in one frame.

V3 (and R1 0528) writes the kind of call before the name and fences the arguments; V3.1 writes neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from sglite.runtime.parse import grammar
from sglite.runtime.parse.base import Call, Tool, ToolFormat, TurnParser
from sglite.runtime.parse.machine import Reading
from sglite.runtime.parse.marked import MarkedTurn

_BEGIN, _END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_OPEN, _NAMED, _CLOSE = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCE = "```"
_FENCE_BEGIN, _FENCE_END = re.compile("`*[a-z]*"), re.compile("`*")


class DeepSeekV31(ToolFormat):
    """``<｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}<｜tool▁call▁end｜>``"""

    name = "deepseekv31"
    aliases: ClassVar[tuple[str, ...]] = ("deepseek_v31",)
    marks = (_BEGIN, _END, _OPEN, _NAMED, _CLOSE)
    separator: ClassVar[str] = ""

    def parser(self, tools: Sequence[Tool]) -> TurnParser:
        return _Turn()

    def calls(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        return self._frame(tools, several)

    def free(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        return grammar.triggered([_BEGIN], [self._frame(tools, several)], several=False)

    def write(self, content: str, calls: Sequence[Call]) -> str:
        written = []
        for call in calls:
            begin, end = self.around(call.name)
            written.append(begin + json.dumps(call.arguments, ensure_ascii=False) + end)
        return content + (_BEGIN + self.separator.join(written) + _END if written else "")

    def around(self, name: str) -> tuple[str, str]:
        """What stands before and behind the arguments of a call of ``name``."""
        return f"{_OPEN}{name}{_NAMED}", _CLOSE

    def _frame(self, tools: Sequence[Tool], several: bool) -> grammar.Format:
        tags = []
        for tool in tools:
            begin, end = self.around(tool.name)
            tags.append(grammar.tag(begin, grammar.arguments(tool), end))
        return grammar.tag(_BEGIN, grammar.listed(tags, self.separator, several=several), _END)


class DeepSeekV3(DeepSeekV31):
    """``<｜tool▁call▁begin｜>function<｜tool▁sep｜>name``, then the arguments in a fenced block."""

    name = "deepseekv3"
    aliases = ("deepseek_v3",)
    separator = "\n"

    def parser(self, tools: Sequence[Tool]) -> TurnParser:
        return _FencedTurn()

    def around(self, name: str) -> tuple[str, str]:
        return f"{_OPEN}function{_NAMED}{name}\n{_FENCE}json\n", f"\n{_FENCE}{_CLOSE}"


class _Turn(MarkedTurn):
    def __init__(self) -> None:
        super().__init__(_OPEN, _BEGIN, _END, _NAMED, _CLOSE)

    def _call(self) -> Reading[None]:
        name = yield from self.head(_NAMED)
        if name:
            self.begin_call(name)
            yield from self.body(_CLOSE)


class _FencedTurn(_Turn):
    def _call(self) -> Reading[None]:
        kind = yield from self.head(_NAMED)
        if kind is None:
            return
        name = yield from self.head("\n")
        if not name:
            return
        self.begin_call(name)
        yield from self.skip_space()
        yield from self.matching(_FENCE_BEGIN)
        if (yield from self.body(_CLOSE)):
            yield from self.skip_space()
            yield from self.matching(_FENCE_END)
