"""A grammar in the notation of xgrammar: the GBNF of llama.cpp, with `max_chars`.

A JSON string is spelled out: characters as they are, `\\"`, `\\\\` and the short or `\\u00XX` escapes for control
characters. One that only its length limits may use every escape JSON has; under an upper limit an escape then counts
as the two characters it is written with, which leaves out some of the longest strings. What the notation cannot say
is refused.
"""

from __future__ import annotations

from sglite.constrained import charset
from sglite.constrained.charset import Ranges, size
from sglite.constrained.grammar import (
    Alt,
    Chars,
    Grammar,
    JsonString,
    Limited,
    Node,
    Ref,
    Repeat,
    Seq,
    Text,
    alt,
    optional,
    repeat,
    seq,
)
from sglite.constrained.spec import ConstraintRefused

# Copies of a character class up to which a counted one is written out: any class, and one of few characters, such as
# hexadecimal digits, that only a few tokens can follow.
_UNROLLED = 4
_UNROLLED_FEW = 64
_FEW = 22

_SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_PLAIN = charset.difference(charset.EVERY, charset.union(((0, 0x1F),), charset.of('"\\')))
_HEX = Chars(charset.of("0123456789abcdefABCDEF"))
_QUOTE = Text('"')
_ESCAPES_FROM = 16  # room for fewer characters is given to plain ones, to the last
_SHORT_ESCAPES = charset.of('"\\/bfnrt')
_FEATURES = {
    "And": "several conditions on one text",
    "Not": "a text that must not match",
    "Shuffle": "properties in any order",
    "Scope": "values or names that differ from each other",
    "Unique": "values or names that differ from each other",
    "Guard": "a check of a finished value",
    "Special": "a special token inside the text",
}


def to_ebnf(grammar: Grammar) -> str:
    """A normalised grammar as the engine reads it; rules are renamed. ConstraintRefused names what cannot be said."""
    return _Writer(grammar).write()


class _Writer:
    """Spells nodes the way the engine is fast at.

    It computes a mask in advance for every state that a rule unrolls to, each a walk over the whole vocabulary: a
    counted character class is therefore written as a star under a limit, not as its copies.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._names = {name: "root" if name == grammar.root else f"r{i}" for i, name in enumerate(grammar.rules)}
        self._limited: dict[Limited, str] = {}
        self._strings: dict[JsonString, str] = {}
        self._lines: list[str] = []

    def write(self) -> str:
        for name, node in self._grammar.rules.items():
            self._lines.append(f"{self._names[name]} ::= {self._node(node)}")
        return "\n".join(self._lines)

    def _node(self, node: Node) -> str:
        if isinstance(node, Text):
            return '"' + "".join(_escape(ord(c)) for c in node.text) + '"'
        if isinstance(node, Chars):
            return _write_class(node.ranges)
        if isinstance(node, Seq):
            return " ".join(self._node(item) for item in node.items)
        if isinstance(node, Alt):
            return "(" + " | ".join(self._node(item) for item in node.items) + ")"
        if isinstance(node, Ref):
            return self._names[node.name]
        if isinstance(node, Limited):
            return self._limit(node)
        if isinstance(node, JsonString):
            return self._string(node)
        if isinstance(node, Repeat):
            return self._repeat(node)
        raise _refused(node)

    def _repeat(self, node: Repeat) -> str:
        if (
            isinstance(node.item, Chars)
            and node.high is not None
            and self._costly(node.item.ranges, node.high - node.low)
        ):
            head = f"{self._node(node.item)}{{{node.low},{node.low}}} " if node.low else ""
            return head + self._limit(Limited(Repeat(node.item, 0, None), node.high - node.low))
        short = {(0, 1): "?", (0, None): "*", (1, None): "+"}
        high = "" if node.high is None else node.high
        return f"({self._node(node.item)}){short.get((node.low, node.high)) or f'{{{node.low},{high}}}'}"

    def _costly(self, ranges: Ranges, copies: int) -> bool:
        return copies > _UNROLLED and (size(ranges) > _FEW or copies > _UNROLLED_FEW)

    def _limit(self, node: Limited) -> str:
        if node not in self._limited:
            self._limited[node] = f"l{len(self._limited)}"
            self._lines.append(f"{self._limited[node]}[max_chars={node.most}] ::= {self._node(node.item)}")
        return self._limited[node]

    def _string(self, node: JsonString) -> str:
        if node not in self._strings:
            self._strings[node] = f"t{len(self._strings)}"
            self._lines.append(f"{self._strings[node]} ::= {self._node(_quoted(node.item))}")
        return self._strings[node]


def _refused(node: Node) -> ConstraintRefused:
    feature = _FEATURES[type(node).__name__]
    return ConstraintRefused(f"the xgrammar engine cannot enforce {feature}; use the native engine")


def _write_class(ranges: Ranges) -> str:
    parts = (_escape(low) if low == high else f"{_escape(low)}-{_escape(high)}" for low, high in ranges)
    return "[" + "".join(parts) + "]"


def _escape(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\U{code:08X}"


# JSON strings


def _quoted(characters: Node) -> Node:
    if isinstance(characters, Repeat) and characters.item == Chars(charset.EVERY):
        return _free_string(characters.low, characters.high)
    return seq(_QUOTE, _spelled(characters), _QUOTE)


def _free_string(low: int, high: int | None) -> Node:
    """Any JSON string of `low` to `high` characters; the first `low` of them stand as they are."""
    plain = repeat(Chars(_PLAIN), 0, None)
    first = repeat(Chars(_PLAIN), low, low)
    if high is None:
        rest = seq(plain, repeat(seq(_any_escape(), plain), 0, None))
    elif high - low <= _ESCAPES_FROM:
        rest = repeat(Chars(_PLAIN), 0, high - low)
    else:
        # An escape begun as the last character within a limit could not be finished: the limit is drawn two
        # characters early, and one escape may follow it.
        escape = seq(Text("\\"), Chars(_SHORT_ESCAPES))
        runs = seq(plain, repeat(seq(escape, plain), 0, None))
        rest = alt([Limited(plain, high - low), seq(Limited(runs, high - low - 2), optional(escape))])
    return seq(_QUOTE, first, rest, _QUOTE)


def _spelled(node: Node) -> Node:
    if isinstance(node, Text):
        return Text("".join(_spell(c) for c in node.text))
    if isinstance(node, Chars):
        escaped = [Text(_spell(chr(c))) for c in _escaped_codes() if charset.contains(node.ranges, c)]
        plain = charset.intersect(node.ranges, _PLAIN)
        return alt([*([Chars(plain)] if plain else []), *escaped])
    if isinstance(node, Seq):
        return seq(*(_spelled(item) for item in node.items))
    if isinstance(node, Alt):
        return alt(_spelled(item) for item in node.items)
    if isinstance(node, Repeat):
        return repeat(_spelled(node.item), node.low, node.high)
    raise _refused(node)


def _escaped_codes() -> list[int]:
    return [*range(0x20), ord('"'), ord("\\")]


def _spell(char: str) -> str:
    return _SHORT.get(char) or (f"\\u{ord(char):04x}" if char < " " else char)


def _any_escape() -> Node:
    """One character as an escape; half a surrogate pair is none."""
    hex_but_d = Chars(charset.of("0123456789abcefABCEF"))
    low_digit = Chars(charset.of("01234567"))
    scalar = alt([seq(hex_but_d, repeat(_HEX, 3, 3)), seq(Chars(charset.of("dD")), low_digit, repeat(_HEX, 2, 2))])
    high_half = seq(Chars(charset.of("dD")), Chars(charset.of("89abAB")), repeat(_HEX, 2, 2))
    low_half = seq(Chars(charset.of("dD")), Chars(charset.of("cdefCDEF")), repeat(_HEX, 2, 2))
    coded = seq(Text("u"), alt([scalar, seq(high_half, Text("\\u"), low_half)]))
    return seq(Text("\\"), alt([Chars(_SHORT_ESCAPES), coded]))
