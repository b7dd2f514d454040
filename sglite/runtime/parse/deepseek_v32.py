"""Calls of DeepSeek V3.2 and V4 (DSML): a block of invocations, each argument saying whether it is a string.

    <｜DSML｜function_calls>
    <｜DSML｜invoke name="f">
    <｜DSML｜parameter name="k" string="true|false">v</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜function_calls>

An invocation may hold one JSON object instead of the parameters; that is read, never asked for. V4 calls the block
``tool_calls``; V4.1 has a space before each tag's name and calls it `` calls``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sglite.constrained.json_schema.kinds import STRING, TYPES
from sglite.runtime.parse import grammar
from sglite.runtime.parse.base import Call, Tool, ToolFormat, TurnParser
from sglite.runtime.parse.machine import Reading
from sglite.runtime.parse.marks import Marks
from sglite.runtime.parse.schemas import argument_schema
from sglite.runtime.parse.xml_grammar import parameters, tool_name
from sglite.runtime.parse.xml_machine import MAX_NAME, TagMachine, is_tool_name
from sglite.runtime.parse.xml_values import Value

_DSML = "｜DSML｜"
_MAX_KEY = 1024
_DEMANDING = ("minProperties", "allOf", "anyOf", "oneOf", "not", "if", "$ref", "$dynamicRef", "const", "enum")
"""With one of these an object may have to hold something that is not listed as required."""


@dataclass(frozen=True)
class _Tags:
    """The tags of one version."""

    block: str
    invoke: str
    parameter: str

    def opening(self, name: str) -> str:
        return f"<{_DSML}{name}"

    def closing(self, name: str) -> str:
        return f"</{_DSML}{name}>"


class DeepSeekV32(ToolFormat):
    name = "deepseekv32"
    aliases = ("deepseek_v32",)
    marks = (_DSML,)
    _tags: ClassVar[_Tags] = _Tags("function_calls", "invoke", "parameter")
    _style: ClassVar[str] = "deepseek_xml"

    def parser(self, tools: Sequence[Tool]) -> TurnParser:
        return _Turn(self._tags, tools)

    def calls(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        return self._block(tools, several)

    def free(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        begin = self._tags.opening(self._tags.block) + ">"
        return grammar.triggered([begin], [self._block(tools, several)], several=False)

    def write(self, content: str, calls: Sequence[Call]) -> str:
        tags = self._tags
        if not calls:
            return content
        body = "\n".join(self._written(call) for call in calls)
        block = f"{tags.opening(tags.block)}>\n{body}\n{tags.closing(tags.block)}"
        return f"{content}\n\n{block}" if content else block

    def _written(self, call: Call) -> str:
        tags, lines = self._tags, []
        for key, value in call.arguments.items():
            string = isinstance(value, str)
            text = value if string else json.dumps(value, ensure_ascii=False)
            head = f'{tags.opening(tags.parameter)} name="{key}" string="{str(string).lower()}">'
            lines.append(f"{head}{text}{tags.closing(tags.parameter)}")
        body = "\n".join(lines)
        return f'{tags.opening(tags.invoke)} name="{call.name}">\n{body}\n{tags.closing(tags.invoke)}'

    def _block(self, tools: Sequence[Tool], several: bool) -> grammar.Format:
        """A block of calls. It ends the turn: the models write one, whatever the number of calls."""
        tags = self._tags
        invocations = [
            grammar.tag(
                f'{tags.opening(tags.invoke)} name="{tool_name(tool)}">\n',
                _arguments(tool, self._style),
                tags.closing(tags.invoke),
            )
            for tool in tools
        ]
        content = grammar.listed(invocations, "\n", several=several)
        return grammar.tag(tags.opening(tags.block) + ">\n", content, "\n" + tags.closing(tags.block))


def _arguments(tool: Tool, style: str) -> grammar.Format:
    """The parameters, each with its line; where there are none the models leave the line empty."""
    found, schema = parameters(tool, style), argument_schema(tool)
    may_be_empty = not schema.get("required") and not any(word in schema for word in _DEMANDING)
    return grammar.either(found, grammar.text("\n")) if may_be_empty else found


class DeepSeekV4(DeepSeekV32):
    name = "deepseekv4"
    aliases = ("deepseek_v4",)
    _tags = _Tags("tool_calls", "invoke", "parameter")


class DeepSeekV41(DeepSeekV32):
    name = "deepseekv41"
    aliases = ("deepseek_v41",)
    _tags = _Tags(" calls", " invoke", " parameter")
    _style = "deepseek_v4_1_xml"


class _Turn(TagMachine):
    """A block begins with an invocation; what follows one and is none ends the block."""

    def __init__(self, tags: _Tags, tools: Sequence[Tool]) -> None:
        super().__init__(tools)
        self._block, self._block_end = tags.opening(tags.block) + ">", tags.closing(tags.block)
        self._invoke, self._invoke_end = tags.opening(tags.invoke), tags.closing(tags.invoke)
        self._parameter = tags.opening(tags.parameter)
        self._marks = Marks(self._block, self._block_end)
        self._value_ends = Marks(tags.closing(tags.parameter))
        self._inside = (self._parameter, self._invoke_end)

    def _turn(self) -> Reading[None]:
        mark = yield from self.until(self._marks, self._content)
        if mark == self._block:
            yield from self._invocations()
        elif mark == self._block_end and self.after_mark:
            self.mark()
        elif mark is not None:
            self.content(mark)

    def _content(self, text: str) -> None:
        """Content, but for a mark that the turn breaks off in: its first part is a token of its own, never shown."""
        begun = text.rfind(f"<{_DSML}") if self._closed else -1
        whole = begun < 0 or not self._block.startswith(text[begun:])
        self.content(text if whole else text[:begun])

    def _invocations(self) -> Reading[None]:
        place = self.keep()
        name = yield from self._name((self._invoke,))
        if name is None and (yield from self.more()):
            self.rewind(place)
            self.content(self._block)
        while name:
            self.begin(name)
            yield from self._invocation()
            place = self.keep()
            name = yield from self._name((self._invoke, self._block_end))
            if name is None and (yield from self.more()):
                self.rewind(place)
        self.release()

    def _name(self, tags: Sequence[str]) -> Reading[str | None]:
        """The name in the tag of an invocation that comes next; empty where the block ends instead."""
        yield from self.spaces()
        tag = yield from self.one_of(tags)
        if tag != self._invoke:
            return None if tag is None else ""
        name = yield from self._attribute(MAX_NAME)
        if name is None or not is_tool_name(name):
            return None
        return name if (yield from self.text_before(">", MAX_NAME, barred="<\n")) is not None else None

    def _attribute(self, limit: int) -> Reading[str | None]:
        """The value of the attribute ``name``."""
        yield from self.spaces()
        if not (yield from self.one_of(('name="',))):
            return None
        return (yield from self.text_before('"', limit, barred="\n"))

    def _invocation(self) -> Reading[None]:
        """The arguments and the end of a call, which is told when it is whole."""
        yield from self.skip_space()
        if (yield from self.peek()) == "{":
            if (yield from self.json(self.arguments)).done:
                self.end_call()
            while (yield from self.more()) and not (yield from self.one_of((self._invoke_end,))):
                if (yield from self.more()):
                    yield from self.junk()
        elif (yield from self._parameters()):
            self.end()

    def _parameters(self) -> Reading[bool]:
        while (yield from self.more()):
            yield from self.spaces()
            tag = yield from self.one_of(self._inside)
            if tag == self._invoke_end:
                return True
            if tag == self._parameter:
                if not (yield from self._one()):
                    return False
            elif (yield from self.more()):
                yield from self.junk()
        return False

    def _one(self) -> Reading[bool]:
        """A parameter; False: the turn ended before it did."""
        key = yield from self._attribute(_MAX_KEY)
        rest = None if key is None else (yield from self.text_before(">", MAX_NAME, barred="<\n"))
        if key is None or rest is None:
            return (yield from self.more())
        kinds = STRING if 'string="true"' in rest else TYPES - STRING if 'string="false"' in rest else self.kinds(key)
        return (yield from self.value(Value(kinds, self.member(key)), self._value_ends, self._inside))
