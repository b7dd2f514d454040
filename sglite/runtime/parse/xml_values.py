"""What a value that stands between tags without quotes is: a string, or JSON text of another type.

Rules. A value whose schema allows strings only is the text as it is. Where strings and other types are allowed, or
nothing is known, the text is a value of another allowed type if it is JSON text of one, and a string otherwise. Where
no string is allowed it is JSON text, ``True``, ``False`` and ``None`` being understood; what is none is handed on as
a string, so that the client sees what the model wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sglite.constrained.json_schema.kinds import STRING, kind_of_value
from sglite.constrained.json_values import parse
from sglite.runtime.parse.json_stream import string_piece

MAX_SCALAR = 4096
"""Characters; a longer text is no number and no word."""

_WORDS = {"true": "true", "false": "false", "null": "null", "none": "null"}
_SPACE = " \t\n\r"


def _beginnings(word: str) -> str:
    """A pattern for the beginnings of a word."""
    return "".join(f"(?:{char}" for char in word) + ")?" * len(word)


_MAYBE = re.compile(
    rf"[{_SPACE}]*(?:-?[0-9][-+.0-9eE]*|-|{'|'.join(map(_beginnings, ('true', 'false', 'null')))})[{_SPACE}]*"
)


class Value:
    """One value as it comes; what is certain of its JSON text goes to ``emit``.

    ``take`` the text in pieces and ``end``, or say ``json`` for an array or object that a scanner has read.
    """

    def __init__(self, kinds: frozenset[str], emit: Callable[[str], None]) -> None:
        self._kinds = kinds
        self._emit = emit
        self._held = ""  # what may still be of another type
        self._string = False

    @property
    def opens(self) -> str:
        """The characters with which an array or object may begin here."""
        return ("[" if "array" in self._kinds else "") + ("{" if "object" in self._kinds else "")

    def take(self, text: str) -> None:
        """More of the value's text."""
        if self._string:
            self._emit(string_piece(text))
            return
        self._held += text
        if self._kinds == STRING or ("string" in self._kinds and not _may_be_other(self._held)):
            self._string = True
            self._emit('"' + string_piece(self._held))

    def json(self, text: str) -> None:
        """The whole value is this JSON text."""
        self._emit(text)

    def end(self) -> None:
        """The value is whole."""
        self._emit('"' if self._string else self._other())

    def _other(self) -> str:
        text = self._held.strip(_SPACE)
        kind = _kind(text)
        if "string" in self._kinds:
            return text if kind in self._kinds - STRING else f'"{string_piece(self._held)}"'
        if kind is not None:
            return text
        return _WORDS.get(text.lower()) or f'"{string_piece(self._held)}"'


def _may_be_other(text: str) -> bool:
    """Whether a text may go on to be a number or a word, or is one; arrays and objects are read elsewhere."""
    return len(text) <= MAX_SCALAR and _MAYBE.fullmatch(text) is not None


def _kind(text: str) -> str | None:
    """The type of a JSON text; None when it is none."""
    if len(text) > MAX_SCALAR:
        return None
    try:
        kind = kind_of_value(parse(text))
    except ValueError:
        return None
    return kind
