"""Python's literals read piece by piece and told as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

from sglite.runtime.parse.json_stream import MAX_DEPTH, string_piece
from sglite.runtime.parse.machine import Machine, Reading
from sglite.runtime.parse.marks import Marks

_WORD = re.compile(r"[-+.\w]*")
_HEX = re.compile(r"[0-9a-fA-F]*")
_OCTAL = re.compile(r"[0-7]*")
_NAMED = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "\n": ""}
_KEPT = "\\\"'/"
_DIGITS = {"x": 2, "u": 4, "U": 8}
_CLOSING = {"[": "]", "(": ")", "{": "}"}


class PythonValues:
    """Reads values from a machine; their JSON goes to ``take``. A reading returns False where it finds none; a
    word that is none has then been handed on as it was written."""

    def __init__(self, machine: Machine, take: Callable[[str], None]) -> None:
        self._machine = machine
        self._take = take

    def value(self, depth: int = 0) -> Reading[bool]:
        """A string, number, True, False, None, list, tuple or dictionary; JSON's own words are read too."""
        first = yield from self._machine.peek()
        if first in ('"', "'"):
            return (yield from self._string())
        if first and first in _CLOSING:
            return depth < MAX_DEPTH and (yield from self._collection(first, depth + 1))
        return (yield from self._word(quoted=False))

    def _collection(self, opening: str, depth: int) -> Reading[bool]:
        machine, closing, keyed = self._machine, _CLOSING[opening], opening == "{"
        machine.skip()
        self._take("{" if keyed else "[")
        first = True
        while True:
            yield from machine.skip_space()
            if (yield from machine.starts(closing)):
                self._take("}" if keyed else "]")
                return True
            if not (yield from machine.more()):
                return False
            self._take("" if first else ", ")
            first = False
            if keyed and not (yield from self._key()):
                return False
            if not (yield from self.value(depth)):
                return False
            yield from machine.skip_space()
            if not (yield from machine.starts(",")) and (yield from machine.peek()) != closing:
                return False

    def _key(self) -> Reading[bool]:
        machine = self._machine
        quoted = (yield from machine.peek()) in ('"', "'")
        found = (yield from self._string()) if quoted else (yield from self._word(quoted=True))
        yield from machine.skip_space()
        if not found or not (yield from machine.starts(":")):
            return False
        self._take(": ")
        yield from machine.skip_space()
        return True

    def _word(self, *, quoted: bool) -> Reading[bool]:
        text = yield from self._machine.matching(_WORD)
        found = _word(text)
        if found is None:
            self._take(text if (yield from self._machine.more()) else "")
            return False
        self._take(json.dumps(found) if quoted else found)
        return True

    def _string(self) -> Reading[bool]:
        machine = self._machine
        quote = yield from machine.peek()
        if (yield from machine.starts(quote * 3)):
            quote = quote * 3
        elif (yield from machine.starts(quote * 2)):
            self._take('""')
            return True
        else:
            machine.skip()
        self._take('"')
        marks = Marks(quote, "\\")
        while True:
            mark = yield from machine.until(marks, self._text)
            if mark == quote:
                self._take('"')
                return True
            if mark is None or not (yield from self._escape()):
                return False

    def _text(self, text: str) -> None:
        self._take(string_piece(text))

    def _escape(self) -> Reading[bool]:
        """What follows a backslash. An escape that Python does not have stands for itself. False: cut off."""
        machine = self._machine
        char = yield from machine.peek()
        if not char:
            return False
        if char in "01234567":
            digits = yield from machine.matching(_OCTAL)
            self._text(chr(int(digits[:3], 8)) + digits[3:])
            return True
        machine.skip()
        if char in _DIGITS:
            return (yield from self._code(char, _DIGITS[char]))
        self._text(_CONTROLS.get(char, char if char in _KEPT else "\\" + char))
        return True

    def _code(self, kind: str, size: int) -> Reading[bool]:
        digits = yield from self._machine.matching(_HEX)
        code = int(digits[:size] or "0", 16)
        if len(digits) < size or code > 0x10FFFF:
            self._text(f"\\{kind}{digits}")
            return (yield from self._machine.more())
        # Halves of a surrogate pair stay escapes: JSON joins them, as it would the text's own.
        half = 0xD800 <= code <= 0xDFFF
        self._take(f"\\u{code:04x}" if half else string_piece(chr(code)))
        self._text(digits[size:])
        return True


def _word(text: str) -> str | None:
    """The JSON of a number or a name."""
    if text in _NAMED:
        return _NAMED[text]
    try:
        return str(int(text, 0))
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return json.dumps(number) if math.isfinite(number) else None
