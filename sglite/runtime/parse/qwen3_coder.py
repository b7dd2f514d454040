"""Calls of Qwen3-Coder and Qwen 3.5: a function tag, and each argument as raw text in a tag of its own.

    <tool_call>
    <function=f>
    <parameter=k>
    v
    </parameter>
    </function>
    </tool_call>

One line break on either side of a value belongs to the format, further ones to the value. Types: see ``xml_values``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sglite.runtime.parse import grammar
from sglite.runtime.parse.base import Call, Tool, ToolFormat, TurnParser
from sglite.runtime.parse.machine import Reading
from sglite.runtime.parse.marks import Marks
from sglite.runtime.parse.xml_grammar import parameters, tool_name
from sglite.runtime.parse.xml_machine import MAX_NAME, TagMachine, is_tool_name
from sglite.runtime.parse.xml_values import Value

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_MARKS = Marks(_OPEN, _CLOSE)
_VALUE_ENDS = Marks("\n" + _PARAMETER_END, _PARAMETER_END)
_INSIDE = (_PARAMETER, _FUNCTION_END, _CLOSE)
_MAX_KEY = 1024


class Qwen3Coder(ToolFormat):
    name = "qwen3_coder"
    aliases = ("qwen3_xml", "qwen3_5")
    marks = (_OPEN, _CLOSE)

    def parser(self, tools: Sequence[Tool]) -> TurnParser:
        return _Turn(tools)

    def calls(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        return grammar.listed(_tags(tools), "\n", several=several)

    def free(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        return grammar.triggered([_OPEN], _tags(tools), several=several)

    def write(self, content: str, calls: Sequence[Call]) -> str:
        written = "\n".join(_written(call) for call in calls)
        return f"{content}\n\n{written}" if content and written else content or written


def _written(call: Call) -> str:
    values = [
        f"{_PARAMETER}{key}>\n{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n"
        f"{_PARAMETER_END}\n"
        for key, value in call.arguments.items()
    ]
    return f"{_OPEN}\n{_FUNCTION}{call.name}>\n{''.join(values)}{_FUNCTION_END}\n{_CLOSE}"


def _tags(tools: Sequence[Tool]) -> list[grammar.Format]:
    return [
        grammar.tag(
            f"{_OPEN}\n{_FUNCTION}{tool_name(tool)}>\n", parameters(tool, "qwen_xml"), f"{_FUNCTION_END}\n{_CLOSE}"
        )
        for tool in tools
    ]


class _Turn(TagMachine):
    """A function that ends without the closing mark of the call is whole; another function may follow it."""

    def _turn(self) -> Reading[None]:
        mark = yield from self.content_until(_MARKS)
        if mark == _OPEN:
            yield from self._functions()
        elif mark == _CLOSE and self.after_mark:
            self.mark()
        elif mark is not None:
            self.content(mark)

    def _functions(self) -> Reading[None]:
        place = self.keep()
        name = yield from self._name((_FUNCTION,))
        if name is None and (yield from self.more()):
            self.rewind(place)
            self.content(_OPEN)
        while name:
            self.begin(name)
            if not (yield from self._parameters()):
                return
            self.end()
            place = self.keep()
            name = yield from self._name((_FUNCTION, _CLOSE))
            if name is None and (yield from self.more()):
                self.rewind(place)
        self.release()

    def _name(self, tags: Sequence[str]) -> Reading[str | None]:
        """The name in the tag of a function that comes next; empty where the call is closed instead."""
        yield from self.spaces()
        tag = yield from self.one_of(tags)
        if tag != _FUNCTION:
            return None if tag is None else ""
        name = yield from self.text_before(">", MAX_NAME, barred="<\n")
        return name if name is not None and is_tool_name(name) else None

    def _parameters(self) -> Reading[bool]:
        """The arguments and the end of the function; False: the turn ended before."""
        while (yield from self.more()):
            yield from self.spaces()
            tag = yield from self.one_of(_INSIDE)
            if tag == _PARAMETER:
                if not (yield from self._parameter()):
                    return False
            elif tag == _FUNCTION_END:
                return True
            elif tag == _CLOSE:
                self._at -= len(_CLOSE)
                return True
            elif (yield from self.more()):
                yield from self.junk()
        return False

    def _parameter(self) -> Reading[bool]:
        key = yield from self.text_before(">", _MAX_KEY, barred="\n")
        if key is None:
            return (yield from self.more())
        if (yield from self.peek()) == "\n":
            self.skip()
        return (yield from self.value(Value(self.kinds(key), self.member(key)), _VALUE_ENDS, _INSIDE))
