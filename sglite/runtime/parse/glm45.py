"""Calls of GLM 4.5 to 5: the tool's name, then keys and values in tags that take turns.

    <tool_call>f
    <arg_key>k</arg_key>
    <arg_value>v</arg_value>
    </tool_call>

GLM 4.7 and later leave the line breaks out; both are read, and both may be written. A value is all that stands between
its tags. Types: see ``xml_values``.
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
_KEY, _KEY_END = "<arg_key>", "</arg_key>"
_VALUE, _VALUE_END = "<arg_value>", "</arg_value>"
_MARKS = Marks(_OPEN, _CLOSE)
_KEY_ENDS, _VALUE_ENDS = Marks(_KEY_END), Marks(_VALUE_END)
_INSIDE = (_KEY, _CLOSE)


class Glm45(ToolFormat):
    name = "glm45"
    aliases = ("glm", "glm4_moe", "glm47")
    marks = (_OPEN, _CLOSE, _KEY, _KEY_END, _VALUE, _VALUE_END)

    def parser(self, tools: Sequence[Tool]) -> TurnParser:
        return _Turn(tools)

    def calls(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        return grammar.listed(_tags(tools), "\n", several=several)

    def free(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        return grammar.triggered([_OPEN], _tags(tools), several=several)

    def write(self, content: str, calls: Sequence[Call]) -> str:
        return "\n".join(([content] if content else []) + [_written(call) for call in calls])


def _written(call: Call) -> str:
    values = [
        f"{_KEY}{key}{_KEY_END}\n{_VALUE}"
        f"{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}{_VALUE_END}\n"
        for key, value in call.arguments.items()
    ]
    return f"{_OPEN}{call.name}\n{''.join(values)}{_CLOSE}"


def _tags(tools: Sequence[Tool]) -> list[grammar.Format]:
    line = grammar.either(grammar.text("\n"), grammar.text(""))
    return [
        grammar.tag(_OPEN + tool_name(tool), grammar.sequence(line, parameters(tool, "glm_xml")), _CLOSE)
        for tool in tools
    ]


class _Turn(TagMachine):
    """A call begins with a name that a key or the end of the call follows."""

    def _turn(self) -> Reading[None]:
        mark = yield from self.content_until(_MARKS)
        if mark == _OPEN:
            yield from self._call()
        elif mark == _CLOSE and self.after_mark:
            self.mark()
        elif mark is not None:
            self.content(mark)

    def _call(self) -> Reading[None]:
        place = self.keep()
        name = yield from self._name()
        if name is not None:
            self.begin(name)
            if (yield from self._pairs()):
                self.end()
        elif (yield from self.more()):
            self.rewind(place)
            self.content(_OPEN)
        self.release()

    def _name(self) -> Reading[str | None]:
        """The name that comes next, and the white space after it."""
        yield from self.spaces()
        found = ""
        while len(found) <= MAX_NAME:
            char = yield from self.peek()
            if not char or char.isspace() or char == "<":
                break
            found += char
            self.skip()
        yield from self.spaces()
        tag = yield from self.one_of(_INSIDE)
        self._at -= len(tag or "")
        return found if tag is not None and is_tool_name(found) else None

    def _pairs(self) -> Reading[bool]:
        """The arguments and the end of the call; False: the turn ended before."""
        while (yield from self.more()):
            yield from self.spaces()
            tag = yield from self.one_of(_INSIDE)
            if tag == _CLOSE:
                return True
            if tag == _KEY:
                if not (yield from self._pair()):
                    return False
            elif (yield from self.more()):
                yield from self.junk()
        return False

    def _pair(self) -> Reading[bool]:
        pieces: list[str] = []
        if (yield from self.until(_KEY_ENDS, pieces.append)) is None:
            return False
        yield from self.spaces()
        if (yield from self.one_of((_VALUE,))) is None:
            return (yield from self.more())
        key = "".join(pieces)
        return (yield from self.value(Value(self.kinds(key), self.member(key)), _VALUE_ENDS, _INSIDE))
