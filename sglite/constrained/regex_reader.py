"""The reader behind `sglite.constrained.regex`: pattern text to a tree of `regex_tree`.

In the sense "inner" a class has the characters that both ECMA-262 and Python give it, in the sense "outer" those that
either does. Under a negation the two change places, so that a tree read as "inner" holds only texts that match in
both dialects, and one read as "outer" all that match in any.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from sglite.constrained import charset, regex_characters
from sglite.constrained.charset import Ranges
from sglite.constrained.grammar import EMPTY, Chars, Text
from sglite.constrained.limits import Limits
from sglite.constrained.regex_characters import Cursor
from sglite.constrained.regex_tree import Around, Atomic, Back, Group, Near, Side, Tree, cat, either, many

Sense = Literal["inner", "outer"]

_UNKNOWN = {"G": "a match position", "K": "a match reset", "X": "a grapheme cluster", "R": "a line end of any kind"}
_LOOKS = {"=": (True, False), "!": (True, True), "<=": (False, False), "<!": (False, True)}
_QUANTIFIERS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_REFERENCE = re.compile(r"\\[1-9k]|\(\?P=")
_NEWLINE: Ranges = ((0x0A, 0x0A),)
_MAX_LOOKS = 1024  # anchors, word boundaries and lookarounds
_MAX_TWICE = 64  # possessive and atomic parts, which are read in both senses


@dataclass(frozen=True)
class _Flags:
    ignore_case: bool = False
    dot_all: bool = False
    multi_line: bool = False


class Reader:
    """Recursive descent over one pattern. One use."""

    def __init__(self, pattern: str, limits: Limits, sense: Sense = "inner") -> None:
        self._cursor = Cursor(pattern)
        self._limits = limits
        self._outer = sense == "outer"
        self._flags = _Flags()
        self._flags_at = 0  # where a group of flags for the whole pattern may stand
        self._depth = 0
        self._groups = 0
        self._names: dict[str, int] = {}
        self._closed: set[int] = set()
        self._refers = _REFERENCE.search(pattern) is not None
        self._twice = 0
        self._looks = 0
        self._lazy = 0
        self._behind = 0  # lookbehinds open: matched backwards in some dialects, so order must not matter there

    def read(self) -> Tree:
        """The whole pattern. Raises ConstraintError or ConstraintRefused, with the position."""
        tree = self._alternation()
        if self._cursor.peek():
            self._cursor.broken("unmatched )")
        return tree

    def particular(self) -> str:
        """What in the pattern depends on the text beside a match, or on which match is taken, if anything does."""
        if self._looks:
            return "an anchor, a word boundary or lookaround in a part of a text"
        if self._lazy:
            return "a lazy quantifier in a part of a text"
        return "a possessive quantifier or an atomic group in a part of a text" if self._twice else ""

    # structure

    def _alternation(self) -> Tree:
        branches = [self._branch()]
        while self._cursor.take("|"):
            branches.append(self._branch())
        return either(branches)

    def _branch(self) -> Tree:
        items: list[Tree] = []
        while self._cursor.peek() not in ("", "|", ")"):
            items.append(self._quantified())
        return cat(items)

    def _quantified(self) -> Tree:
        cursor, start, groups = self._cursor, self._cursor.at, self._groups
        tree = self._atom()
        bounds = self._quantifier()
        if bounds is None:
            return tree
        possessive = cursor.take("+")
        if not possessive and cursor.take("?"):
            self._lazy += 1
        if cursor.peek() in ("*", "+", "?") or self._counts(cursor.at) is not None:
            cursor.broken("a quantifier follows a quantifier")
        if not possessive:
            return many(tree, *bounds)
        self._check_order("a possessive quantifier", start)
        return Atomic(many(tree, *bounds), many(self._other_sense(start, groups, self._atom), *bounds))

    def _other_sense(self, start: int, groups: int, read: Callable[[], Tree]) -> Tree:
        """What `read` makes of an earlier place in the opposite sense."""
        self._twice += 1
        if self._twice > _MAX_TWICE:
            self._cursor.refuse(f"more than {_MAX_TWICE} possessive quantifiers and atomic groups", start)
        end, counted = self._cursor.at, self._groups
        self._cursor.at, self._groups, self._outer = start, groups, not self._outer
        tree = read()
        self._cursor.at, self._groups, self._outer = end, counted, not self._outer
        return tree

    def _quantifier(self) -> tuple[int, int | None] | None:
        if (char := self._cursor.peek()) in _QUANTIFIERS:
            self._cursor.at += 1
            return _QUANTIFIERS[char]
        counts = self._counts(self._cursor.at)
        if counts is None:
            return None
        low, high, self._cursor.at = counts
        if high is not None and high < low:
            self._cursor.broken(f"the range {{{low},{high}}} is the wrong way round")
        largest = max(low, high or 0)
        if largest > self._limits.max_repeat:
            self._cursor.refuse(f"a repetition of {largest}, more than {self._limits.max_repeat},", self._cursor.at)
        return low, high

    def _counts(self, at: int) -> tuple[int, int | None, int] | None:
        """`{m}`, `{m,}`, `{m,n}`, `{,n}` at a position: (low, high, end), or None when it is not a quantifier."""
        text = self._cursor.text
        end = text.find("}", at, at + 42)
        if not text.startswith("{", at) or end < 0:
            return None
        low, comma, high = text[at + 1 : end].partition(",")
        if not all(part == "" or (part.isascii() and part.isdigit()) for part in (low, high)):
            return None
        if low == "" and high == "":
            return None
        least = int(low or 0)
        return least, (int(high) if high else None) if comma else least, end + 1

    def _atom(self) -> Tree:
        cursor, start = self._cursor, self._cursor.at
        char = cursor.next()
        if char == "(":
            return self._group(start)
        if char == "[":
            return regex_characters.read_class(cursor, start, self._outer, self._flags.ignore_case)
        if char == ".":
            # ECMA-262 leaves out four line ends, Python one
            without = _NEWLINE if self._outer else charset.LINE_ENDS
            return Chars(charset.EVERY if self._flags.dot_all else charset.complement(without))
        if char in "^$":
            self._count_look(start)
            return self._anchor(char)
        if char == "\\":
            return self._escape(start)
        if char in "*+?":
            cursor.broken("nothing to repeat", start)
        return regex_characters.literal(cursor, char, start, self._outer, self._flags.ignore_case)

    def _count_look(self, start: int) -> None:
        self._looks += 1
        if self._looks > _MAX_LOOKS:
            self._cursor.refuse(f"more than {_MAX_LOOKS} anchors, word boundaries and lookarounds", start)

    def _anchor(self, char: str) -> Tree:
        ahead = char == "$"
        if self._flags.multi_line:
            return Near(ahead, charset.LINE_ENDS if self._outer else _NEWLINE, True)
        end = Near(ahead, (), True)
        # Python's `$` also stands before a last line feed
        return either([end, Side(True, Text("\n"), 2)]) if ahead and self._outer else end

    def _escape(self, start: int) -> Tree:
        cursor, char = self._cursor, self._cursor.peek()
        if char in _UNKNOWN:
            cursor.refuse(_UNKNOWN[char], start)
        if cursor.take("b") or cursor.take("B"):
            self._count_look(start)
            return _boundary(char == "b", self._outer)
        if char and char in "AZz":
            cursor.next()
            return Near(char != "A", (), True)
        if char and char in "123456789":
            digits = ""
            while cursor.peek() and cursor.peek() in "0123456789" and len(digits) < 4:
                digits += cursor.next()
            return self._back(int(digits), start)
        if cursor.take("k"):
            if not cursor.take("<"):
                cursor.broken("\\k without a name in angle brackets", start)
            return self._back(self._names.get(self._name(start), 0), start)
        found = regex_characters.escaped(cursor, start)
        if not isinstance(found, str):
            return regex_characters.chars(found.sense(self._outer))
        return regex_characters.literal(cursor, found, start, self._outer, self._flags.ignore_case)

    # groups

    def _group(self, start: int) -> Tree:
        flags, outer = self._flags, self._outer
        self._depth += 1
        if self._depth > self._limits.max_depth:
            self._cursor.refuse(f"nesting deeper than {self._limits.max_depth}", start)
        if not self._cursor.take("?"):
            tree: Tree | None = self._captured(start)
        else:
            tree = self._special(start)
        self._depth -= 1
        if tree is None:  # flags, for all that follows
            return EMPTY
        self._flags, self._outer = flags, outer
        return tree

    def _captured(self, start: int, name: str | None = None) -> Tree:
        self._groups += 1
        index = self._groups
        if name is not None:
            self._names[name] = index
        tree = self._until_closed(start)
        self._closed.add(index)
        return Group(index, tree) if self._refers else tree

    def _until_closed(self, start: int) -> Tree:
        flags = self._flags
        tree = self._alternation()
        self._flags = flags
        if not self._cursor.take(")"):
            self._cursor.broken("missing )", start)
        return tree

    def _special(self, start: int) -> Tree | None:
        """What follows `(?`. None when it is flags alone."""
        cursor = self._cursor
        for head, (ahead, negative) in _LOOKS.items():
            if cursor.take(head):
                self._count_look(start)
                self._outer = self._outer != negative
                self._behind += not ahead
                tree = self._until_closed(start)
                self._behind -= not ahead
                return Around(ahead, negative, tree)
        if cursor.take(">"):
            inside, groups, lazy = cursor.at, self._groups, self._lazy
            self._check_order("an atomic group", start)
            tree = self._until_closed(start)
            if self._lazy > lazy:
                cursor.refuse("a lazy quantifier in an atomic group", start)
            return Atomic(tree, self._other_sense(inside, groups, self._alternation))
        if cursor.take("#"):
            cursor.until(")", start)
            return EMPTY
        if cursor.take("P="):
            return self._back(self._names.get(cursor.until(")", start), 0), start)
        if cursor.take("P<") or cursor.take("<"):
            return self._captured(start, self._name(start))
        if cursor.peek() == "(":
            cursor.refuse("a conditional group", start)
        return self._flagged(start)

    def _name(self, start: int) -> str:
        name = self._cursor.until(">", start)
        if not name.isidentifier():
            self._cursor.broken(f"bad group name {name!r:.40}", start)
        return name

    def _flagged(self, start: int) -> Tree | None:
        cursor, flags, on = self._cursor, self._flags, True
        names = {"i": "ignore_case", "s": "dot_all", "m": "multi_line"}
        while (char := cursor.next()) not in (":", ")"):
            if char == "":
                cursor.broken("missing )", start)
            if char == "-":
                on = False
            elif char in names:
                flags = replace(flags, **{names[char]: on})
            elif char not in ("a", "u"):  # ASCII or Unicode classes: what is generated is right under both
                cursor.refuse(f"the flag {char!r}", start)
        self._flags = flags
        if char == ":":
            return self._until_closed(start)
        if start != self._flags_at:
            cursor.refuse("flags that are not at the start of the pattern", start)
        self._flags_at = cursor.at
        return None

    def _check_order(self, what: str, start: int) -> None:
        if self._behind:
            self._cursor.refuse(f"{what} in lookbehind", start)

    def _back(self, index: int, start: int) -> Tree:
        if index not in self._closed:
            self._cursor.broken("a reference to a group that is not there, or not closed before,", start)
        self._check_order("a backreference", start)
        if self._flags.ignore_case:
            self._cursor.refuse("a backreference that ignores case", start)
        return Back(index)


def _boundary(positive: bool, outer: bool) -> Tree:
    """`\\b` or `\\B`: whether a word character and another one, or an end of the text, meet here.

    Dialects differ in what the letters outside ASCII are, so each side is surely a word character, surely none, or
    in between. An inner `\\b` needs two that are sure; an outer one is all that no dialect rules out.
    """
    sure, wide = charset.ASCII_WORD, charset.unicode_word()
    unsure, neither = charset.difference(wide, sure), charset.complement(wide)
    sides = (sure, unsure, neither)
    differ = {(0, 2), (2, 0)}  # in every dialect
    agree = {(0, 0), (1, 1), (2, 2)}
    wanted = differ if positive else agree
    if outer:
        wanted = {(i, j) for i in range(3) for j in range(3)} - (agree if positive else differ)
    found: list[Tree] = []
    for i, before in enumerate(sides):
        after = [j for j in range(3) if (i, j) in wanted]
        ahead = Near(True, charset.union(*(sides[j] for j in after)), 2 in after)
        found += [cat([Near(False, before, i == 2), ahead])] if after else []
    return either(found)
