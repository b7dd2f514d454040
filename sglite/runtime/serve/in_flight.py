"""The generations that clients wait for: how many there may be and how much they may hold, and how one is ended by
name."""

from __future__ import annotations

import os
from collections import Counter

from sglite.runtime.engine.generation import Generation
from sglite.runtime.observe.exchange import Exchange
from sglite.runtime.observe.observer import Observer
from sglite.runtime.sample.params import InvalidParameter
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.logprob_count import MAX_LOGPROBS, MAX_OPEN_LOGPROBS
from sglite.runtime.serve.merge import Bell

_RETRY_SECONDS = 1


class InFlight:
    """Open generations by request id. Used on the server's event loop only.

    ``limit``: more requests than the engine may hold are refused with 429, not queued. ``longest``: tokens of the
    longest sequence.
    """

    def __init__(self, limit: int, observer: Observer | None = None, longest: int = 2**15) -> None:
        self._limit = limit
        self.longest = longest
        self._observer = observer
        self._open: dict[str, Generation] = {}
        self._bell: Bell | None = None
        self._outputs = 0
        self._logprobs: dict[str, int] = {}
        """Of those that asked for some, how many."""
        self.calls: Counter[str] = Counter()
        """Requests so far, by route."""

    @property
    def bell(self) -> Bell:
        """Of the event loop."""
        if self._bell is None or not self._bell.is_here:
            self._bell = Bell()
        return self._bell

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, count: int = 1, logprobs: int = 0) -> None:
        """``Refused`` (429) if ``count`` more outputs or so many log probabilities are too many for now;
        ``InvalidParameter`` if they always would be."""
        if self._outputs + count > self._limit:
            message = f"{self._outputs} requests are open, {count} more exceed the {self._limit} there may be"
            raise Refused(429, message, code="queue_full", retry_after=_RETRY_SECONDS)
        if logprobs > MAX_LOGPROBS:
            message = (
                f"top_logprobs_num: {logprobs} log probabilities would be told, alternatives times positions, and "
                f"{MAX_LOGPROBS} may be; ask for fewer alternatives, prompt positions, output tokens or prompts"
            )
            raise InvalidParameter("top_logprobs_num", logprobs, message)
        if logprobs and sum(self._logprobs.values()) + logprobs > MAX_OPEN_LOGPROBS:
            message = f"open requests hold too many log probabilities for {logprobs} more; try again later"
            raise Refused(429, message, code="queue_full", retry_after=_RETRY_SECONDS)

    def name(self, given: str | None = None) -> str:
        """A request id, the given one if it is free."""
        if given is not None and given in self._open:
            message = f"Duplicate request ID: rid {given!r} belongs to a request that is still open; give another one"
            raise Refused(400, message, param="rid")
        return given or os.urandom(16).hex()

    def add(
        self,
        rid: str,
        generation: Generation,
        program: str = "",
        exchange: Exchange | None = None,
        logprobs: int = 0,
    ) -> None:
        """``generation`` begins, of ``program``, on behalf of ``exchange`` unless that is the present task's; it has
        up to so many ``logprobs``."""
        self._open[rid] = generation
        if logprobs:
            self._logprobs[rid] = logprobs
        self._outputs += len(generation.request_ids)
        if self._observer is not None:
            generation.observe(self._observer.begin(rid, generation.request_ids, program=program, exchange=exchange))

    def discard(self, rid: str) -> None:
        """Nobody waits for it any more: what is left of it is aborted."""
        generation = self._open.pop(rid, None)
        self._logprobs.pop(rid, None)
        if generation is None:
            return
        self._outputs -= len(generation.request_ids)
        if not generation.finished:
            generation.abort()

    def abort(self, rid: str | None) -> int:
        """Ends the request called ``rid``, those of the batch ``rid`` (``rid_0`` or ``rid-0``, ...), or all; those who
        wait get what there is. Returns how many."""
        found = [one for name, one in self._open.items() if rid is None or name == rid or _is_part(name, rid)]
        for generation in found:
            generation.abort()
        return len(found)

    def has_output(self, name: str) -> bool:
        """Whether an open request has an output called so (``rid-0``, ...)."""
        rid = name.rpartition("-")[0]
        return rid in self._open and _is_part(name, rid)


def _is_part(name: str, whole: str) -> bool:
    rest = name[len(whole) :]
    return name.startswith(whole) and rest[:1] in ("_", "-") and rest[1:].isdecimal()
