"""Characters of a pattern: its cursor, escapes and classes.

What an escape such as `\\w` means differs between dialects: ASCII alone, as in ECMA-262, or Unicode, as in Python. Read
with `outer` false a class is what it is in all of them, so that a text of it matches under each; with `outer` true it
is what it is in any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NoReturn

from sglite.constrained import charset, unicode_properties
from sglite.constrained.charset import Ranges
from sglite.constrained.grammar import NOTHING, Chars, Node, Text
from sglite.constrained.spec import ConstraintError, ConstraintRefused

_CONTROL = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
_HEX_WIDTH = {"x": 2, "u": 4, "U": 8}
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


class Cursor:
    """A pattern and a place in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def peek(self) -> str:
        """The next character, "" at the end."""
        return self.text[self.at : self.at + 1]

    def next(self) -> str:
        """The next character, which is passed; "" at the end."""
        char = self.peek()
        self.at += len(char)
        return char

    def take(self, text: str) -> bool:
        """Pass `text` when it comes next."""
        found = self.text.startswith(text, self.at)
        self.at += len(text) if found else 0
        return found

    def until(self, text: str, start: int) -> str:
        """What stands before the next `text`, which is passed too."""
        end = self.text.find(text, self.at)
        if end < 0:
            self.broken(f"missing {text}", start)
        found, self.at = self.text[self.at : end], end + len(text)
        return found

    def broken(self, what: str, at: int | None = None) -> NoReturn:
        raise ConstraintError(f"regex {self.text!r:.80}: {what} at position {self.at if at is None else at}")

    def refuse(self, what: str, at: int) -> NoReturn:
        raise ConstraintRefused(
            f"regex {self.text!r:.80}: {what} at position {at} is not enforced; rewrite the pattern without it",
            keyword="regex",
        )


@dataclass(frozen=True)
class Members:
    """What an escape stands for where dialects give it least, and where they give it most."""

    narrow: Callable[[], Ranges]
    wide: Callable[[], Ranges]
    negated: bool = False

    def read(self, wide: bool) -> Ranges:
        """In the narrow dialect or the wide one; their tables are made when first asked for."""
        found = self.wide() if wide else self.narrow()
        return charset.complement(found) if self.negated else found

    def sense(self, outer: bool) -> Ranges:
        return self.read(outer != self.negated)


def escaped(cursor: Cursor, start: int) -> Members | str:
    """What follows a backslash, in a class or out: a set of characters or one character."""
    char = cursor.next()
    if char == "":
        cursor.broken("the pattern ends in a backslash", start)
    if char in "dDwWsS":
        return replace(_CLASSES[char.lower()], negated=char.isupper())
    if char in "pP":
        return _property(cursor, char == "P", start)
    if char in _HEX_WIDTH:
        return _hex(cursor, char, start)
    if char == "0":
        digits = "0"
        while len(digits) < 3 and cursor.peek() and cursor.peek() in "01234567":
            digits += cursor.next()
        return chr(int(digits, 8))
    if char == "c" and cursor.peek().isascii() and cursor.peek().isalpha():
        return chr(ord(cursor.next()) % 32)
    if char in _CONTROL:
        return _CONTROL[char]
    if char.isascii() and char.isalnum():
        cursor.broken(f"unknown escape \\{char}", start)
    return char


def read_class(cursor: Cursor, start: int, outer: bool, ignore_case: bool) -> Node:
    """A class whose opening bracket has been passed."""
    negated = cursor.take("^")
    if cursor.peek() == "]":
        # ECMA-262 closes an empty class here, Python takes a literal ]: no reading is right in both
        cursor.refuse("a class that begins with ]; write \\] instead; it", start)
    found: list[Ranges] = []
    sets: list[Members] = []
    while not cursor.take("]"):
        if cursor.peek() == "":
            cursor.broken("missing ]", start)
        if cursor.text.startswith("[:", cursor.at):
            cursor.refuse("a POSIX class name", cursor.at)
        item = _class_item(cursor, start)
        if isinstance(item, str):
            found.append(charset.make([(ord(item[0]), ord(item[-1]))]))
        else:
            sets.append(item)
    members = _union(charset.union(*found), sets, outer != negated, ignore_case)
    return chars(charset.complement(members) if negated else members)


def _union(listed: Ranges, sets: list[Members], outer: bool, ignore_case: bool) -> Ranges:
    if len({one.negated for one in sets}) < 2:
        return charset.union(any_case(listed, outer, ignore_case), *(one.sense(outer) for one in sets))
    # what one escape leaves out, another may have in every dialect, as in [\s\S]: ask each dialect for the whole
    narrow, wide = (
        charset.union(any_case(listed, in_wide, ignore_case), *(one.read(in_wide) for one in sets))
        for in_wide in (False, True)
    )
    return charset.union(narrow, wide) if outer else charset.intersect(narrow, wide)


def _class_item(cursor: Cursor, start: int) -> Members | str:
    """A set, or the ends of a range as a string of one or two characters."""
    low = _class_char(cursor, start)
    if cursor.peek() != "-" or cursor.text[cursor.at + 1 : cursor.at + 2] in ("]", ""):
        return low
    cursor.next()
    high = _class_char(cursor, start)
    if not isinstance(low, str) or not isinstance(high, str):
        cursor.broken("a class escape cannot bound a range", start)
    if high < low:
        cursor.broken(f"the range {low}-{high} is the wrong way round", start)
    return low + high


def _class_char(cursor: Cursor, start: int) -> Members | str:
    char = cursor.next()
    if char == "":
        cursor.broken("missing ]", start)
    if char != "\\":
        _check_scalar(cursor, char, start)
        return char
    return "\b" if cursor.take("b") else escaped(cursor, start)


def literal(cursor: Cursor, char: str, start: int, outer: bool, ignore_case: bool) -> Node:
    """One character that stands for itself."""
    _check_scalar(cursor, char, start)
    members = any_case(charset.of(char), outer, ignore_case)
    return Text(char) if charset.size(members) == 1 else Chars(members)


def any_case(ranges: Ranges, outer: bool, ignore_case: bool) -> Ranges:
    if not ignore_case:
        return ranges
    return charset.all_case_variants(ranges) if outer else charset.ascii_case_variants(ranges)


def chars(ranges: Ranges) -> Node:
    """One character of a set, which may be empty."""
    return Chars(ranges) if ranges else NOTHING


_CLASSES = MappingProxyType(
    {
        "d": Members(lambda: charset.ASCII_DIGIT, charset.unicode_digit),
        "w": Members(lambda: charset.ASCII_WORD, charset.unicode_word),
        "s": Members(lambda: charset.ASCII_SPACE, lambda: charset.UNICODE_SPACE),
    }
)


def _property(cursor: Cursor, negated: bool, start: int) -> Members:
    name = cursor.until("}", start) if cursor.take("{") else cursor.next()
    if name.startswith("^"):
        name, negated = name[1:], not negated
    found = unicode_properties.find(name) if len(name) < 60 else None
    if found is None:
        cursor.refuse(f"the Unicode property {name!r:.60}", start)
    sure, possible = found
    return Members(lambda: sure, lambda: possible, negated)


def _hex(cursor: Cursor, kind: str, start: int) -> str:
    if kind == "u" and cursor.take("{"):
        digits = cursor.until("}", start)
    else:
        digits = cursor.text[cursor.at : cursor.at + _HEX_WIDTH[kind]]
        cursor.at += len(digits)
        if len(digits) != _HEX_WIDTH[kind]:
            cursor.broken("a hexadecimal escape is cut short", start)
    if not digits or len(digits) > 8 or not _HEX_DIGITS.issuperset(digits):
        cursor.broken(f"{digits!r:.20} is not a hexadecimal number", start)
    code = int(digits, 16)
    low = _low_surrogate(cursor) if kind == "u" and 0xD800 <= code <= 0xDBFF else None
    if low is not None:
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
    if not charset.contains(charset.EVERY, code):
        cursor.refuse(f"U+{code:04X}, which is no character,", start)
    return chr(code)


def _low_surrogate(cursor: Cursor) -> int | None:
    """The second half of a character that ECMA-262 without the u flag spells as two escapes."""
    digits = cursor.text[cursor.at + 2 : cursor.at + 6]
    if not cursor.text.startswith("\\u", cursor.at) or len(digits) != 4 or not _HEX_DIGITS.issuperset(digits):
        return None
    if not 0xDC00 <= int(digits, 16) <= 0xDFFF:
        return None
    cursor.at += 6
    return int(digits, 16)


def _check_scalar(cursor: Cursor, char: str, start: int) -> None:
    if 0xD800 <= ord(char) <= 0xDFFF:
        cursor.refuse("half a surrogate pair", start)
