"""Matcher: the state of one request under its constraint.

Promises, for every engine. The mask is right for the state after all tokens accepted so far: a token is allowed
exactly when `accept` would take it, and then the text can still become a member of the language. End-of-sequence
ids are allowed exactly when the text is a member. `rollback(n)` restores the state bit for bit. A matcher belongs
to one request and is not shared between threads. After end of sequence the mask allows the end-of-sequence ids
alone, so that a row already in flight never meets an empty mask, and `accept` takes nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sglite.constrained import bitmask


class Matcher(Protocol):
    """What may follow, token by token."""

    def fill(self, mask: NDArray[np.int32]) -> bool:
        """Overwrite one row [words]. False when everything is allowed, the row then being all ones."""

    def accept(self, token_id: int) -> bool:
        """Take one token. False, the state unchanged, when it is not allowed."""

    def accept_run(self, ids: Sequence[int]) -> int:
        """Take tokens up to the first that is not allowed; how many were taken."""

    def rollback(self, n: int) -> None:
        """Undo the last n accepted tokens. ValueError when fewer were accepted."""

    def fork(self) -> Matcher:
        """An independent copy. It can be rolled back as far as this one."""

    def forced(self, limit: int = 64) -> list[int]:
        """The tokens that are the only ones allowed from here, in order; the state is unchanged."""

    @property
    def accepting(self) -> bool:
        """The text so far is a member of the language."""

    @property
    def finished(self) -> bool:
        """End of sequence was accepted, or nothing else can follow."""

    @property
    def error(self) -> str | None:
        """Why nothing can follow although the text is not a member, else None. Stays until a rollback."""


def forced_by_mask(matcher: Matcher, eos_ids: Sequence[int], words: int, limit: int) -> list[int]:
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
