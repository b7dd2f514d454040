"""The reader behind `sglite.constrained.regex`: pattern text to grammar nodes, anchors kept as markers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NoReturn

from sglite.constrained import charset
from sglite.constrained.charset import Ranges
from sglite.constrained.grammar import EMPTY, Chars, Node, Ref, Text, alt, repeat, seq
from sglite.constrained.limits import Limits
from sglite.constrained.spec import ConstraintError, ConstraintRefused

# Never rule names of a grammar: an anchor lives only until sglite.constrained.regex has taken it off.
ANCHOR_START = Ref("^")
ANCHOR_END = Ref("$")

_CONTROL = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
_HEX_WIDTH = {"x": 2, "u": 4, "U": 8}
_INVISIBLE = {"b": "a word boundary", "B": "a word boundary", "G": "a match position", "K": "a match reset"}
_REFUSED_GROUPS = {
    "<=": "lookbehind",
    "<!": "lookbehind",
    "=": "lookahead",
    "!": "lookahead",
    ">": "an atomic group",
    "P=": "a backreference",
    "(": "a conditional group",
}
_QUANTIFIERS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


@dataclass(frozen=True)
class _Flags:
    ignore_case: bool = False
    dot_all: bool = False


class Reader:
    """Recursive descent over one pattern. One use."""

    def __init__(self, pattern: str, limits: Limits) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0
        self._limits = limits
        self._flags = _Flags()

    def read(self) -> Node:
        """The whole pattern. Raises ConstraintError or ConstraintRefused, with the position."""
        node = self._alternation()
        if self._at < len(self._text):
            self._broken("unmatched )")
        return node

    # structure

    def _alternation(self) -> Node:
        flags = self._flags
        branches = [self._branch()]
        while self._take("|"):
            branches.append(self._branch())
        self._flags = flags
        return alt(branches)

    def _branch(self) -> Node:
        items: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            items.append(self._quantified())
        return seq(*items)

    def _quantified(self) -> Node:
        start = self._at
        node = self._atom()
        bounds = self._quantifier()
        if bounds is None:
            return node
        if node in (ANCHOR_START, ANCHOR_END):
            self._refuse("a repeated anchor", start)
        if self._peek() == "+":
            self._refuse("a possessive quantifier", self._at)
        self._take("?")
        if self._peek() in ("*", "+", "?") or self._counts(self._at) is not None:
            self._broken("a quantifier follows a quantifier")
        return repeat(node, *bounds)

    def _quantifier(self) -> tuple[int, int | None] | None:
        if (char := self._peek()) in _QUANTIFIERS:
            self._at += 1
            return _QUANTIFIERS[char]
        counts = self._counts(self._at)
        if counts is None:
            return None
        low, high, self._at = counts
        if high is not None and high < low:
            self._broken(f"the range {{{low},{high}}} is the wrong way round")
        if max(low, high or 0) > self._limits.max_repeat:
            self._refuse(f"a repetition of {max(low, high or 0)}, more than {self._limits.max_repeat},", self._at)
        return low, high

    def _counts(self, at: int) -> tuple[int, int | None, int] | None:
        """`{m}`, `{m,}`, `{m,n}`, `{,n}` at a position: (low, high, end), or None when it is not a quantifier."""
        end = self._text.find("}", at)
        if not self._text.startswith("{", at) or end < 0 or end - at > 40:
            return None
        low, comma, high = self._text[at + 1 : end].partition(",")
        if not all(part == "" or (part.isascii() and part.isdigit()) for part in (low, high)):
            return None
        if low == "" and high == "":
            return None
        least = int(low or 0)
        return least, (int(high) if high else None) if comma else least, end + 1

    def _atom(self) -> Node:
        start, char = self._at, self._text[self._at]
        self._at += 1
        if char == "(":
            return self._group(start)
        if char == "[":
            return self._class(start)
        if char == ".":
            return Chars(charset.EVERY if self._flags.dot_all else charset.complement(charset.LINE_ENDS))
        if char in "^$":
            return ANCHOR_START if char == "^" else ANCHOR_END
        if char == "\\":
            return self._escape(start)
        if char in "*+?":
            self._at = start
            self._broken("nothing to repeat")
        return self._literal(char, start)

    # groups

    def _group(self, start: int) -> Node:
        self._depth += 1
        if self._depth > self._limits.max_depth:
            self._refuse(f"nesting deeper than {self._limits.max_depth}", start)
        flags = self._flags
        if self._take("?") and self._group_head(start):
            self._depth -= 1
            return EMPTY
        node = self._alternation()
        self._flags = flags
        if not self._take(")"):
            self._broken("missing )", start)
        self._depth -= 1
        return node

    def _group_head(self, start: int) -> bool:
        """Read what follows `(?`. True when the group was flags alone and is closed."""
        for head, what in _REFUSED_GROUPS.items():
            if self._text.startswith(head, self._at):
                self._refuse(what, start)
        if self._take("#"):
            self._at = self._find(")", start) + 1
            return True
        if self._take("P<") or self._take("<"):
            end = self._find(">", start)
            if not self._text[self._at : end].isidentifier():
                self._broken(f"bad group name {self._text[self._at : end]!r:.40}", start)
            self._at = end + 1
            return False
        return self._inline_flags(start)

    def _inline_flags(self, start: int) -> bool:
        flags, on = self._flags, True
        while (char := self._peek()) not in (":", ")"):
            if char == "":
                self._broken("missing )", start)
            self._at += 1
            if char == "-":
                on = False
            elif char == "i":
                flags = replace(flags, ignore_case=on)
            elif char == "s":
                flags = replace(flags, dot_all=on)
            elif char not in ("a", "u"):  # ASCII or Unicode classes: what is generated is right under both
                self._refuse(f"the flag {char!r}", start)
        self._at += 1
        if self._text[self._at - 1] == ")" and start != 0:
            self._refuse("flags that are not at the start of the pattern", start)
        self._flags = flags
        return self._text[self._at - 1] == ")"

    # characters

    def _escape(self, start: int) -> Node:
        char = self._peek()
        if char in _INVISIBLE and char:
            self._refuse(_INVISIBLE[char], start)
        if char and (char in "123456789" or char == "k"):
            self._refuse("a backreference", start)
        if char and char in "AZz":
            self._at += 1
            return ANCHOR_START if char == "A" else ANCHOR_END
        members = self._escaped(start)
        return Chars(members.inner) if isinstance(members, _Members) else self._literal(members, start)

    def _escaped(self, start: int) -> _Members | str:
        """After a backslash, in a class or out: a set of characters or one character."""
        char = self._peek()
        self._at += 1
        if char == "":
            self._broken("the pattern ends in a backslash", start)
        if char in "dDwWsS":
            return _members(char)
        if char in _HEX_WIDTH:
            return self._hex(char, start)
        if char == "0" and not self._peek().isdigit():
            return "\0"
        if char == "c" and self._peek().isascii() and self._peek().isalpha():
            self._at += 1
            return chr(ord(self._text[self._at - 1]) % 32)
        if char in "pPX":
            self._refuse("a Unicode property", start)
        if char in _CONTROL:
            return _CONTROL[char]
        if char.isascii() and char.isalnum():
            self._broken(f"unknown escape \\{char}", start)
        return char

    def _hex(self, kind: str, start: int) -> str:
        if kind == "u" and self._take("{"):
            end = self._find("}", start)
            digits, self._at = self._text[self._at : end], end + 1
        else:
            width = _HEX_WIDTH[kind]
            digits, self._at = self._text[self._at : self._at + width], self._at + width
            if len(digits) != width:
                self._broken("a hexadecimal escape is cut short", start)
        if not digits or len(digits) > 8 or not all(d in "0123456789abcdefABCDEF" for d in digits):
            self._broken(f"{digits!r} is not a hexadecimal number", start)
        code = int(digits, 16)
        low = self._low_surrogate() if kind == "u" and 0xD800 <= code <= 0xDBFF else None
        if low is not None:
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        if not charset.contains(charset.EVERY, code):
            self._refuse(f"U+{code:04X}, which is no character,", start)
        return chr(code)

    def _low_surrogate(self) -> int | None:
        """The second half of a character that ECMA-262 without the u flag spells as two escapes."""
        digits = self._text[self._at + 2 : self._at + 6]
        if not self._text.startswith("\\u", self._at) or not all(d in "0123456789abcdefABCDEF" for d in digits):
            return None
        if len(digits) != 4 or not 0xDC00 <= int(digits, 16) <= 0xDFFF:
            return None
        self._at += 6
        return int(digits, 16)

    def _class(self, start: int) -> Node:
        negated = self._take("^")
        if self._peek() == "]":
            # ECMA-262 closes an empty class here, Python takes a literal ]: no reading is right in both
            self._refuse("a class that begins with ]; write \\] instead; it", start)
        plain: list[Ranges] = []
        escaped: list[Ranges] = []
        while not self._take("]"):
            if self._peek() == "":
                self._broken("missing ]", start)
            if self._text.startswith("[:", self._at):
                self._refuse("a POSIX class name", self._at)
            item = self._class_item(start)
            if isinstance(item, _Members):
                escaped.append(item.outer if negated else item.inner)
            else:
                plain.append(item)
        members = charset.union(self._any_case(charset.union(*plain), narrow=not negated), *escaped)
        return Chars(charset.complement(members) if negated else members)

    def _class_item(self, start: int) -> _Members | Ranges:
        low = self._class_char(start)
        if self._peek() != "-" or self._text[self._at + 1 : self._at + 2] in ("]", ""):
            return low if isinstance(low, _Members) else charset.of(low)
        self._at += 1
        high = self._class_char(start)
        if isinstance(low, _Members) or isinstance(high, _Members):
            self._broken("a class escape cannot bound a range", start)
        if high < low:
            self._broken(f"the range {low}-{high} is the wrong way round", start)
        return charset.make([(ord(low), ord(high))])

    def _class_char(self, start: int) -> _Members | str:
        char = self._peek()
        self._at += 1
        if char != "\\":
            self._check_scalar(char, start)
            return char
        if self._peek() == "b":
            self._at += 1
            return "\b"
        return self._escaped(start)

    def _literal(self, char: str, start: int) -> Node:
        self._check_scalar(char, start)
        members = self._any_case(charset.of(char), narrow=True)
        return Text(char) if charset.size(members) == 1 else Chars(members)

    def _any_case(self, ranges: Ranges, *, narrow: bool) -> Ranges:
        if not self._flags.ignore_case:
            return ranges
        return charset.ascii_case_variants(ranges) if narrow else charset.all_case_variants(ranges)

    # the text

    def _check_scalar(self, char: str, start: int) -> None:
        if 0xD800 <= ord(char) <= 0xDFFF:
            self._refuse("half a surrogate pair", start)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _find(self, text: str, start: int) -> int:
        end = self._text.find(text, self._at)
        if end < 0:
            self._broken(f"missing {text}", start)
        return end

    def _broken(self, what: str, at: int | None = None) -> NoReturn:
        at = self._at if at is None else at
        raise ConstraintError(f"regex {self._text!r:.80}: {what} at position {at}")

    def _refuse(self, what: str, at: int) -> NoReturn:
        raise ConstraintRefused(
            f"regex {self._text!r:.80}: {what} at position {at} is not enforced; rewrite the pattern without it",
            keyword="regex",
        )


@dataclass(frozen=True)
class _Members:
    """Characters that are in a class under every dialect (inner), and under any (outer)."""

    inner: Ranges
    outer: Ranges


def _members(kind: str) -> _Members:
    if kind.islower():
        inner = {"d": charset.ASCII_DIGIT, "w": charset.ASCII_WORD, "s": charset.ASCII_SPACE}[kind]
        outer = {"d": charset.unicode_digit, "w": charset.unicode_word, "s": charset.unicode_space}[kind]()
        return _Members(inner, outer)
    base = _members(kind.lower())
    return _Members(charset.complement(base.outer), charset.complement(base.inner))
