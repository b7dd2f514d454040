"""EBNF in GBNF notation (llama.cpp's), read into a grammar.

`name ::= expression` defines a rule; `root` is where a text starts. Strings, character classes, `.` for any character,
groups, `|`, `* + ? {m} {m,} {m,n} {,n}`, comments from `#`; an expression may go on over lines. A rule may begin with
itself, directly. Extensions of single engines (lookahead, tag dispatch, token references) are refused: their meaning
is not the same from engine to engine.
"""

from __future__ import annotations

import re

from sglite.constrained import charset, left_recursion
from sglite.constrained.charset import Ranges
from sglite.constrained.grammar import Chars, Grammar, Node, Ref, Text, alt, repeat, seq
from sglite.constrained.left_recursion import LeftRecursion
from sglite.constrained.limits import Limits
from sglite.constrained.source import Source
from sglite.constrained.spec import ConstraintError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_RULE = re.compile(rf"(?P<name>{_NAME.pattern})\s*::=")
_COUNTS = re.compile(r"\{\s*(\d{1,9})?\s*(?:(,)\s*(\d{1,9})?\s*)?\}", re.A)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "b": "\b", "a": "\a", "0": "\0"}
_HEX = {"x": 2, "u": 4, "U": 8}
_SHORT = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def read_ebnf(text: str, limits: Limits | None = None) -> Grammar:
    """Read a grammar. ConstraintError names line and column; ConstraintRefused the notation that is not enforced."""
    return _Reader(text, limits or Limits()).read()


class _Reader(Source):
    keyword = "ebnf"
    space = re.compile(r"(?:\s|#[^\n]*)*")

    def __init__(self, text: str, limits: Limits) -> None:
        super().__init__(text, limits)
        self._used: dict[str, int] = {}

    def read(self) -> Grammar:
        rules: dict[str, Node] = {}
        starts: dict[str, int] = {}
        self._space()
        while self._at < len(self._text):
            found = _RULE.match(self._text, self._at)
            if found is None:
                self.broken("expected 'name ::=' (or 'name:', in Lark's notation)")
            name, start = found["name"], self._at
            if name in rules:
                self.broken(f"the rule {name!r} is defined twice", start)
            self._at = found.end()
            self._space()
            starts[name] = start
            rules[name] = self._alternation()
        for name, at in self._used.items():
            if name not in rules:
                self.broken(f"the rule {name!r} is not defined", at)
        if "root" not in rules:
            raise ConstraintError("grammar: there is no rule named 'root' to start from")
        try:
            return Grammar(left_recursion.rewrite(rules), "root")
        except LeftRecursion as error:
            self.refuse(f"left recursion ({error})", starts[error.cycle[0]])

    def _alternation(self) -> Node:
        branches = [self._sequence()]
        while self._take("|"):
            branches.append(self._sequence())
        return alt(branches)

    def _sequence(self) -> Node:
        items: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)" and not self._at_rule():
            items.append(self._repeated())
        return seq(*items)

    def _at_rule(self) -> bool:
        return _RULE.match(self._text, self._at) is not None

    def _repeated(self) -> Node:
        node = self._item()
        bounds = self._quantifier()
        if bounds is None:
            return node
        if self._quantifier() is not None:
            self.broken("a quantifier follows a quantifier; put the first in parentheses")
        return repeat(node, *bounds)

    def _quantifier(self) -> tuple[int, int | None] | None:
        char = self._text[self._at : self._at + 1]
        if char in _SHORT:
            self._take(char)
            return _SHORT[char]
        found = _COUNTS.match(self._text, self._at)
        if found is None or (found[1] is None and found[3] is None):
            return None
        low = int(found[1] or 0)
        high = (int(found[3]) if found[3] else None) if found[2] else low
        self._check_counts(low, high, found[0])
        self._at = found.end()
        self._space()
        return low, high

    def _item(self) -> Node:
        start, char = self._at, self._text[self._at]
        if char == "(":
            return self._group(start)
        if char == '"':
            return self._string(start)
        if char == "[":
            return self._class(start)
        if self._take("."):
            return Chars(charset.EVERY)
        found = _NAME.match(self._text, self._at)
        if found is None:
            self.broken(f"unexpected {char!r}")
        self._at = found.end()
        self._space()
        if self._text.startswith("(", self._at) and found[0][0].isupper() and self._at == found.end():
            self.refuse(f"the extension {found[0]!r}", start)
        self._used.setdefault(found[0], start)
        return Ref(found[0])

    def _group(self, start: int) -> Node:
        self._enter(start)
        self._take("(")
        if self._text.startswith("=", self._at):
            self.refuse("lookahead", start)
        node = self._alternation()
        if not self._take(")"):
            self.broken("missing )", start)
        self._depth -= 1
        return node

    def _string(self, start: int) -> Node:
        self._at += 1
        text: list[str] = []
        while not self._text.startswith('"', self._at):
            text.append(self._char(start, 'missing "'))
        self._take('"')
        return Text("".join(text))

    def _class(self, start: int) -> Node:
        self._at += 1
        negated = self._text.startswith("^", self._at)
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while not self._text.startswith("]", self._at):
            low = self._char(start, "missing ]")
            high = low
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                high = self._char(start, "missing ]")
            if high < low:
                self.broken(f"the range {low}-{high} is the wrong way round", start)
            ranges.append((ord(low), ord(high)))
        self._take("]")
        members: Ranges = charset.make(ranges)
        return Chars(charset.complement(members) if negated else members)

    def _char(self, start: int, missing: str) -> str:
        char = self._text[self._at : self._at + 1]
        self._at += 1
        if char in ("", "\n"):
            self.broken(missing, start)
        if char == "\\":
            char = self._text[self._at : self._at + 1]
            self._at += 1
            char = self._coded(_HEX[char]) if char in _HEX else _ESCAPES.get(char, char)
        if char == "" or 0xD800 <= ord(char) <= 0xDFFF:
            self.broken("half a surrogate pair is no character" if char else missing, start)
        return char

    def _coded(self, width: int) -> str:
        """A character by its number; one past U+FFFF may be a surrogate pair of two `\\u`."""
        high = self._hex(width)
        if width != _HEX["u"] or not "\ud800" <= high <= "\udbff" or not self._text.startswith("\\u", self._at):
            return high
        self._at += 2
        low = self._hex(width)
        if not "\udc00" <= low <= "\udfff":
            self.broken(f"U+{ord(high):04X} is half a surrogate pair, and no other half follows")
        return chr(0x10000 + ((ord(high) - 0xD800) << 10) + (ord(low) - 0xDC00))

    def _hex(self, width: int) -> str:
        digits = self._text[self._at : self._at + width]
        if len(digits) != width or not all(d in "0123456789abcdefABCDEF" for d in digits):
            self.broken(f"{digits!r} is not {width} hexadecimal digits")
        if int(digits, 16) > charset.MAX:
            self.broken(f"U+{digits} is past the last character")
        self._at += width
        return chr(int(digits, 16))
