"""The reader behind `sglite.constrained.lark`: text in Lark's notation to definitions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from sglite.constrained import charset
from sglite.constrained.budget import Budget
from sglite.constrained.grammar import Chars, Node, Text
from sglite.constrained.lark_common import COMMON
from sglite.constrained.limits import Limits
from sglite.constrained.regex import terminal_expr
from sglite.constrained.source import Source
from sglite.constrained.spec import ConstraintError, ConstraintRefused

_RULE = r"_?[a-z][a-z0-9_]*"
_TERMINAL = r"_?[A-Z][A-Z0-9_]*"
_NAME = re.compile(rf"{_RULE}|{_TERMINAL}")
_HEAD = re.compile(rf"(?P<marks>[?!]{{0,2}})(?P<name>{_RULE}|{_TERMINAL})")
_PRIORITY = re.compile(r"\.[ \t]*[+-]?\d{1,9}")
_STRING = re.compile(r'"((?:\\.|[^"\\\n])*)"(i?)')
_DIRECTIVE = re.compile(r"%(\w+)[ \t]*")
_COMMON = re.compile(r"common[ \t]*(\.?)[ \t]*")
_PATTERN = re.compile(r"/(?!/)((?:\\.|[^/\\\n])*)/([imslux]*)")
_COUNTS = re.compile(r"~[ \t]*(\d{1,9})(?:[ \t]*\.\.[ \t]*(\d{1,9}))?")
_ALIAS = re.compile(rf"->[ \t]*(?:{_RULE})")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.S)
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}
_OPERATORS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_BEGINS = re.compile(
    rf"(?:\s|//[^\n]*|#[^\n]*)*(?:%(?:import|ignore|declare|override|extend)\b|"
    rf"{_HEAD.pattern}\s*(?:\{{[^}}\n]*\}}\s*)?"
    rf"(?:{_PRIORITY.pattern}\s*)?:(?!:=))"
)
_META = re.compile(r"[\\.^$*+?{}\[\]()|]")


def is_lark(text: str) -> bool:
    """Whether a grammar begins as one in Lark's notation does, and not as one in GBNF notation (`name ::=`)."""
    return _BEGINS.match(text) is not None


@dataclass(frozen=True, slots=True)
class Terminal:
    """A terminal without a name."""

    node: Node


@dataclass(frozen=True, slots=True)
class Name:
    """A rule, a terminal, or a parameter of the template that this is part of; or a template with its arguments."""

    name: str
    at: int
    arguments: tuple[Tree, ...] = ()


@dataclass(frozen=True, slots=True)
class Cat:
    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Or:
    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Many:
    item: Tree
    low: int
    high: int | None


Tree: TypeAlias = Terminal | Name | Cat | Or | Many


@dataclass(frozen=True, slots=True)
class Definition:
    tree: Tree
    at: int
    parameters: tuple[str, ...] = ()


class Reader(Source):
    """The text as definitions, and what is ignored."""

    keyword = "lark"
    space = re.compile(r"(?:[ \t\f]|\\[ ]*\r?\n)*(?://[^\n]*|#[^\n]*)?")

    def __init__(self, text: str, limits: Limits, budget: Budget | None) -> None:
        super().__init__(text, limits)
        self._budget = budget
        self.definitions: dict[str, Definition] = {}
        self.ignored: list[Tree] = []

    def read(self) -> None:
        """Everything."""
        self._lines()
        while self._at < len(self._text):
            if self._text.startswith("%", self._at):
                self._directive()
            else:
                self._definition()
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                self.broken(f"unexpected {self._text[self._at]!r}")
            self._lines()

    # definitions

    def _definition(self) -> None:
        start = self._at
        found = _HEAD.match(self._text, start)
        if found is None:
            self.broken("expected 'name:' or a directive")
        name = found["name"]
        self._at = found.end()
        self._space()
        parameters = self._parameters() if self._take("{") else ()
        if (priority := _PRIORITY.match(self._text, self._at)) is not None:
            self._at = priority.end()
            self._space()
        if not self._take(":"):
            self.broken(f"expected ':' after {name!r}")
        if (found["marks"] or parameters) and name.lstrip("_")[0].isupper():
            self.broken(f"the terminal {name!r} can have neither ?, ! nor parameters", start)
        self._define(name, self._expansions(lines=True), start, parameters)

    def _define(self, name: str, tree: Tree, at: int, parameters: tuple[str, ...] = ()) -> None:
        if name in self.definitions:
            self.broken(f"{name!r} is defined twice", at)
        self.definitions[name] = Definition(tree, at, parameters)

    def _parameters(self) -> tuple[str, ...]:
        names = [self._name()]
        while self._take(","):
            names.append(self._name())
        if not self._take("}") or len(set(names)) != len(names):
            self.broken("parameters are different names with commas between them, in braces")
        return tuple(names)

    def _name(self) -> str:
        found = _NAME.match(self._text, self._at)
        if found is None:
            self.broken("expected a name")
        self._at = found.end()
        self._space()
        return found[0]

    # directives

    def _directive(self) -> None:
        start = self._at
        found = _DIRECTIVE.match(self._text, start)
        kind = found[1] if found else ""
        self._at = found.end() if found else start
        if kind == "ignore":
            self.ignored.append(self._expansions(lines=True))
        elif kind == "import":
            self._import(start)
        elif kind in ("declare", "override", "extend"):
            self.refuse(f"%{kind}", start)
        else:
            self.broken("a directive is %ignore or %import", start)

    def _import(self, start: int) -> None:
        found = _COMMON.match(self._text, self._at)
        if found is None:
            self.refuse("an import from elsewhere than common", start)
        self._at = found.end()
        if found[1]:
            name = self._name()
            renamed = self._name() if self._take("->") else name
            self._imported(name, renamed, start)
            return
        if not self._take("("):
            self.broken("expected 'common.NAME' or 'common (NAME, ...)'")
        while True:
            name = self._name()
            self._imported(name, name, start)
            if not self._take(","):
                break
        if not self._take(")"):
            self.broken("missing )", start)

    def _imported(self, name: str, renamed: str, start: int) -> None:
        if name not in COMMON:
            self.refuse(f"the import of {name!r:.60}, which is not one of {', '.join(sorted(COMMON))},", start)
        self._define(renamed, Terminal(terminal_expr(COMMON[name], self._limits)), start)

    # expansions

    def _expansions(self, *, lines: bool = False) -> Tree:
        """``lines``: a new line ends it, unless it begins with `|`."""
        branches = [self._expansion(lines)]
        while self._goes_on(lines):
            branches.append(self._expansion(lines))
        return branches[0] if len(branches) == 1 else Or(tuple(branches))

    def _goes_on(self, lines: bool) -> bool:
        """Whether another branch follows; goes there."""
        start = self._at
        self._lines()
        if self._take("|"):
            return True
        if lines:
            self._at = start
        return False

    def _expansion(self, lines: bool) -> Tree:
        items: list[Tree] = []
        while True:
            if not lines:
                self._lines()
            self._space()
            if (alias := _ALIAS.match(self._text, self._at)) is not None:
                self._at = alias.end()
                self._space()
                break
            if self._text[self._at : self._at + 1] in ("", "|", ")", "]", "\r", "\n"):
                break
            items.append(self._repeated())
        return items[0] if len(items) == 1 else Cat(tuple(items))

    def _repeated(self) -> Tree:
        item = self._atom()
        char = self._text[self._at : self._at + 1]
        if char in _OPERATORS and char:
            self._at += 1
            bounds = _OPERATORS[char]
        elif (found := _COUNTS.match(self._text, self._at)) is not None:
            low, high = int(found[1]), int(found[2] or found[1])
            self._check_counts(low, high, found[0])
            self._at = found.end()
            bounds = low, high
        else:
            return item
        self._space()
        if self._text[self._at : self._at + 1] in ("*", "+", "~"):
            self.broken("a quantifier follows a quantifier; put the first in parentheses")
        return Many(item, *bounds)

    def _atom(self) -> Tree:
        start, char = self._at, self._text[self._at : self._at + 1]
        if not char:
            self.broken("expected a name, a string or a pattern")
        if char in "([":
            self._enter(start)
            self._at += 1
            tree = self._expansions()
            self._lines()
            self._space()
            if not self._take(")" if char == "(" else "]"):
                self.broken(f"missing {')' if char == '(' else ']'}", start)
            self._depth -= 1
            return tree if char == "(" else Many(tree, 0, 1)
        if char == '"':
            return Terminal(self._string())
        if char == "/":
            return Terminal(self._pattern())
        if _NAME.match(self._text, start) is None:
            self.broken(f"unexpected {char!r}")
        return self._used()

    def _used(self) -> Tree:
        start, name = self._at, self._name()
        if not self._take("{"):
            return Name(name, start)
        self._enter(start)
        arguments = [self._atom()]
        while self._take(","):
            arguments.append(self._atom())
        if not self._take("}"):
            self.broken("missing }", start)
        self._depth -= 1
        return Name(name, start, tuple(arguments))

    # terminals

    def _string(self) -> Node:
        """A string, or the range that begins with it."""
        start = self._at
        low, ignore_case = self._quoted()
        if not self._take(".."):
            return terminal_expr(f"(?i:{_META.sub(_quote, low)})", self._limits) if ignore_case else Text(low)
        if not self._text.startswith('"', self._at):
            self.broken("a range ends with a string")
        high, ignored = self._quoted()
        if len(low) != 1 or len(high) != 1 or ignore_case or ignored:
            self.broken("a range is one of single characters", start)
        if high < low:
            self.broken(f"the range {low}..{high} is the wrong way round", start)
        return Chars(charset.make([(ord(low), ord(high))]))

    def _quoted(self) -> tuple[str, str]:
        found = _STRING.match(self._text, self._at)
        if found is None:
            self.broken('missing ", or something behind it that is no flag')
        text = _ESCAPE.sub(self._character, found[1])
        if not text:
            self.broken("an empty string is no terminal; write [...] or ? around what may be left out")
        if any("\ud800" <= char <= "\udfff" for char in text):
            self.broken("half a surrogate pair is no character")
        self._at = found.end()
        self._space()
        return text, found[2]

    def _pattern(self) -> Node:
        start, found = self._at, _PATTERN.match(self._text, self._at)
        if found is None:
            self.broken("missing / at the end of a pattern")
        flags = "".join(sorted(set(found[2]) - {"u"}))
        if set(flags) & set("lx"):
            self.refuse(f"the flag {'l' if 'l' in flags else 'x'!r} of a pattern", start)
        written = _ESCAPE.sub(self._in_pattern, found[1])
        try:
            node = terminal_expr(f"(?{flags}:{written})" if flags else written, self._limits, budget=self._budget)
        except ConstraintError as error:
            raise ConstraintError(f"grammar, {self._place(start)}: {error}") from None
        except ConstraintRefused as error:
            raise ConstraintRefused(f"grammar, {self._place(start)}: {error.reason}", keyword=self.keyword) from None
        self._at = found.end()
        self._space()
        return node

    def _character(self, found: re.Match[str]) -> str:
        char = found[4]
        if char is None:
            return self._numbered(found)
        if char in "xuU":
            self.broken(f"\\{char} needs its hexadecimal digits")
        return _CONTROLS.get(char) or (char if char in '"\\' else found[0])

    def _in_pattern(self, found: re.Match[str]) -> str:
        """What is an escape of strings already is the character itself, as Lark has it."""
        char = found[4]
        if char is None:
            return self._numbered(found)
        return _CONTROLS.get(char) or ('"' if char == '"' else found[0])

    def _numbered(self, found: re.Match[str]) -> str:
        number = int(found[1] or found[2] or found[3], 16)
        if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
            self.broken(f"{found[0]} is no character")
        return chr(number)

    # spaces

    def _lines(self) -> None:
        """To the next thing, in whatever line it is."""
        while True:
            self._space()
            if self._text[self._at : self._at + 1] not in ("\r", "\n"):
                return
            self._at += 1


def _quote(found: re.Match[str]) -> str:
    return f"\\{found[0]}"
