"""Resampling: which texts of a value turned out wrong, and must not be written again.

A value that is checked when it ends (a repeated item, a guarded value) can come to a place where nothing may follow.
Its tokens are then taken back, and its text is ruled out: not its tokens, since other tokens spell the same text. A
text after which everything is ruled out is ruled out itself, so greedy decoding moves to the next best text at the
last place where there was a choice, and sampling draws again.

Promises. A text that was not found wrong is never ruled out. There are at most `PER_VALUE` attempts at one value and
`PER_REQUEST` in all; the end is an error, never a wrong value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sglite.constrained import bitmask
from sglite.constrained.jump_forward import StableTokens

if TYPE_CHECKING:
    from sglite.constrained.matcher import RawMatcher

PER_VALUE = 16
PER_REQUEST = 64


class Ruled:
    """The texts ruled out for the value that began with token `base` of the text."""

    def __init__(self, tokens: StableTokens) -> None:
        self._tokens = tokens
        self._texts: set[bytes] = set()  # each begins with the bytes of token `base`
        self.base = 0
        self._tried = 0  # attempts at this value
        self._total = 0

    def __bool__(self) -> bool:
        return bool(self._texts)

    def copy(self) -> Ruled:
        other = Ruled(self._tokens)
        other._texts, other.base = set(self._texts), self.base
        other._tried, other._total = self._tried, self._total
        return other

    def forget(self, num_tokens: int) -> None:
        """The text was rolled back to `num_tokens` tokens: a value that began after them is another one now."""
        if num_tokens < self.base:
            self._texts.clear()

    def closed(self, ids: Sequence[int], forced: bytes) -> bool:
        """Whether the text of `ids`, or every text that goes on with `forced`, is ruled out."""
        return bool(self._texts) and self._closed(self._since(ids), forced)

    def narrow(self, ids: Sequence[int], mask: bitmask.Mask) -> None:
        """Forbid the tokens that would make the text of `ids` one that is ruled out, or begins with one that is."""
        if self._texts:
            self._narrow(self._since(ids), mask)

    def retreat(self, raw: RawMatcher, ids: Sequence[int]) -> int:
        """Rule out the value in progress, nothing being able to follow it; the state of `raw` is unchanged.

        Returns how many tokens have to be taken back, 0 when there is nothing else to try.
        """
        base = len(ids) - raw.held()
        if base != self.base or not self._texts:
            self.base, self._tried = base, 0
            self._texts.clear()
        if base == len(ids) or self._tried >= PER_VALUE or self._total >= PER_REQUEST:
            return 0
        self._tried += 1
        self._total += 1
        wrong = self._since(ids)
        self._texts.add(wrong)
        probe, path = self._retrace(raw, ids)
        while path:
            probe.rollback(1)
            text = wrong[: len(wrong) - len(path.pop())]
            if self._open(probe, text):
                return len(ids) - base
            self._texts.discard(wrong)  # nothing after a text that is ruled out need be remembered
            self._texts.add(text)
            wrong = text
        return 0

    def why(self) -> str:
        """Why there was no way back from here."""
        if self._tried >= PER_VALUE or self._total >= PER_REQUEST:
            return (
                f"constraint_unsatisfied: the value was wrong {self._tried} times ({self._total} in this text); "
                f"at most {PER_VALUE} attempts a value and {PER_REQUEST} a text"
            )
        return "constraint_unsatisfied: every text that the value could be from here is wrong"

    def _retrace(self, raw: RawMatcher, ids: Sequence[int]) -> tuple[RawMatcher, list[bytes]]:
        """A copy of `raw` that came from the beginning of the value in steps as small as they can be; and the steps."""
        probe, content = raw.fork(), self._tokens.vocab.content
        probe.rollback(len(ids) - self.base)
        pieces = [content(i) or b"" for i in ids[self.base :]]
        letters = [bytes([byte]) for byte in b"".join(pieces)]
        for taken, letter in enumerate(letters):
            if not all(pieces) or not any(map(probe.accept, self._tokens.ids_of(letter))):
                probe.rollback(taken)
                break
        else:
            return probe, letters
        return raw.fork(), pieces

    def _open(self, raw: RawMatcher, text: bytes) -> bool:
        """Whether something may follow `text`, after which `raw` is."""
        if self._closed(text, raw.forced_text().text):
            return False
        mask = np.empty(self._tokens.vocab.words, dtype=np.int32)
        raw.fill(mask)
        self._narrow(text, mask)
        return bool(mask.any())

    def _closed(self, text: bytes, forced: bytes) -> bool:
        return any(forced.startswith(rest) for rest in self._rests(text))

    def _narrow(self, text: bytes, mask: bitmask.Mask) -> None:
        for rest in self._rests(text):
            bitmask.forbid(mask, self._tokens.ids_from(rest))

    def _rests(self, text: bytes) -> list[bytes]:
        return [wrong[len(text) :] for wrong in self._texts if wrong.startswith(text)]

    def _since(self, ids: Sequence[int]) -> bytes:
        return b"".join([self._tokens.vocab.content(i) or b"" for i in ids[self.base :]])
