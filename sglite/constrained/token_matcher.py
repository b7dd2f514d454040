"""TokenMatcher: an engine's raw matcher as the runtime uses it, with forced tokens, resampling and a budget.

Which tokens are forced is found once where a run begins, and what is left of the run goes with the state: asked for
or not, the same tokens are the only ones allowed at the same places, so `jump_forward` changes no output. All that the
requests of a program have in common is in `Shared`, bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglite.constrained import bitmask, closing
from sglite.constrained.jump_forward import StableTokens
from sglite.constrained.matcher import ForcedText, RawMatcher, run_follows_each
from sglite.constrained.resample import Ruled
from sglite.constrained.vocab import Vocabulary

_MEMO = 4096  # entries of each memo; a full one starts anew
_RUN = 64  # tokens of a run
_NOTHING = ForcedText(b"")
_NO_TOKEN = "no token of the vocabulary can continue the text; the constraint needs bytes the vocabulary lacks"
_NO_ROOM = "constraint_unsatisfied: the text cannot be completed within the tokens left"


class Shared:
    """What one program remembers for all its matchers, by the states that its raw matchers name."""

    def __init__(self, tokens: StableTokens) -> None:
        self.tokens = tokens
        self.forced: dict[int, ForcedText] = {}
        self.runs: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] = {}
        self.followed: dict[int, bool] = {}  # whether any text may follow
        self.leads: dict[tuple[int, bool], bool] = {}  # whether forced tokens follow whatever comes next
        self.enough: dict[int, int] = {}  # a room with which every token fits


class TokenMatcher:
    """`Matcher` over a raw matcher at the start of its text.

    `close_at` is how many tokens the whole text may have, the end of sequence not counted; it is then complete when
    they are used up. `ValueError` when even the shortest text has more.
    """

    def __init__(
        self,
        raw: RawMatcher,
        vocab: Vocabulary,
        jump_forward: bool = True,
        close_at: int | None = None,
        shared: Shared | None = None,
    ) -> None:
        self._raw = raw
        self._vocab = vocab
        self._shared = shared or Shared(StableTokens(vocab))
        self._tokens = self._shared.tokens
        self._jump = jump_forward
        self._ids: list[int] = []  # accepted, an end of sequence included
        self._run: tuple[int, ...] | None = None  # the forced tokens from here, None while unknown
        self._written: tuple[int, ...] | None = None  # a completion that begins here, when one was written out
        self._past: list[tuple[tuple[int, ...] | None, tuple[int, ...] | None]] = []  # the two before each token
        self._ruled = Ruled(self._tokens)
        self._close_at = close_at
        self._closed: tuple[int, int] | None = None  # tokens and bytes where the budget first forbade a token
        self._row: tuple[bool, NDArray[np.int32]] | None = None  # the mask here, while it is not the engine's own
        self._last_row: tuple[bool, NDArray[np.int32]] | None = None  # the one before the last token
        self._failed: str | None = None
        if close_at is not None and (needed := closing.shortest_tokens(raw, self._tokens)) > close_at:
            raise ValueError(f"a text of at most {close_at} tokens cannot be complete; the shortest has {needed}")

    # --- what may follow ---------------------------------------------------------------------------------------

    def fill(self, mask: NDArray[np.int32]) -> bool:
        run = self._run if self._run is not None else self._find_run()
        if run:
            self._check(mask)
            mask.fill(0)
            mask.view(np.uint32)[run[0] >> 5] = np.uint32(1 << (run[0] & 31))
            return True
        if self._close_at is None and not self._ruled:
            return self._raw.fill(mask)
        self._check(mask)
        restricted, mask[:] = self._narrowed()
        return restricted

    def forced(self, limit: int = _RUN) -> list[int]:
        if not self._jump or limit <= 0:
            return []
        run = self._run if self._run is not None else self._find_run()
        return list(run[:limit])

    def run_follows(self, mask: NDArray[np.int32]) -> bool:
        run = self._run if self._run is not None else self._find_run()
        if len(run) > 1:
            return self._jump
        key = self._raw.state_key if self._close_at is None and not self._ruled and not run else None
        if key is None:
            return run_follows_each(self, mask)
        known = self._shared.leads.get((key, self._jump))
        if known is None:
            known = run_follows_each(self, mask)
            _remember(self._shared.leads, (key, self._jump), known)
        return known

    @property
    def accepting(self) -> bool:
        return self._raw.accepting

    @property
    def finished(self) -> bool:
        if self._raw.ended:
            return True
        return self._raw.accepting and not self._text_follows()

    @property
    def stuck(self) -> bool:
        if self._raw.ended or self._raw.accepting:
            return False
        run = self._run if self._run is not None else self._find_run()
        return not run and not self._text_follows()

    @property
    def error(self) -> str | None:
        if self._failed is not None:
            return self._failed
        if not self.stuck or self._raw.held():
            return None
        if not self._text_follows(alone=True):
            return _NO_TOKEN
        return self._ruled.why() if self._ruled else _NO_ROOM

    @property
    def held(self) -> int:
        return self._raw.held()

    @property
    def closed_from(self) -> int | None:
        return None if self._closed is None else self._closed[1]

    # --- moving ------------------------------------------------------------------------------------------------

    def accept(self, token_id: int) -> bool:
        run = self._run if self._run is not None else self._find_run()
        if run:
            if token_id != run[0]:
                return False
        elif (self._close_at is not None or self._ruled) and not self._allows(token_id):
            return False
        if not self._raw.accept(token_id):
            return False
        self._past.append((self._run, self._written))
        self._ids.append(token_id)
        self._run = run[1:] or None
        self._written = self._written[1:] if self._written and self._written[0] == token_id else None
        self._row, self._last_row = None, self._row
        return True

    def accept_run(self, ids: Sequence[int]) -> int:
        for taken, token_id in enumerate(ids):
            if not self.accept(token_id):
                return taken
        return len(ids)

    def rollback(self, n: int) -> None:
        left = len(self._ids) - n
        if n < 0 or left < 0:
            raise ValueError(f"cannot roll back {n} tokens: {len(self._ids)} were accepted")
        if n:
            self._ruled.forget(left)
            self._undo(n)

    def retreat(self) -> int:
        if not self.stuck or not self._raw.held():
            return 0
        taken = self._ruled.retreat(self._raw, self._ids)
        self._last_row = None  # filled before the value was ruled out
        if taken:
            self._undo(taken)
            self._run = None  # found before, too
        else:
            self._failed = self._ruled.why()
        return taken

    def charge(self, n: int) -> None:
        if self._ids:
            raise ValueError(f"a budget is charged before the text begins, not after {len(self._ids)} tokens")
        if self._close_at is not None:
            self._close_at -= n
            self._run = self._row = None

    def fork(self) -> TokenMatcher:
        other = TokenMatcher(self._raw.fork(), self._vocab, self._jump, None, self._shared)
        other._ids, other._past = self._ids.copy(), self._past.copy()
        other._run, other._written = self._run, self._written
        other._ruled = self._ruled.copy()
        other._close_at, other._closed = self._close_at, self._closed
        other._row, other._last_row, other._failed = self._row, self._last_row, self._failed
        return other

    def _undo(self, n: int) -> None:
        left = len(self._ids) - n
        self._raw.rollback(n)
        self._run, self._written = self._past[left]
        del self._ids[left:], self._past[left:]
        if self._closed is not None and self._closed[0] > left:
            self._closed = None
        # What was allowed before a token was tried stays so: the engine, asked again, may have no more tries to spend
        # on the search for a completion.
        self._row = self._last_row if n == 1 else None
        self._last_row = self._failed = None

    # --- the tokens that are forced ----------------------------------------------------------------------------

    def _find_run(self) -> tuple[int, ...]:
        key = self._raw.state_key
        forced = self._forced_text(key)
        self._run = run = self._stable(key, forced) if forced.text else ()
        if run and self._ruled and self._ruled.closed(self._ids, forced.text):
            self._run = ()
        elif run and self._close_at is not None:
            self._fit_run(run)
        return self._run

    def _forced_text(self, key: int | None) -> ForcedText:
        known = self._shared.forced
        if key is None:
            return self._raw.forced_text()
        forced = known.get(key)
        if forced is None:
            forced = _NOTHING if self._raw.ended else self._raw.forced_text()
            _remember(known, key, forced)
        return forced

    def _stable(self, key: int | None, forced: ForcedText) -> tuple[int, ...]:
        context = self._tokens.context(self._ids, forced.text)
        if context is None:
            return ()
        if key is None:
            return tuple(self._tokens.run(context, forced, _RUN))
        run = self._shared.runs.get((key, context))
        if run is None:
            run = tuple(self._tokens.run(context, forced, _RUN))
            _remember(self._shared.runs, (key, context), run)
        return run

    def _fit_run(self, run: tuple[int, ...]) -> None:
        """Under a budget: a run is kept when the shortest text that begins with it fits."""
        left = self._left()
        completion = self._raw.shortest()
        if completion is not None and len(completion) <= left:
            return
        fitting = closing.after_run(self._raw, self._tokens, run, left)
        if fitting is None:
            self._run = ()
        elif self._written is None or len(fitting) <= len(self._written) or self._written[0] != run[0]:
            self._written = fitting

    # --- masks that are not the engine's own -------------------------------------------------------------------

    def _narrowed(self) -> tuple[bool, NDArray[np.int32]]:
        """The mask here, less what is ruled out and what does not fit the budget."""
        if self._row is None:
            mask = np.empty(self._vocab.words, dtype=np.int32)
            restricted = self._raw.fill(mask)
            if self._ruled:
                self._rule_out(mask)
                restricted = True
            if self._close_at is not None and not self._raw.ended and self._fit(mask):
                restricted = True
            if restricted:
                bitmask.clear_padding(mask, self._vocab.size)
            self._row = restricted, mask
        return self._row

    def _rule_out(self, mask: NDArray[np.int32]) -> None:
        if self._ruled.closed(self._ids, self._forced_text(self._raw.state_key).text):
            mask.fill(0)
        else:
            self._ruled.narrow(self._ids, mask)

    def _fit(self, mask: NDArray[np.int32]) -> bool:
        left, key = self._left(), self._raw.state_key
        if key is not None and self._shared.enough.get(key, left) < left:
            return False
        fitting = closing.fitting(self._raw, self._tokens, left)
        dropped = mask & ~fitting
        bitmask.clear_padding(dropped, self._vocab.size)
        if not dropped.any():
            if key is not None and not self._ruled:
                _remember(self._shared.enough, key, left - 1)
            return False
        self._written = closing.written_out(self._raw, self._tokens, self._written)
        extra = closing.spelled_out(self._raw, self._tokens, dropped, left, self._written)
        bitmask.forbid(dropped, extra)
        if not dropped.any():
            return False
        mask &= ~dropped
        if self._closed is None:
            self._closed = len(self._ids), len(self._raw.text)
        return True

    def _allows(self, token_id: int) -> bool:
        return 0 <= token_id < self._vocab.size and bitmask.allows(self._narrowed()[1], token_id)

    def _left(self) -> int:
        """Tokens that the text may still have."""
        assert self._close_at is not None
        return self._close_at - len(self._ids)

    def _text_follows(self, alone: bool = False) -> bool:
        """Whether a token of text may follow; `alone`: as far as the engine is concerned."""
        own = self._close_at is None and not self._ruled
        key = self._raw.state_key if own or alone else None
        if key is not None and (known := self._shared.followed.get(key)) is not None:
            return known
        mask = np.empty(self._vocab.words, dtype=np.int32)
        if own or alone:
            self._raw.fill(mask)
        else:
            mask[:] = self._narrowed()[1]
        bitmask.forbid(mask, self._vocab.eos_ids)
        follows = bool(mask.any())
        if key is not None:
            _remember(self._shared.followed, key, follows)
        return follows

    def _check(self, mask: NDArray[np.int32]) -> None:
        words = self._vocab.words
        if mask.shape != (words,) or mask.dtype != np.int32 or not mask.flags.c_contiguous:
            raise ValueError(f"the mask is int32 [{words}] contiguous, got {mask.dtype} {mask.shape}")


def _remember(memo: dict[Any, Any], key: Any, value: Any) -> None:
    if len(memo) >= _MEMO:
        memo.clear()
    memo[key] = value
