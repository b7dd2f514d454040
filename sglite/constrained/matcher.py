"""Matcher: the state of one request under its constraint. RawMatcher: what an engine gives, bytes and masks alone.

Promises, for every engine. The mask is right for the state after all tokens accepted so far: a token is allowed
exactly when `accept` would take it, and then the text can still become a member of the language (but for a value that
is checked when it ends, see `stuck`). End-of-sequence ids are allowed exactly when the text is a member. At a forced
position the mask allows the forced token alone, whether or not the caller asks `forced`. `rollback(n)` restores the
state bit for bit. A matcher belongs to one request and is not shared between threads. After end of sequence the mask
allows the end-of-sequence ids alone, so that a row already in flight never meets an empty mask, and `accept` takes
nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sglite.constrained import bitmask

MAX_TRIED = 32
"""Allowed tokens up to which it is tried out what would follow each of them."""


@dataclass(frozen=True, slots=True)
class ForcedText:
    """Bytes that every continuation begins with; none at a place where the text may end.

    `text` may end inside a character. `crossings` are the offsets b < len(text), ascending, at which some vocabulary
    token starts that agrees with text[b:], runs at least one byte past the end of `text`, and is allowed there.
    """

    text: bytes
    crossings: tuple[int, ...] = ()


class RawMatcher(Protocol):
    """What an engine's `program.raw_matcher()` gives. It knows nothing of jump-forward, resampling and budgets."""

    def fill(self, mask: NDArray[np.int32], room: int | None = None) -> bool:
        """Overwrite one row [words]. False when everything is allowed, the row then being all ones.

        With `room`, only the tokens after which some text of cost at most `room` completes the text. A byte costs
        one; an engine may count less where it knows that fewer tokens do. End of sequence costs nothing. After an
        end of sequence only those are allowed.
        """

    def accept(self, token_id: int) -> bool:
        """Take one token: text, `Special`, or an end of sequence. False, the state unchanged, when not allowed."""

    def rollback(self, n: int) -> None:
        """Undo the last n accepted tokens. ValueError when fewer were accepted."""

    def fork(self) -> RawMatcher:
        """An independent copy. It can be rolled back as far as this one."""

    def forced_text(self, limit: int = 256) -> ForcedText:
        """What must follow, at most `limit` bytes of it; the state is unchanged."""

    def shortest(self) -> bytes | None:
        """A shortest text that completes this one, None when there is none."""

    def held(self) -> int:
        """Tokens at the end that a value in progress, one that is checked when it ends, may still take back.

        They are those since the outermost such value began, the token in which it began included.
        """

    @property
    def accepting(self) -> bool:
        """The text so far is a member of the language."""

    @property
    def ended(self) -> bool:
        """End of sequence was accepted."""

    @property
    def num_accepted(self) -> int:
        """Tokens accepted, the end of sequence included."""

    @property
    def text(self) -> bytes:
        """The bytes of all tokens accepted."""

    @property
    def state_key(self) -> int | None:
        """Equal for equal futures within one program; None where the future depends on the text."""


class Masked(Protocol):
    """The least that has a mask and moves."""

    def fill(self, mask: NDArray[np.int32]) -> bool:
        """Overwrite one row [words]. False when everything is allowed, the row then being all ones."""

    def accept(self, token_id: int) -> bool:
        """Take one token. False, the state unchanged, when it is not allowed."""

    def rollback(self, n: int) -> None:
        """Undo the last n accepted tokens. ValueError when fewer were accepted."""


class Matcher(Masked, Protocol):
    """What may follow, token by token."""

    def accept_run(self, ids: Sequence[int]) -> int:
        """Take tokens up to the first that is not allowed; how many were taken."""

    def fork(self) -> Matcher:
        """An independent copy. It can be rolled back as far as this one."""

    def forced(self, limit: int = 64) -> list[int]:
        """The tokens that are the only ones allowed from here, in order; the state is unchanged."""

    def run_follows(self, mask: NDArray[np.int32]) -> bool:
        """Whatever token of `mask`, which `fill` gave here, comes next: forced tokens or the end come after it.

        False where it would take long to find out, and where a state seen before says so: a hint, no promise.
        """

    def retreat(self) -> int:
        """Where nothing may follow because a value turned out wrong: take its tokens back and rule that value out.

        Returns how many tokens at the end were taken back, 0 when that is not possible; `error` then says why.
        """

    def charge(self, n: int) -> None:
        """Before the first token: count n tokens outside this text (less, when negative) against its budget."""

    @property
    def held(self) -> int:
        """Tokens at the end that `retreat` may still take back."""

    @property
    def stuck(self) -> bool:
        """No token may follow, nor may the text end here."""

    @property
    def closed_from(self) -> int | None:
        """Bytes of text after which the budget first forbade a token, None when it never did."""

    @property
    def accepting(self) -> bool:
        """The text so far is a member of the language."""

    @property
    def finished(self) -> bool:
        """End of sequence was accepted, or nothing else can follow."""

    @property
    def error(self) -> str | None:
        """Why nothing can follow although the text is not a member, else None. Stays until a rollback."""


def run_follows_each(matcher: Matcher, mask: NDArray[np.int32]) -> bool:
    """`Matcher.run_follows` by trying each token, where they are few; the state is unchanged."""
    if np.count_nonzero(mask) > MAX_TRIED:
        return False
    ids = bitmask.to_ids(mask).tolist()
    return len(ids) <= MAX_TRIED and all(_runs_on(matcher, token_id) for token_id in ids)


def _runs_on(matcher: Matcher, token_id: int) -> bool:
    if not matcher.accept(token_id):
        return False
    follows = bool(matcher.forced(1)) or matcher.finished
    matcher.rollback(1)
    return follows


def forced_by_mask(matcher: Masked, eos_ids: Sequence[int], words: int, limit: int) -> list[int]:
    """`Matcher.forced` by the exact law: go on while the mask has one bit, and it is not an end of sequence."""
    mask = np.empty(words, dtype=np.int32)
    run: list[int] = []
    while len(run) < limit and matcher.fill(mask):
        token_id = bitmask.only(mask)
        if token_id is None or token_id in eos_ids or not matcher.accept(token_id):
            break
        run.append(token_id)
    matcher.rollback(len(run))
    return run
