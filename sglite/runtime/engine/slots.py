"""Slots: the small integers under which the executor keeps a request's row state, and what it is told about them.

A slot that was given back is announced before whoever has it next.
"""

from __future__ import annotations

from sglite.runtime.engine.request import Request
from sglite.runtime.engine.update import Updater
from sglite.runtime.protocol import NewRow, SchedulerOutput


class Slots:
    """Hands out ``count`` slots.

    Args:
        updater: knows which ids end a request.
    """

    def __init__(self, count: int, updater: Updater) -> None:
        self._updater = updater
        self._free = list(range(count - 1, -1, -1))
        self._released: list[int] = []
        self._new: dict[int, NewRow] = {}

    @property
    def all_taken(self) -> bool:
        """Nobody can be admitted."""
        return not self._free

    def take(self, request: Request) -> None:
        """Give ``request`` a slot."""
        request.slot = self._free.pop()
        self._new[request.slot] = self._describe(request)

    def renew(self, request: Request) -> None:
        """What the executor knows of ``request`` no longer holds: tell it again."""
        self._released.append(request.slot)
        self._new[request.slot] = self._describe(request)

    def give_back(self, request: Request) -> None:
        """``request`` needs its slot no more."""
        if self._new.pop(request.slot, None) is None:
            self._released.append(request.slot)
        self._free.append(request.slot)
        request.slot = -1

    def announce(self, output: SchedulerOutput) -> None:
        """Put what has changed since the last step into a step."""
        output.released, self._released = self._released, []
        output.new_rows, self._new = list(self._new.values()), {}

    def _describe(self, request: Request) -> NewRow:
        sampling = request.request.sampling
        penalised = sampling.has_penalties
        request.unsent_forced.clear()
        return NewRow(
            slot=request.slot,
            request_id=request.id,
            sampling=sampling,
            seed=request.seed,
            banned_until_min=self._updater.ending_ids(sampling) if sampling.min_new_tokens else (),
            logprobs=request.request.logprobs,
            prompt_ids=request.tokens[: request.prompt_len] if penalised else [],
            output_ids=request.tokens[request.prompt_len :] if penalised else [],
        )
