"""Llama 3's calls: JSON objects at the beginning of a turn, or behind ``<|python_tag|>``, with ``;`` in between.

Without the mark only the look of a text says that it is a call: the object names one of the request's tools and goes
on with its parameters. Any other text is content as it was written.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from sglite.runtime.parse import grammar
from sglite.runtime.parse.base import Call, Tool, ToolFormat, TurnParser
from sglite.runtime.parse.call_object import Outcome, read_call
from sglite.runtime.parse.machine import Machine, Reading
from sglite.runtime.parse.marks import Marks

_OPEN = "<|python_tag|>"
_FRAME = ("<|python_start|>", "<|python_end|>")  # around the content of a Llama 4 turn that has calls
_MARKS = Marks(_OPEN, *_FRAME)
_NOTHING = Marks()


class Llama3(ToolFormat):
    """``{"name": "f", "parameters": {...}}; {...}``"""

    name = "llama3"
    aliases = ("llama3_json", "llama4_json")
    marks = (_OPEN, *_FRAME)

    def parser(self, tools: Sequence[Tool]) -> TurnParser:
        return _Turn({tool.name for tool in tools})

    def calls(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        tags = [
            grammar.tag(f'{{"name": {grammar.quoted(tool.name)}, "parameters": ', grammar.arguments(tool), "}")
            for tool in tools
        ]
        return grammar.listed(tags, "; ", several=several)

    def free(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        calls = self.calls(tools, several=several)
        return grammar.unless_begun("{", _OPEN, calls)

    def write(self, content: str, calls: Sequence[Call]) -> str:
        written = [json.dumps({"name": call.name, "parameters": call.arguments}, ensure_ascii=False) for call in calls]
        return content + (_OPEN if content and calls else "") + "; ".join(written)


class _Turn(Machine):
    def __init__(self, known: Collection[str]) -> None:
        super().__init__()
        self._known = known
        self._begins = True  # an object may be a call here

    def _turn(self) -> Reading[None]:
        if self._begins:
            self._begins = False
            yield from self._objects(self._known)
        mark = yield from self.content_until(_MARKS)
        if mark is None:
            return
        self.mark()
        self._begins = mark != _OPEN
        if mark == _OPEN:
            yield from self._objects(None)

    def _objects(self, known: Collection[str] | None) -> Reading[None]:
        """Calls one after the other; what comes then is content."""
        while True:
            place = self.keep()
            yield from self.skip_space()
            outcome = yield from read_call(self, known)
            if outcome is Outcome.BROKEN:
                yield from self.until(_NOTHING, self.arguments)
            if outcome is Outcome.NONE or (outcome is Outcome.CUT and known is not None):
                self.rewind(place)
            self.release()
            if outcome is not Outcome.WHOLE:
                return
            self.mark()
            yield from self.skip_space()
            yield from self.starts(";")
