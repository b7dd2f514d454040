"""Free text that ends where something begins: the regular half of structural tags.

A special token is no text: it stands for itself, and free text cannot hold it. Where a tokenizer has one for a text
that a tag is made of, the tag may be written with the token or with the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sglite.constrained import charset
from sglite.constrained.grammar import And, Chars, Node, Not, Repeat, Special, Text, alt, repeat, seq

ANY = Repeat(Chars(charset.EVERY), 0, None)
_SOME = Repeat(Chars(charset.EVERY), 1, None)


def without(parts: Sequence[str]) -> Node:
    """Every text in which none of the parts occurs."""
    return Not(seq(ANY, _one_of(parts), ANY)) if parts else ANY


def up_to_first(ends: Sequence[str], chosen: Sequence[str], parts: Sequence[str]) -> Node:
    """The texts that end with the first of `ends` in them, one of `chosen`, with none of `parts` in them."""
    first = Not(seq(ANY, _one_of(ends), _SOME))
    return And((seq(ANY, _one_of(chosen)), first, *((without(parts),) if parts else ())))


def _one_of(texts: Iterable[str]) -> Node:
    return alt(Text(text) for text in texts)


class Speller:
    """Writes texts with the special tokens that a tokenizer has for parts of them."""

    def __init__(self, specials: Mapping[str, int]) -> None:
        self._specials = {text: id_ for text, id_ in specials.items() if text}

    def id_of(self, text: str) -> int | None:
        """The special token of exactly this text."""
        return self._specials.get(text)

    def known(self, id_: int) -> bool:
        """Whether the id is of a special token."""
        return id_ in self._specials.values()

    def spelled(self, text: str) -> Node:
        """The text, each special part of it as its token or as it is written."""
        parts = self._first(text)
        if parts is None:
            return Text(text)
        before, special, after = parts
        token = Special((self._specials[special],))
        return seq(Text(before), alt([Text(special), token]), self.spelled(after))

    def after_text(self, text: str, free: Sequence[str], before: str = "", value: Node = ANY) -> Node | None:
        """A text of `value` without `free`, `before`, then the text, at least one special part of it as a token.

        None when it has no special part, or when what stands before that is barred itself.
        """
        parts = self._first(text)
        if parts is None or any(part in before + parts[0] for part in free):
            return None
        head, special, rest = before + parts[0], parts[1], parts[2]
        start = And((without(free), seq(value, Text(head)))) if head or value != ANY else without(free)
        found = seq(start, Special((self._specials[special],)), self.spelled(rest))
        later = self.after_text(rest, free, head + special, value)
        return found if later is None else alt([found, later])

    def _first(self, text: str) -> tuple[str, str, str] | None:
        """What stands before the first special part, the longest that begins there, and what follows."""
        for at in range(len(text)):
            found = max((part for part in self._specials if text.startswith(part, at)), key=len, default=None)
            if found is not None:
                return text[:at], found, text[at + len(found) :]
        return None


def joined(items: Sequence[Node], separator: Node) -> Node:
    """Any number of the items, at least one, with the separator in between."""
    one = alt(items)
    return seq(one, repeat(seq(separator, one), 0, None))
