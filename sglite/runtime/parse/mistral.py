"""Mistral's calls. Up to version 7 of its tokenizers all calls of a turn are one JSON array, from version 11 on each
has its mark, its name and its arguments. Both are read by both; they differ in what they write and enforce.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from sglite.runtime.parse import grammar
from sglite.runtime.parse.base import Call, Tool, ToolFormat, TurnParser
from sglite.runtime.parse.call_object import Outcome, read_arguments, read_call
from sglite.runtime.parse.machine import Machine, Reading
from sglite.runtime.parse.marks import Marks

_OPEN, _ARGUMENTS, _ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_MARKS = Marks(_OPEN)
_NAME = re.compile(r"[\w.\-]*")


class Mistral(ToolFormat):
    """``[TOOL_CALLS] [{"name": "f", "arguments": {...}}, ...]``"""

    name = "mistral"
    aliases: ClassVar[tuple[str, ...]] = ()
    marks = (_OPEN, _ARGUMENTS, _ID)

    def parser(self, tools: Sequence[Tool]) -> TurnParser:
        return _Turn()

    def calls(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        tags = [
            grammar.tag(f'{{"name": {grammar.quoted(tool.name)}, "arguments": ', grammar.arguments(tool), "}")
            for tool in tools
        ]
        array = grammar.sequence(grammar.regex(r" ?\["), grammar.listed(tags, ", ", several=several))
        return grammar.tag(_OPEN, array, "]")

    def free(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        return grammar.triggered([_OPEN], [self.calls(tools, several=several)], several=False)

    def write(self, content: str, calls: Sequence[Call]) -> str:
        written = [{"name": call.name, "arguments": call.arguments} for call in calls]
        return content + (f"{_OPEN} {json.dumps(written, ensure_ascii=False)}" if calls else "")


class MistralNamed(Mistral):
    """``[TOOL_CALLS]f[ARGS]{...}`` for each call."""

    name = "mistral_named"

    def calls(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        return grammar.listed(self._tags(tools), "", several=several)

    def free(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        return grammar.triggered([_OPEN], self._tags(tools), several=several)

    def write(self, content: str, calls: Sequence[Call]) -> str:
        written = [f"{_OPEN}{call.name}{_ARGUMENTS}{json.dumps(call.arguments, ensure_ascii=False)}" for call in calls]
        return content + "".join(written)

    def _tags(self, tools: Sequence[Tool]) -> list[grammar.Format]:
        return [grammar.tag(f"{_OPEN}{tool.name}{_ARGUMENTS}", grammar.arguments(tool), "") for tool in tools]


class _Turn(Machine):
    """The mark is a special token, so it is dropped where no call follows, and what follows is content."""

    def _turn(self) -> Reading[None]:
        if (yield from self.content_until(_MARKS)) is None:
            return
        self.mark()
        place = self.keep()
        yield from self.skip_space()
        begun = self.calls
        if (yield from self.starts("[")):
            yield from self._array()
        else:
            yield from self._named()
        if self.calls == begun and (yield from self.more()):
            self.rewind(place)
        self.release()

    def _array(self) -> Reading[None]:
        while True:
            yield from self.skip_space()
            outcome = yield from read_call(self)
            if outcome is Outcome.BROKEN:
                yield from self.until(_MARKS, self.arguments)
            if outcome is not Outcome.WHOLE:
                return
            yield from self.skip_space()
            if not (yield from self.starts(",")):
                yield from self.starts("]")
                self.mark()
                return

    def _named(self) -> Reading[None]:
        name = yield from self.matching(_NAME)
        id_ = None
        if (yield from self.starts(_ID)):
            id_ = yield from self.matching(_NAME)
        marked = yield from self.starts(_ARGUMENTS)
        if not name or (not marked and (yield from self.peek()) != "{"):
            return
        self.begin_call(name, id_)
        if (yield from read_arguments(self, self.arguments)):
            self.end_call()
        else:
            yield from self.until(_MARKS, self.arguments)
        self.mark()
