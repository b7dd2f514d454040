"""How JSON is laid out: which white space may stand where.

"fixed" is one line with ", " and ": ", as `json.dumps` writes it; "compact" has none; "flexible" lets the model lay
out the text as it likes, at most `MAX_SPACE` characters at a time, so that it cannot loop in white space.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglite.constrained.charset import of
from sglite.constrained.grammar import EMPTY, Chars, Node, Text, repeat, seq
from sglite.constrained.spec import Whitespace

MAX_SPACE = 24


@dataclass(frozen=True)
class Layout:
    """`space` goes inside brackets; `comma` and `colon` bring their own."""

    space: Node
    comma: Node
    colon: Node

    @classmethod
    def of(cls, whitespace: Whitespace) -> Layout:
        if whitespace == "compact":
            return cls(EMPTY, Text(","), Text(":"))
        if whitespace == "fixed":
            return cls(EMPTY, Text(", "), Text(": "))
        space = repeat(Chars(of(" \t\r\n")), 0, MAX_SPACE)
        return cls(space, seq(Text(","), space), seq(Text(":"), space))
