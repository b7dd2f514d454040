"""JSON read piece by piece: which of it is certain, and where the value ends.

Promises of ``JsonScanner``: the pieces of a value that ends well are together its JSON text, as it was written; a piece
never ends inside an escape, a number or a word; brackets, commas and marks inside strings mean nothing. Two faults that
models write are repaired on the way, since what was meant is clear: a control character inside a string is escaped, and
the backslash of an escape that JSON does not have is doubled. Anything else that is not JSON ends the reading there.
"""

from __future__ import annotations

import json
import re

MAX_DEPTH = 128
"""Values nested deeper are not read: the readers of the arguments would refuse them."""

_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SPACE = re.compile(r"[ \t\n\r]*")
_WORD_PART = re.compile(r"[-+.0-9A-Za-z]*")
_WORD = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_ESCAPES = frozenset('"\\/bfnrt')
_HEX = frozenset("0123456789abcdefABCDEF")


def string_piece(text: str) -> str:
    """What stands for ``text`` inside the quotes of a JSON string; pieces of a text give pieces of the string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class JsonScanner:
    """Reads one JSON value. ``done``: it has ended; ``bad``: what came was not JSON; neither: there is more to come.

    ``kind`` is the value's first character, once there is one: ``{``, ``[``, ``"``, or of a number or word.
    """

    def __init__(self) -> None:
        self.kind = ""
        self.done = False
        self.bad = False
        self._stack: list[str] = []
        self._wanted = "value"  # value, first (or the end of an array), key, first key, colon, comma
        self._quoted = False
        self._held = ""  # an escape, a number or a word that has not ended

    def feed(self, text: str, at: int = 0) -> tuple[str, int]:
        """(more of the value, the place after it). The place is before the end of ``text`` when the value has ended
        there, or the next character is bad; held parts of a bad value are handed out as they were written."""
        out: list[str] = []
        if not self.kind:
            at = _space(text, at)
            self.kind = text[at : at + 1]
        while at < len(text) and not (self.done or self.bad):
            at = self._string(text, at, out) if self._quoted else self._outside(text, at, out)
        if self.bad and self._held:
            out.append(self._held)
            self._held = ""
        return "".join(out), at

    def close(self) -> str:
        """Nothing follows: what is left of a number or word that stands alone, which ends there."""
        out: list[str] = []
        if self._held and not self._quoted and not self._stack:
            self._end_word(out)
        return "".join(out)

    def _string(self, text: str, at: int, out: list[str]) -> int:
        if self._held:
            return self._escape(text, at, out)
        end = _plain(text, at)
        out.append(text[at:end])
        if end == len(text):
            return end
        char = text[end]
        if char == "\\":
            self._held = char
        elif char == '"':
            out.append(char)
            self._quoted = False
            self._after_string()
        else:
            out.append(string_piece(char))
        return end + 1

    def _escape(self, text: str, at: int, out: list[str]) -> int:
        """One more character of an escape, or the first one that cannot belong to it."""
        char, held = text[at], self._held
        if char in _ESCAPES if held == "\\" else char in _HEX and len(held) == 5:
            out.append(held + char)
            self._held = ""
            return at + 1
        if char == "u" if held == "\\" else char in _HEX:
            self._held = held + char
            return at + 1
        out.append("\\" + held)
        self._held = ""
        return at

    def _outside(self, text: str, at: int, out: list[str]) -> int:
        if self._held:
            end = _word(text, at)
            self._held += text[at:end]
            if end < len(text):
                self._end_word(out)
            return end
        end = _space(text, at)
        out.append(text[at:end])
        if end == len(text):
            return end
        if not self._take(text[end]):
            self.bad = True
            return end
        if not self._held:
            out.append(text[end])
        return end + 1

    def _take(self, char: str) -> bool:
        """One character of the structure, or the first one of a value."""
        wanted = self._wanted
        if wanted == "colon":
            self._wanted = "value"
            return char == ":"
        if wanted == "comma" and char == ",":
            self._wanted = "key" if self._stack[-1] == "{" else "value"
            return True
        if char in "}]":
            return self._closed("{" if char == "}" else "[")
        if char == '"' and wanted != "comma":
            self._quoted = True
            return True
        return wanted in ("value", "first") and self._begun(char)

    def _begun(self, char: str) -> bool:
        if char in "{[":
            self._stack.append(char)
            self._wanted = "first key" if char == "{" else "first"
            return len(self._stack) <= MAX_DEPTH
        self._held = char if _word(char, 0) else ""
        return bool(self._held)

    def _closed(self, opened: str) -> bool:
        allowed = ("comma", "first key") if opened == "{" else ("comma", "first")
        if self._wanted not in allowed or self._stack[-1] != opened:
            return False
        self._stack.pop()
        self._after_value()
        return True

    def _after_string(self) -> None:
        if self._wanted in ("key", "first key"):
            self._wanted = "colon"
        else:
            self._after_value()

    def _after_value(self) -> None:
        self._wanted = "comma"
        self.done = not self._stack

    def _end_word(self, out: list[str]) -> None:
        if not _WORD.fullmatch(self._held):
            self.bad = True
            return
        out.append(self._held)
        self._held = ""
        self._after_value()


def _plain(text: str, at: int) -> int:
    return _end(_PLAIN, text, at)


def _space(text: str, at: int) -> int:
    return _end(_SPACE, text, at)


def _word(text: str, at: int) -> int:
    return _end(_WORD_PART, text, at)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()
