"""Wrappers around a matcher: the reasoning gate, behind which a constraint begins.

    thinking, anything but an end of sequence | the end of thinking | the text under the constraint

Promises. Before the end of thinking no mask depends on the constraint; after it every mask is the constraint's own.
With a budget of n, the end of thinking is forced after n tokens of thinking. `rollback`, `fork` and `forced` work
across the gate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sglite.constrained import bitmask
from sglite.constrained.jump_forward import StableTokens
from sglite.constrained.matcher import Matcher, run_follows_each
from sglite.constrained.vocab import Vocabulary


class ThinkEnd:
    """What ends the thinking: a sequence of token ids, or a text, however it is split. Shared by requests.

    A token that would run past the end of the text is not allowed there: what follows belongs to the constraint.
    """

    def __init__(self, vocab: Vocabulary, end: Sequence[int] | str) -> None:
        self.vocab = vocab
        self._of_text = isinstance(end, str)
        self._units: tuple[int, ...] = tuple(end.encode()) if isinstance(end, str) else tuple(end)
        if not self._units:
            raise ValueError("the end of thinking is empty; name the token ids or the text that ends it")
        if not self._of_text and any(not 0 <= unit < vocab.size or unit in vocab.eos_ids for unit in self._units):
            raise ValueError(f"the end of thinking {self._units} has ids outside the vocabulary, or that end the text")
        self._borders = _borders(self._units)
        self._rests = self._spell() if self._of_text else [self._units[n:] for n in range(len(self._units))]
        self._past = self._find_past()

    @property
    def longest(self) -> int:
        """The most tokens that it takes to end the thinking."""
        return max(map(len, self._rests))

    def step(self, progress: int, token_id: int) -> int | None:
        """Units of the end that are there after one more token. None when the token would run past the end."""
        units: Sequence[int] = (self.vocab.content(token_id) or b"") if self._of_text else (token_id,)
        if not units:
            return 0  # a special token interrupts the text
        for unit in units:
            if progress == len(self._units):
                return None
            while progress and self._units[progress] != unit:
                progress = self._borders[progress - 1]
            progress += self._units[progress] == unit
        return progress

    def complete(self, progress: int) -> bool:
        return progress == len(self._units)

    def rest(self, progress: int) -> tuple[int, ...]:
        """Tokens that complete it."""
        return self._rests[progress]

    def past(self, progress: int) -> NDArray[np.int64]:
        """The ids that would run past the end."""
        return self._past[progress]

    def _spell(self) -> list[tuple[int, ...]]:
        tokens, text = StableTokens(self.vocab), bytes(self._units)
        spelled = [tokens.spell(text[progress:]) for progress in range(len(text))]
        if None in spelled:
            raise ValueError(f"the vocabulary cannot spell {text.decode()!r}, the end of thinking")
        return [tuple(ids) for ids in spelled if ids is not None]

    def _find_past(self) -> list[NDArray[np.int64]]:
        candidates: list[int] = []
        if self._of_text:
            last = self._units[-1]
            candidates = [i for i, piece in enumerate(self.vocab.token_bytes) if piece and last in piece[:-1]]
        return [
            np.array([i for i in candidates if self.step(progress, i) is None], dtype=np.int64)
            for progress in range(len(self._units))
        ]


class ReasoningGate:
    """`Matcher` that lets everything pass until the end of thinking, then is `inner`, a matcher at its beginning.

    `budget` is the most tokens of thinking, without its end. An end of sequence is refused while thinking unless
    `allow_eos`; it then leaves the text incomplete. `inner` is charged with the tokens before it: a budget for the
    whole has to leave room for `end.longest` and the shortest text. `closed_from` counts bytes after the gate.
    """

    def __init__(
        self,
        inner: Matcher,
        end: ThinkEnd,
        budget: int | None = None,
        *,
        jump_forward: bool = True,
        allow_eos: bool = False,
    ) -> None:
        if budget is not None and budget < 0:
            raise ValueError(f"a thinking budget of {budget} tokens is negative; 0 means no thinking")
        self._inner = inner
        self._end = end
        self._vocab = end.vocab
        self._budget = budget
        self._jump = jump_forward
        self._allow_eos = allow_eos
        self._thoughts: list[tuple[int, tuple[int, ...]]] = []  # progress and forced tokens before each token
        self._progress = 0
        self._through = 0  # tokens after the gate
        self._ended = False
        self._run: tuple[int, ...] = self._due()

    @property
    def thinking(self) -> bool:
        """The end of thinking has not come yet."""
        return not self._end.complete(self._progress)

    def fill(self, mask: NDArray[np.int32]) -> bool:
        if not self.thinking:
            return self._inner.fill(mask)
        if self._run or self._ended:
            mask.fill(0)
            bitmask.allow(mask, self._run[:1] or self._vocab.eos_ids)
            return True
        mask.fill(-1)
        past = self._end.past(self._progress)
        if self._allow_eos and not past.size:
            return False
        bitmask.forbid(mask, past)
        if not self._allow_eos:
            bitmask.forbid(mask, self._vocab.eos_ids)
        bitmask.clear_padding(mask, self._vocab.size)
        return True

    def accept(self, token_id: int) -> bool:
        if not self.thinking:
            taken = self._inner.accept(token_id)
            self._through += taken
            return taken
        if self._ended or not 0 <= token_id < self._vocab.size or (self._run and token_id != self._run[0]):
            return False
        progress: int | None = self._progress
        ends = token_id in self._vocab.eos_ids and not self._run
        if ends and not self._allow_eos:
            return False
        if not ends:
            progress = self._end.step(self._progress, token_id)
        if progress is None:
            return False
        self._thoughts.append((self._progress, self._run))
        self._progress, self._ended = progress, ends
        self._run = self._run[1:] or self._due()
        if not self.thinking:
            self._inner.charge(len(self._thoughts))
        return True

    def accept_run(self, ids: Sequence[int]) -> int:
        for taken, token_id in enumerate(ids):
            if not self.accept(token_id):
                return taken
        return len(ids)

    def rollback(self, n: int) -> None:
        accepted = len(self._thoughts) + self._through
        if not 0 <= n <= accepted:
            raise ValueError(f"cannot roll back {n} tokens: {accepted} were accepted")
        behind = min(n, self._through)
        self._inner.rollback(behind)
        self._through -= behind
        left = len(self._thoughts) - (n - behind)
        if left == len(self._thoughts):
            return
        if not self.thinking:
            self._inner.charge(-len(self._thoughts))
        self._progress, self._run = self._thoughts[left]
        self._ended = False
        del self._thoughts[left:]

    def fork(self) -> ReasoningGate:
        other = ReasoningGate(
            self._inner.fork(), self._end, self._budget, jump_forward=self._jump, allow_eos=self._allow_eos
        )
        other._thoughts = self._thoughts.copy()
        other._progress, other._run = self._progress, self._run
        other._through, other._ended = self._through, self._ended
        return other

    def forced(self, limit: int = 64) -> list[int]:
        if not self.thinking:
            return self._inner.forced(limit)
        return list(self._run[: max(limit, 0)]) if self._jump else []

    def run_follows(self, mask: NDArray[np.int32]) -> bool:
        return run_follows_each(self, mask) if self.thinking else self._inner.run_follows(mask)

    def retreat(self) -> int:
        taken = 0 if self.thinking else self._inner.retreat()
        self._through -= taken
        return taken

    def charge(self, n: int) -> None:
        if self._thoughts:
            raise ValueError(f"a budget is charged before the text begins, not after {len(self._thoughts)} tokens")
        self._inner.charge(n)

    @property
    def held(self) -> int:
        return 0 if self.thinking else self._inner.held

    @property
    def stuck(self) -> bool:
        return not self.thinking and self._inner.stuck

    @property
    def closed_from(self) -> int | None:
        return self._inner.closed_from

    @property
    def accepting(self) -> bool:
        return not self.thinking and self._inner.accepting

    @property
    def finished(self) -> bool:
        return self._ended if self.thinking else self._inner.finished

    @property
    def error(self) -> str | None:
        return None if self.thinking else self._inner.error

    def _due(self) -> tuple[int, ...]:
        """The tokens that end the thinking, once its budget is used up."""
        if not self.thinking or self._ended or self._budget is None or len(self._thoughts) < self._budget:
            return ()
        return self._end.rest(self._progress)


def _borders(units: tuple[int, ...]) -> list[int]:
    """For every prefix, the length of its longest border (Knuth, Morris and Pratt's failure function)."""
    borders = [0] * len(units)
    for i in range(1, len(units)):
        size = borders[i - 1]
        while size and units[size] != units[i]:
            size = borders[size - 1]
        borders[i] = size + (units[size] == units[i])
    return borders
