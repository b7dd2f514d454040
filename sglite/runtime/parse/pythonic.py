"""Calls as a Python list of calls, ``[f(a=1), g(b="x")]``: Llama 4 and 3.2, with or without marks around it.

Without a mark the list has to stand at the beginning of the turn and to begin with a call of one of the request's
tools; any other text is content as it was written. Arguments are told as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from sglite.runtime.parse import grammar
from sglite.runtime.parse.base import Call, Tool, ToolFormat, TurnParser
from sglite.runtime.parse.json_stream import string_piece
from sglite.runtime.parse.machine import Machine, Reading
from sglite.runtime.parse.marks import Marks
from sglite.runtime.parse.python_values import PythonValues
from sglite.runtime.parse.pythonic_grammar import call_format

_OPEN, _CLOSE = "<|python_start|>", "<|python_end|>"
_MARKS, _END = Marks(_OPEN, _CLOSE), Marks(_CLOSE)
_NAME = re.compile(r"[\w.\-]*")


class Pythonic(ToolFormat):
    """``[f(a=1), g(b="x")]``"""

    name = "pythonic"
    aliases = ("llama4", "llama4_pythonic")
    marks = (_OPEN, _CLOSE)

    def parser(self, tools: Sequence[Tool]) -> TurnParser:
        return _Turn({tool.name for tool in tools})

    def calls(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        tags = [grammar.tag(f"{tool.name}(", call_format(tool), ")") for tool in tools]
        return grammar.tag("[", grammar.listed(tags, ", ", several=several), "]")

    def free(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        ended = grammar.either(grammar.text(""), grammar.text(_CLOSE))
        return grammar.unless_begun("[", _OPEN, grammar.sequence(self.calls(tools, several=several), ended))

    def write(self, content: str, calls: Sequence[Call]) -> str:
        body = "[" + ", ".join(f"{call.name}({_written(call.arguments)})" for call in calls) + "]"
        if not calls:
            return content
        return f"{content}{_OPEN}{body}{_CLOSE}" if content else body


def _written(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in arguments.items())


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


class _Turn(Machine):
    def __init__(self, known: Collection[str]) -> None:
        super().__init__()
        self._known = known
        self._begins = True

    def _turn(self) -> Reading[None]:
        if self._begins:
            self._begins = False
            yield from self._calls(self._known)
        mark = yield from self.content_until(_MARKS)
        if mark is not None:
            self.mark()
        if mark == _OPEN:
            yield from self._calls(None)

    def _calls(self, known: Collection[str] | None) -> Reading[None]:
        """A list of calls; what is none is left to be read as content. Behind a mark, what the turn ends in is not."""
        place, begun = self.keep(), self.calls
        yield from self.skip_space()
        whole = (yield from self.starts("[")) and (yield from self._list(known))
        if self.calls > begun:
            if not whole:
                yield from self.until(_END, self.arguments)
            self.mark()
        elif known is not None or (yield from self.more()):
            self.rewind(place)
        self.release()

    def _list(self, known: Collection[str] | None) -> Reading[bool]:
        """The calls up to the end of the list, or to what is none. False: the last is broken, or there is none."""
        ended = False
        while True:
            place = self.keep() if ended else None
            yield from self.skip_space()
            name = yield from self.matching(_NAME)
            if not name or not (yield from self.starts("(")) or (known is not None and name not in known):
                if place is not None and (yield from self.more()):
                    self.rewind(place)
                return ended
            known = None  # the first name has told that this is a list of calls
            self.begin_call(name)
            if not (yield from self._call()):
                return False
            self.end_call()
            ended = True
            yield from self.skip_space()
            if not (yield from self.starts(",")):
                yield from self.starts("]")
                return True

    def _call(self) -> Reading[bool]:
        values, lead = PythonValues(self, self.arguments), "{"
        while True:
            yield from self.skip_space()
            if (yield from self.starts(")")):
                self.arguments("{}" if lead == "{" else "}")
                return True
            place = self.keep()
            key = yield from self.matching(_NAME)
            yield from self.skip_space()
            if not key or not (yield from self.starts("=")):
                if (yield from self.more()):
                    self.rewind(place)
                return False
            self.release()
            self.arguments(f'{lead}"{string_piece(key)}": ')
            lead = ", "
            yield from self.skip_space()
            if not (yield from values.value()):
                return False
            yield from self.skip_space()
            if not (yield from self.starts(",")) and (yield from self.peek()) != ")":
                return False
