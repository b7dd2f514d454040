"""A bound on the thinking that a constraint lets a model do, where the model may think or not.

    [ the beginning | thinking, at most `budget` tokens | the end ] the rest of the text

Promises. Every mask is the constraint's own, but where the budget is used up: there it allows the next token of the end
of thinking alone, unless the constraint forbids that one. A text that does not begin with thinking is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglite.constrained import bitmask
from sglite.constrained.matcher import Matcher
from sglite.constrained.vocab import Vocabulary
from sglite.constrained.wrappers import ThinkEnd


class _Thought(NamedTuple):
    head: bytes = b""
    """What may become the mark of the beginning."""
    tokens: int = -1
    """Of thinking, so far; -1: it has not begun."""
    progress: int = 0
    """Of its end."""


class ThinkingBudget:
    """`inner`, whose text may begin with thinking. `begin`: the mark that says so, none where it has begun before."""

    def __init__(self, inner: Matcher, vocab: Vocabulary, begin: str, end: str, budget: int) -> None:
        if budget < 0:
            raise ValueError(f"a thinking budget of {budget} tokens is negative; 0 means no thinking")
        self._inner = inner
        self._vocab = vocab
        self._begin = begin.encode()
        self._end = _end_of(vocab, end)
        self._special = {token: text.encode() for text, token in vocab.special_ids.items()}
        self._budget = budget
        self._thought: _Thought | None = _Thought(tokens=-1 if begin else 0)
        """`None`: it is over, or there is none."""
        self._before: list[_Thought] = []
        """What `_thought` was before each token of it."""
        self._through = 0
        """Tokens after it."""

    def fill(self, mask: NDArray[np.int32]) -> bool:
        bounded = self._inner.fill(mask)
        due = self._due()
        if due is None or not bitmask.allows(mask, due):
            return bounded
        mask.fill(0)
        bitmask.allow(mask, (due,))
        return True

    def accept(self, token_id: int) -> bool:
        due = self._due()
        if due is not None and token_id != due and self._takes(due):
            return False
        if not self._inner.accept(token_id):
            return False
        if self._thought is None:
            self._through += 1
        else:
            self._before.append(self._thought)
            self._thought = self._after(self._thought, token_id)
        return True

    def accept_run(self, ids: Sequence[int]) -> int:
        for taken, token_id in enumerate(ids):
            if not self.accept(token_id):
                return taken
        return len(ids)

    def rollback(self, n: int) -> None:
        self._inner.rollback(n)
        self._forget(n)

    def retreat(self) -> int:
        taken = self._inner.retreat()
        self._forget(taken)
        return taken

    def fork(self) -> ThinkingBudget:
        other = copy(self)
        other._inner, other._before = self._inner.fork(), self._before.copy()
        return other

    def forced(self, limit: int = 64) -> list[int]:
        return self._inner.forced(limit) if self._thought is None else []

    def run_follows(self, mask: NDArray[np.int32]) -> bool:
        return self._thought is None and self._inner.run_follows(mask)

    def charge(self, n: int) -> None:
        self._inner.charge(n)

    @property
    def held(self) -> int:
        return self._inner.held

    @property
    def stuck(self) -> bool:
        return self._inner.stuck

    @property
    def closed_from(self) -> int | None:
        return self._inner.closed_from

    @property
    def accepting(self) -> bool:
        return self._inner.accepting

    @property
    def finished(self) -> bool:
        return self._inner.finished

    @property
    def error(self) -> str | None:
        return self._inner.error

    def _due(self) -> int | None:
        """The token that goes on with the end, once the budget is used up."""
        thought = self._thought
        spent = thought is not None and thought.tokens >= self._budget
        return self._end.rest(thought.progress)[0] if thought is not None and spent else None

    def _takes(self, token_id: int) -> bool:
        taken = self._inner.accept(token_id)
        if taken:
            self._inner.rollback(1)
        return taken

    def _after(self, thought: _Thought, token_id: int) -> _Thought | None:
        if thought.tokens < 0:
            head = (thought.head + (self._vocab.content(token_id) or self._special.get(token_id, b""))).lstrip()
            if head.startswith(self._begin):
                return _Thought(tokens=0)
            return _Thought(head) if self._begin.startswith(head) else None
        progress = self._end.step(thought.progress, token_id)
        if progress is None or self._end.complete(progress):
            return None
        return _Thought(tokens=thought.tokens + 1, progress=progress)

    def _forget(self, n: int) -> None:
        behind = min(n, self._through)
        self._through -= behind
        if n > behind:
            self._thought = self._before[behind - n]
            del self._before[behind - n :]


@lru_cache(maxsize=8)
def _end_of(vocab: Vocabulary, text: str) -> ThinkEnd:
    special = vocab.special_ids.get(text)
    return ThinkEnd(vocab, text if special is None else (special,))
