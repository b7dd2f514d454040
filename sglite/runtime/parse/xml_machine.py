"""What the formats have in common that write each argument between tags of its own.

    call head, then     key head KEY ... VALUE value end ... , then call end

A value's end mark ends it only where another tag of the call follows, so that a string may hold the mark itself.
An array or object is read as JSON, in which marks inside strings mean nothing. A name that comes a second time is
left out: a JSON object has it once. What stands between the arguments and is none of them is no argument.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from sglite.constrained.json_schema.kinds import TYPES, Kinds
from sglite.runtime.parse.base import Tool
from sglite.runtime.parse.json_stream import string_piece
from sglite.runtime.parse.machine import Machine, Reading
from sglite.runtime.parse.marks import Marks
from sglite.runtime.parse.schemas import argument_schema
from sglite.runtime.parse.xml_values import Value

MAX_SPACE = 64
"""Characters of white space between two tags of a call; where there are more, what stands before was no tag."""
MAX_NAME = 256
"""Characters of a tool's name."""

_BEFORE_TAG = re.compile(r"[^<]*")


class TagMachine(Machine):
    """Reads turns whose calls are written in tags. A format says how a call begins, in ``_turn``."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__()
        self._tools: Mapping[str, Tool] = {tool.name: tool for tool in tools}
        self._kinds: dict[str, Kinds] = {}
        self._tool = ""
        self._keys: set[str] = set()

    # the object that the arguments are

    def begin(self, name: str) -> None:
        """A call of a tool begins."""
        self.begin_call(name)
        self._tool = name
        self._keys = set()

    def end(self) -> None:
        """It is whole."""
        self.arguments("}" if self._keys else "{}")
        self.end_call()

    def member(self, key: str) -> Callable[[str], None]:
        """What takes the JSON text of the value of ``key``, piece by piece."""
        if key in self._keys:
            return _nowhere
        self.arguments(f'{", " if self._keys else "{"}"{string_piece(key)}": ')
        self._keys.add(key)
        return self.arguments

    def kinds(self, key: str) -> frozenset[str]:
        """The types that the tool's schema allows for a parameter; all of them where there is no such tool."""
        if self._tool not in self._tools:
            return TYPES
        if self._tool not in self._kinds:
            self._kinds[self._tool] = Kinds(argument_schema(self._tools[self._tool]))
        return self._kinds[self._tool].of(key) or TYPES

    # reading

    def value(self, value: Value, ends: Marks, follow: Sequence[str]) -> Reading[bool]:
        """Reads a value up to one of ``ends`` that one of ``follow`` comes after; that one is not taken. False: the
        turn ended before."""
        if not value.opens:
            return (yield from self._raw(value, ends, follow))
        place = self.keep()
        yield from self.skip_space()
        if (yield from self.peek()) in tuple(value.opens):
            pieces: list[str] = []
            scanner = yield from self.json(pieces.append)
            if scanner.done and (yield from self._ended(ends, follow)):
                value.json("".join(pieces))
                self.release()
                return True
            if not (scanner.bad or (yield from self.more())):
                return False
        self.rewind(place)
        return (yield from self._raw(value, ends, follow))

    def _raw(self, value: Value, ends: Marks, follow: Sequence[str]) -> Reading[bool]:
        while True:
            mark = yield from self._up_to(ends, value.take)
            if mark is None:
                return False
            place = self.keep()
            if (yield from self._followed(follow)):
                self.release()
                value.end()
                return True
            if not (yield from self.more()):
                return False
            self.rewind(place)
            value.take(mark)

    def _up_to(self, marks: Marks, take: Callable[[str], None]) -> Reading[str | None]:
        """As ``until``, but what may begin a mark at the end of the turn is not handed on: a value broken off there
        is no more certain than that."""
        while True:
            end, mark = marks.find(self._text, self._at)
            if end > self._at:
                take(self._text[self._at : end])
            self._at = end + len(mark or "")
            if mark is not None:
                return mark
            if self._closed:
                self._at = len(self._text)
                return None
            yield

    def _ended(self, ends: Marks, follow: Sequence[str]) -> Reading[bool]:
        yield from self.spaces()
        return (yield from self.one_of(ends.marks)) is not None and (yield from self._followed(follow))

    def _followed(self, follow: Sequence[str]) -> Reading[bool]:
        """Whether one of ``follow`` comes next, after white space. It is not taken."""
        yield from self.spaces()
        found = yield from self.one_of(follow)
        self._at -= len(found or "")
        return found is not None

    def one_of(self, texts: Sequence[str]) -> Reading[str | None]:
        """Takes the text that comes next; None where none of them does. At the end of the turn, where the rest may
        begin one, the rest is taken."""
        while True:
            for text in texts:
                if self._text.startswith(text, self._at):
                    self._at += len(text)
                    return text
            rest = self._text[self._at : self._at + max(map(len, texts))]
            if not any(text.startswith(rest) for text in texts):
                return None
            if self._closed:
                self._at = len(self._text)
                return None
            yield

    def spaces(self) -> Reading[None]:
        """Takes white space, up to ``MAX_SPACE``."""
        for _ in range(MAX_SPACE):
            if not (yield from self.peek()).isspace():
                return
            self.skip()

    def junk(self) -> Reading[None]:
        """Takes a character, and what follows up to something that may be a tag."""
        self.skip()
        yield from self.matching(_BEFORE_TAG)

    def text_before(self, end: str, limit: int, barred: str = "") -> Reading[str | None]:
        """Takes what comes before ``end``, a character, and that too. None: more than ``limit`` characters come first,
        or one of ``barred``, or the turn ends."""
        found: list[str] = []
        while len(found) <= limit:
            char = yield from self.peek()
            if not char or char in barred:
                return None
            self.skip()
            if char == end:
                return "".join(found)
            found.append(char)
        return None


def _nowhere(text: str) -> None:
    """Takes a value that is left out."""


def is_tool_name(name: str) -> bool:
    """Whether a text between tags may be the name of a tool."""
    return 0 < len(name) <= MAX_NAME and not any(char.isspace() or char in "<>{}\"'" for char in name)
