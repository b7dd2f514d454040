"""Text as tokens, as well as somebody can tell: by a tokenizer, by a count, or by guessing.

Text that nobody knows yet (an argument, an output before the run) is a *gap*: a mark in the text, found again when the
text is encoded.
"""

from __future__ import annotations

import inspect
import re
import secrets
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Basis = Literal["counted", "measured", "estimated"]
_WORDS = re.compile(r"\s?\w{1,6}|\s?[^\w\s]{1,3}|\s+")
_NAMES = 4


class Tokens(int):
    """A number of tokens, beside text of which nobody knows how long it will be: ``1,480 + q + 2 more``.

    ``unknown``: how many such texts; ``names``: what the first of them are called.
    """

    unknown: int
    names: tuple[str, ...]

    def __new__(cls, known: int, unknown: int = 0, names: Sequence[str] = ()) -> Tokens:
        made = super().__new__(cls, known)
        made.unknown = unknown
        made.names = tuple(dict.fromkeys(names))[:_NAMES]
        return made

    def plus(self, other: Tokens) -> Tokens:
        """The sum, of what is unknown as well."""
        return Tokens(int(self) + int(other), self.unknown + other.unknown, (*self.names, *other.names))

    def __str__(self) -> str:
        rest = self.unknown - len(self.names)
        more = [] if rest <= 0 else [f"{rest} more"]
        return " + ".join([f"{int(self):,}", *self.names, *more])

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else str(self)


@dataclass(frozen=True)
class Gap:
    """Text that is not known. Equal keys stand for equal text; ``length``: how many tokens it is taken to have."""

    name: str
    key: Hashable
    length: int | None = None


class Encoder:
    """Turns text with gaps into tokens. ``basis``: whether that is exact."""

    def __init__(self, encode: Callable[..., Sequence[int]] | None, count: Callable[[str], int] | None) -> None:
        self.basis: Basis = "estimated" if encode is None and count is None else "counted"
        self.has_ids = encode is not None
        self._encode = encode
        self._count = count
        self._takes_bos = encode is not None and _takes_bos(encode)
        self._key = secrets.token_hex(8)
        self._gaps: list[Gap] = []
        self._mark = re.compile(f"\uf8f4{self._key}:(\\d+)\uf8f5")
        self._tokens = lru_cache(maxsize=4096)(self._encoded)

    def mark(self, gap: Gap) -> str:
        """Text that stands for a gap."""
        self._gaps.append(gap)
        return f"\uf8f4{self._key}:{len(self._gaps) - 1}\uf8f5"

    def parts(self, text: str) -> Iterator[str | Gap]:
        """``text`` between its gaps, and the gaps."""
        for index, piece in enumerate(self._mark.split(text)):
            if index % 2:
                yield self._gaps[int(piece)]
            elif piece:
                yield piece

    def known(self, text: str, *, first: bool) -> tuple[Hashable, ...]:
        """Tokens of text without gaps; ``first``: it begins a sequence."""
        return self._tokens(text, first)

    def _encoded(self, text: str, first: bool) -> tuple[Hashable, ...]:
        if self._encode is not None:
            return tuple(self._encode(text, add_bos=first) if self._takes_bos else self._encode(text))
        if self._count is None:
            return tuple(_WORDS.findall(text))
        return _counted(text, self._count)


def _counted(text: str, count: Callable[[str], int]) -> tuple[Hashable, ...]:
    """As many tokens as ``count`` says, made of words so that texts which begin alike have tokens in common."""
    total = count(text)
    tokens: list[Hashable] = []
    for word in _WORDS.findall(text):
        tokens += [(word, i) for i in range(max(1, count(word)))]
    return (*tokens[:total], *(("", i) for i in range(total - len(tokens))))


def _takes_bos(encode: Callable[..., Sequence[int]]) -> bool:
    try:
        return "add_bos" in inspect.signature(encode).parameters
    except (TypeError, ValueError):
        return False
