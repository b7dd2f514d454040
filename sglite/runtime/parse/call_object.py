"""Calls written as JSON objects, ``{"name": "f", "arguments": {...}}``, and arguments that stand alone.

The arguments may be called ``parameters`` and the order is free; arguments that come before the name wait for it.
Arguments that are JSON text inside a string are taken out of it; another string is handed on as it is; none, or
``null``, are ``{}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from enum import Enum

from sglite.runtime.parse.json_stream import JsonScanner
from sglite.runtime.parse.machine import Machine, Reading

_ARGUMENTS = ("arguments", "parameters")
_OTHERS = ("id", "type")
_QUOTE = re.compile(r'(\\.)|"')


class Outcome(Enum):
    """What became of something that begins like a call."""

    NONE = "none"
    """It is no call; nothing has been told of it."""
    CUT = "cut"
    """The turn ended before it was certain that there is a call; nothing has been told of it."""
    BROKEN = "broken"
    """A call has begun, and its arguments ended badly or with the turn. It has no end."""
    WHOLE = "whole"


def read_arguments(machine: Machine, take: Callable[[str], None]) -> Reading[bool]:
    """Hands on the JSON object that comes next, as it comes. False: what comes is no such object, or is cut off."""
    yield from machine.skip_space()
    first = yield from machine.peek()
    if first == "{":
        return (yield from machine.json(take)).done
    if first == '"':
        inner = _Unquoted(take)
        scanner = yield from machine.json(inner)
        return scanner.done and (inner.whole() or inner.is_text())
    if first == "n" and (yield from machine.starts("null")):
        take("{}")
        return True
    return False


def read_call(machine: Machine, known: Collection[str] | None = None) -> Reading[Outcome]:
    """Reads one call as an object and tells the machine of it.

    ``known`` None: a mark has said that this is a call, and it begins as soon as there is a name. Otherwise only the
    object's own look says so: the name has to be one of ``known`` and the arguments to begin like some.
    """
    return (yield from _CallReader(machine, known).read())


class _CallReader:
    def __init__(self, machine: Machine, known: Collection[str] | None) -> None:
        self._machine = machine
        self._known = known
        self._name: str | None = None
        self._id: str | None = None
        self._begun = False
        self._waiting: list[str] = []  # arguments that came before the name
        self._whole = False  # the arguments are
        self._ended = False  # the end has been told

    def read(self) -> Reading[Outcome]:
        machine = self._machine
        if not (yield from machine.starts("{")):
            return Outcome.NONE if (yield from machine.more()) else Outcome.CUT
        closed = yield from self._entries()
        if closed and self._name is None:
            return Outcome.NONE
        if closed and not self._whole:
            self._take("{}")
            self._whole = True
            self._settle()
        if self._begun:
            return Outcome.WHOLE if self._ended else Outcome.BROKEN
        return Outcome.NONE if (yield from machine.more()) else Outcome.CUT

    def _entries(self) -> Reading[bool]:
        """The entries of the object and its closing brace. False: it is cut off, or no call."""
        machine, first = self._machine, True
        while True:
            yield from machine.skip_space()
            if first and (yield from machine.starts("}")):
                return True
            key = yield from self._string()
            yield from machine.skip_space()
            if key is None or not (yield from machine.starts(":")):
                return False
            yield from machine.skip_space()
            if not (yield from self._entry(key)):
                return False
            self._settle()
            yield from machine.skip_space()
            if not (yield from machine.starts(",")):
                return (yield from machine.starts("}"))
            first = False

    def _entry(self, key: str) -> Reading[bool]:
        if key == "name" and self._name is None:
            self._name = yield from self._string()
            unknown = self._known is not None and self._name not in self._known
            return bool(self._name) and not unknown
        if key in _ARGUMENTS and not self._whole:
            self._whole = yield from read_arguments(self._machine, self._take)
            return self._whole
        if self._known is not None and not self._begun and key not in _OTHERS:
            return False
        if key == "id" and self._id is None and (yield from self._machine.peek()) == '"':
            self._id = yield from self._string()
            return self._id is not None
        return (yield from self._machine.json(_drop)).done

    def _string(self) -> Reading[str | None]:
        if (yield from self._machine.peek()) != '"':
            return None
        pieces: list[str] = []
        scanner = yield from self._machine.json(pieces.append)
        return _whole_text(json.loads("".join(pieces))) if scanner.done else None

    def _take(self, text: str) -> None:
        self._waiting.append(text)
        self._settle()

    def _settle(self) -> None:
        """Tells what is certain by now."""
        if self._name is not None and not self._begun and (self._waiting or self._known is None):
            self._machine.begin_call(self._name, self._id)
            self._begun = True
        if not self._begun:
            return
        for text in self._waiting:
            self._machine.arguments(text)
        self._waiting.clear()
        if self._whole and not self._ended:
            self._machine.end_call()
            self._ended = True


class _Unquoted:
    """Takes the JSON object out of the pieces of the JSON string that it stands in."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take = take
        self._inner = JsonScanner()
        self._half = ""  # the first half of a surrogate pair
        self._written: list[str] = []
        self._more = False  # something follows the object

    def __call__(self, piece: str) -> None:
        self._written += [] if self._inner.kind == "{" else [piece]
        text = self._half + json.loads(f'"{_QUOTE.sub(_escape, piece)}"')
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        text = _whole_text(text[: len(text) - len(self._half)])
        found, end = self._inner.feed(text)
        if found and self._inner.kind == "{":
            self._take(found)
        self._more = self._more or bool(text[end:].strip())

    def whole(self) -> bool:
        """Whether it was an object and nothing else. An empty text stands for an empty one."""
        if not self._inner.kind:
            self._take("{}")
            return True
        return self._inner.kind == "{" and self._inner.done and not self._more

    def is_text(self) -> bool:
        """Whether it was no object at all; it is told then as the string it was."""
        if self._inner.kind == "{":
            return False
        self._take("".join(self._written))
        return True


def _escape(found: re.Match[str]) -> str:
    return found.group(1) or ""


def _whole_text(text: str) -> str:
    """``text`` with surrogate pairs joined, and halves that stand alone replaced: they cannot be sent."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _drop(text: str) -> None:
    pass
