"""Strings: the language of characters first, then its JSON spelling.

A string with a pattern, a format or a constant is spelled in one way: characters as they are, `\\"`, `\\\\` and the
short or `\\u00XX` escapes for control characters. A string that only its length limits may use every escape JSON
has; an escape, and a surrogate pair of two, is one character.
"""

from __future__ import annotations

from sglite.constrained import charset
from sglite.constrained.grammar import Alt, Chars, Limited, Node, Repeat, Seq, Text, alt, lengths, optional, repeat, seq

_SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_PLAIN = charset.difference(charset.EVERY, charset.union(((0, 0x1F),), charset.of('"\\')))
_HEX = Chars(charset.of("0123456789abcdefABCDEF"))
_QUOTE = Text('"')
_ESCAPES_FROM = 16  # room for fewer characters is given to plain ones, to the last
_SHORT_ESCAPES = charset.of('"\\/bfnrt')

FREE_TEXT = repeat(Chars(charset.EVERY), 0, None)


def quoted(characters: Node) -> Node:
    """The JSON string whose value is a text of `characters`."""
    return seq(_QUOTE, _spelled(characters), _QUOTE)


def constant(text: str) -> Node:
    """The JSON string of one value."""
    return quoted(Text(text))


def free_string(low: int, high: int | None) -> Node:
    """Any JSON string of `low` to `high` characters; the first `low` of them stand as they are.

    Under an upper limit a string without escapes may be as long as allowed; in one with escapes each counts as the two
    characters it is spelled with, and under a small limit there are none.
    """
    plain = repeat(Chars(_PLAIN), 0, None)
    first = repeat(Chars(_PLAIN), low, low)
    if high is None:
        rest = seq(plain, repeat(seq(_escape(), plain), 0, None))
    elif high - low <= _ESCAPES_FROM:
        rest = repeat(Chars(_PLAIN), 0, high - low)
    else:
        # An escape begun as the last character within a limit could not be finished: the limit is drawn two
        # characters early, and one escape may follow it.
        escape = seq(Text("\\"), Chars(_SHORT_ESCAPES))
        runs = seq(plain, repeat(seq(escape, plain), 0, None))
        rest = alt([Limited(plain, high - low), seq(Limited(runs, high - low - 2), optional(escape))])
    return seq(_QUOTE, first, rest, _QUOTE)


def plain_name(taken: list[str]) -> Node:
    """A property name other than those in `taken`, spelled without escapes."""
    return seq(_QUOTE, _other_than(taken), _QUOTE)


def limit_length(characters: Node, low: int, high: int | None) -> Node | None:
    """`characters` cut to texts of `low` to `high` characters, or None when that cannot be done exactly.

    It can when all texts already fit, or when just one part of a sequence varies and repeats single characters.
    """
    least, most = lengths(characters)
    if least >= low and (high is None or (most is not None and most <= high)):
        return characters
    if high is not None and least > high:
        return Alt(())
    items = characters.items if isinstance(characters, Seq) else (characters,)
    varying = [i for i, item in enumerate(items) if len(set(lengths(item))) > 1]
    if len(varying) != 1:
        return None
    part = items[varying[0]]
    if not isinstance(part, Repeat) or lengths(part.item) != (1, 1):
        return None
    fixed = least - part.low
    most_here = [n for n in (part.high, None if high is None else high - fixed) if n is not None]
    cut = repeat(part.item, max(part.low, low - fixed), min(most_here, default=None))
    return seq(*items[: varying[0]], cut, *items[varying[0] + 1 :])


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
    raise TypeError(f"the characters of a string hold no {type(node).__name__}")


def _escaped_codes() -> list[int]:
    return [*range(0x20), ord('"'), ord("\\")]


def _spell(char: str) -> str:
    return _SHORT.get(char) or (f"\\u{ord(char):04x}" if char < " " else char)


def _escape() -> Node:
    """One character as an escape; half a surrogate pair is none."""
    hex_but_d = Chars(charset.of("0123456789abcefABCEF"))
    low_digit = Chars(charset.of("01234567"))
    scalar = alt([seq(hex_but_d, repeat(_HEX, 3, 3)), seq(Chars(charset.of("dD")), low_digit, repeat(_HEX, 2, 2))])
    high_half = seq(Chars(charset.of("dD")), Chars(charset.of("89abAB")), repeat(_HEX, 2, 2))
    low_half = seq(Chars(charset.of("dD")), Chars(charset.of("cdefCDEF")), repeat(_HEX, 2, 2))
    coded = seq(Text("u"), alt([scalar, seq(high_half, Text("\\u"), low_half)]))
    return seq(Text("\\"), alt([Chars(_SHORT_ESCAPES), coded]))


def _other_than(taken: list[str]) -> Node:
    """Plain characters that spell none of `taken`: follow the names as a trie, and leave it somewhere."""
    if not taken:
        return repeat(Chars(_PLAIN), 0, None)
    following: dict[str, list[str]] = {}
    for name in taken:
        if name:
            following.setdefault(name[0], []).append(name[1:])
    elsewhere = charset.difference(_PLAIN, charset.of("".join(following)))
    parts = [seq(Chars(elsewhere), repeat(Chars(_PLAIN), 0, None))]
    parts += [
        seq(Text(char), _other_than(rests)) for char, rests in following.items() if char not in '"\\' and char >= " "
    ]
    return alt([*parts, *([] if "" in taken else [Text("")])])
