"""One stream and one request of a replayed program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglite.lang.explain_positions import ROOT
from sglite.lang.explain_tokens import Tokens
from sglite.lang.transcript import Transcript


@dataclass
class Call:
    """One request. ``found``: the position up to which its prompt was known; ``first``: nobody else brought it."""

    node: int
    kind: str
    prompt: Tokens
    end: int
    found: int
    cached: int
    completion: Tokens
    forced: int = 0

    @property
    def computed(self) -> int:
        """Prompt tokens that nobody before it had computed, in the order of the graph."""
        return int(self.prompt) - self.cached


@dataclass
class Track:
    """A stream: what is committed, and the text behind it. ``carried``: up to where requests of its line have brought
    it; ``computed``: up to where it knows itself computed."""

    script: Transcript
    at: int = ROOT
    fresh: bool = True
    pending: str = ""
    carried: int = ROOT
    computed: int = ROOT
    gaps: int = 0
    names: tuple[str, ...] = ()
    inherited: int = 0
    places: dict[int, tuple[tuple[Any, ...], Transcript]] = field(default_factory=dict)
    dead: bool = False

    def mark(self) -> tuple[Any, ...]:
        """This place."""
        return self.at, self.fresh, self.pending, self.carried, self.computed, self.gaps, self.names

    def rewind(self, mark: tuple[Any, ...]) -> None:
        """Back to a place; what was computed since stays known."""
        self.at, self.fresh, self.pending, self.carried, self.computed, self.gaps, self.names = mark

    def write(self, text: str) -> None:
        """Text follows."""
        self.pending += text


def number_of(meta: Mapping[str, Any], name: str) -> int:
    """A counter of ``meta``; 0 where it is not reported."""
    value = meta.get(name)
    return int(value) if isinstance(value, (int, float)) else 0


def first_names(names: Sequence[str]) -> tuple[str, ...]:
    """The first of ``names``, each once: enough to say what is unknown."""
    return tuple(dict.fromkeys(names))[:8]
