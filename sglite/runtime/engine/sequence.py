"""An append-only sequence of token ids that a program owns: extend it, generate from it, fork it, score after it.

Its committed ids are never encoded again. What it has computed stays locked in the tree under a pin until it is
closed; a pin is a hint, given up when memory is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import Any, Protocol

from sglite.runtime.engine.generation import Generation
from sglite.runtime.engine.presenter import Presenter
from sglite.runtime.protocol import ProgramRef


class SequenceEngine(Protocol):
    """What a sequence needs of its engine."""

    @property
    def submit(self) -> Callable[..., Generation]:
        """Start a request; see ``Engine.submit``."""
        ...

    def open_sequence(self, program_id: str, token_ids: Ids[int]) -> Sequence:
        """Another sequence of the same program."""
        ...

    def unpin(self, prefix: str) -> None:
        """Release a pin."""
        ...


class Sequence:
    """One sequence of a program; made by ``Engine.open_sequence``. Methods may be called from any thread."""

    def __init__(self, engine: SequenceEngine, name: str, program: ProgramRef | None, token_ids: Ids[int]) -> None:
        self._engine = engine
        self._name = name
        self._program = program
        self._lock = threading.Lock()
        self._ids = list(token_ids)
        self._pinned = False
        self._generating = False

    @property
    def token_ids(self) -> list[int]:
        """Committed ids."""
        with self._lock:
            return list(self._ids)

    def extend(self, token_ids: Ids[int]) -> None:
        """Append known tokens; nothing is computed before something needs it. Refused while it generates."""
        with self._lock:
            if self._generating:
                raise RuntimeError("this sequence is generating: wait for its output before extending it")
            self._ids.extend(token_ids)

    def truncate(self, length: int) -> None:
        """Take back the committed ids from ``length`` on; what was computed of them may be found in the cache again."""
        with self._lock:
            if self._generating:
                raise RuntimeError("this sequence is generating: wait for its output before truncating it")
            if not 0 <= length <= len(self._ids):
                raise ValueError(f"truncate({length}): the sequence has {len(self._ids)} tokens")
            del self._ids[length:]

    def generate(
        self, sampling_params: dict[str, Any] | None = None, *, stream: bool = False, **options: Any
    ) -> Generation:
        """Generate after the committed ids; the first output joins them at the end.

        ``options``: ``return_logprob``, ``logprob_start_len``, ``top_logprobs_num``, ``token_ids_logprob``,
        ``return_text_in_logprobs``, ``rid``, ``priority`` as in ``Engine.generate``. Events come either way;
        ``stream`` is accepted for symmetry with it. Raises ``ValueError`` naming the field for bad values.
        """
        with self._lock:
            if self._generating:
                raise RuntimeError("this sequence is generating already: wait for its output, or fork it")
            ids = list(self._ids)
            self._generating = self._pinned = True
        try:
            return self._engine.submit(
                ids, sampling_params, pin=self._name, program=self._program, on_finished=self._commit, **options
            )
        except BaseException:
            self._generating = False
            raise

    def score(self, continuations: Ids[list[int]], *, top_logprobs_num: int = 0) -> list[Generation]:
        """One generation a continuation; ``meta_info["input_token_logprobs"]`` has its tokens' rows. Changes nothing.

        What the continuations share, the sequence itself first, is computed once.
        """
        ids = self.token_ids
        return [
            self._engine.submit(
                ids + continuation,
                {"max_new_tokens": 0, "temperature": 0.0},
                return_logprob=True,
                logprob_start_len=len(ids),
                top_logprobs_num=top_logprobs_num,
                program=self._program,
            )
            for continuation in continuations
        ]

    def fork(self, n: int) -> list[Sequence]:
        """``n`` sequences with the same committed ids.

        The ids are computed once, as a node of their own: every branch finds them cached.
        """
        if n < 1:
            raise ValueError(f"fork needs at least one branch, got {n}")
        ids = self.token_ids
        if ids:
            self._pinned = True
            self._engine.submit(ids, {"max_new_tokens": 0}, pin=self._name, program=self._program)
        return [self._engine.open_sequence(self.program_id, ids) for _ in range(n)]

    def close(self) -> None:
        """Its pin is released; what it computed may be evicted from now on."""
        if self._pinned:
            self._pinned = False
            self._engine.unpin(self._name)

    @property
    def program_id(self) -> str:
        """The program it belongs to."""
        return self._program.program_id if self._program is not None else ""

    def _commit(self, presenters: Ids[Presenter]) -> None:
        """Take over the first output, once all outputs of a generate call have ended; nothing if it failed."""
        with self._lock:
            if presenters:
                self._ids.extend(presenters[0].state_ids())
            self._generating = False
