"""Other weights for a model that runs: when they may be written, and what becomes of requests and cache then.

    order --> checked --> requests that were open have ended --> written --> cache renewed --> requests that came since
              (refused)   (or are paused, or are aborted)        (refused)

Promises. What does not fit is refused before anybody waits or is aborted for it. An output is computed with one set of
weights from its first token to its last, unless generation was paused in the middle of it. Nothing is computed while
weights are written, and nothing that was computed with the old ones is matched by a request that begins with the new.
Orders are carried out one after the other; if writing fails half-way, nothing is ever computed with the result.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from sglite.runtime.engine.request import Request, WaitReason
from sglite.runtime.engine.rows import unblock
from sglite.runtime.engine.scheduler import Scheduler
from sglite.runtime.executor.base import Executor
from sglite.runtime.protocol import ReadWeights, UpdateWeights, WeightOrder, WeightsResult

logger = logging.getLogger(__name__)
MAX_ORDERS = 64
"""Orders that may wait for their turn."""


@dataclass
class _Update:
    """An order on its way."""

    order: UpdateWeights
    answer: Future[WeightsResult]
    checked: Future[None]
    aborted: bool = False
    written: Future[None] | None = None


class Weights:
    """Carries out orders about the weights of one engine. Not thread-safe.

    Args:
        executor: has the weights.
        scheduler: its requests wait while weights are written.
        wake: called from any thread when ``go_on`` has something to do.
        abort_all: ends every open request, with a reason.
    """

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        wake: Callable[[], None],
        abort_all: Callable[[str], None],
    ) -> None:
        self._executor = executor
        self._scheduler = scheduler
        self._wake = wake
        self._abort_all = abort_all
        self._updates: deque[_Update] = deque()

    @property
    def writing(self) -> bool:
        """Nothing may be computed just now."""
        return bool(self._updates) and self._updates[0].written is not None

    def take(self, order: WeightOrder, answer: Future[WeightsResult]) -> None:
        """An order has come; ``answer`` gets what became of it."""
        if isinstance(order, ReadWeights):
            self._read(order, answer)
        elif len(self._updates) >= MAX_ORDERS:
            message = f"{MAX_ORDERS} updates of the weights wait already; send it again when one has been answered"
            answer.set_result(WeightsResult(success=False, message=message))
        else:
            checked = self._executor.check_weights(order.source)
            self._updates.append(_Update(order, answer, checked))
            checked.add_done_callback(self._call)

    def hold(self, request: Request) -> None:
        """A request has come: it waits for the weights that were ordered before it."""
        if self._updates:
            request.reasons.add(WaitReason.WEIGHTS)

    def go_on(self, paused: bool) -> None:
        """Do what can be done by now. ``paused``: nothing is being computed, and nothing will be."""
        while self._updates and self._advance(self._updates[0], paused):
            self._updates.popleft()
            if not self._updates:
                for request in self._scheduler.waiting.values():
                    request.reasons.discard(WaitReason.WEIGHTS)

    def fail(self, error: Exception) -> None:
        """No order will be carried out any more."""
        while self._updates:
            self._updates.popleft().answer.set_exception(error)

    def _advance(self, update: _Update, paused: bool) -> bool:
        """Whether ``update`` is over."""
        if not update.checked.done():
            return False
        if (error := update.checked.exception()) is not None:
            return self._refuse(update, str(error))
        if update.order.abort and not update.aborted:
            self._abort_all("aborted because the weights change; send the request again")
            update.aborted = True
        if update.written is None:
            if not (paused or self._all_waited_for()):
                return False
            if update.order.flush_cache and self._scheduler.running:
                return self._refuse(update, _in_place(len(self._scheduler.running)))
            update.written = self._executor.load_weights(update.order.source)
            update.written.add_done_callback(self._call)
        return update.written.done() and self._finish(update, update.written)

    def _all_waited_for(self) -> bool:
        """Whether every request that is open has come after the order."""
        waiting = self._scheduler.waiting.values()
        return not self._scheduler.running and all(WaitReason.WEIGHTS in request.reasons for request in waiting)

    def _finish(self, update: _Update, written: Future[None]) -> bool:
        """The executor is done with it. What it raises half-way is raised, and ends the engine."""
        error = written.exception()
        if isinstance(error, ValueError):
            return self._refuse(update, str(error))
        if error is not None:
            raise error
        self._scheduler.memory.pins.unpin("")
        self._scheduler.cache.renew()
        for request in self._scheduler.waiting.values():
            unblock(request)
        paused = len(self._scheduler.running) + len(self._scheduler.waiting)
        logger.info("other weights were loaded; %d requests waited", paused)
        update.answer.set_result(WeightsResult(success=True, num_paused_requests=paused))
        return True

    def _refuse(self, update: _Update, why: str) -> bool:
        logger.warning("the weights stay as they were: %s", why)
        update.answer.set_result(WeightsResult(success=False, message=why))
        return True

    def _read(self, order: ReadWeights, answer: Future[WeightsResult]) -> None:
        def reply(done: Future[list[float]]) -> None:
            if (error := done.exception()) is not None:
                answer.set_result(WeightsResult(success=False, message=str(error)))
            else:
                answer.set_result(WeightsResult(success=True, values=done.result()))

        self._executor.read_weights(order.name, order.rows).add_done_callback(reply)

    def _call(self, _: Future[None]) -> None:
        self._wake()


def _in_place(count: int) -> str:
    return (
        f"{count} requests are paused with their part of the cache, which flush_cache=true would take from them: pause "
        'with mode "retract", or send abort_all_requests=true, or flush_cache=false'
    )
