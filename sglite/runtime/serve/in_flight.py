"""The generations that clients wait for: how many there may be, and how one is ended by name."""

from __future__ import annotations

import uuid
from collections import Counter

from sglite.runtime.engine.generation import Generation
from sglite.runtime.observe.exchange import Exchange
from sglite.runtime.observe.observer import Observer
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.merge import Bell

_RETRY_SECONDS = 1


class InFlight:
    """Open generations by request id. Used on the server's event loop only.

    ``limit``: more requests than the engine may hold are refused with 429, not queued.
    """

    def __init__(self, limit: int, observer: Observer | None = None) -> None:
        self._limit = limit
        self._observer = observer
        self._open: dict[str, Generation] = {}
        self._bell: Bell | None = None
        self._outputs = 0
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

    def admit(self, count: int = 1) -> None:
        """``Refused`` (429) if ``count`` more outputs are too many."""
        if self._outputs + count > self._limit:
            message = f"{self._outputs} requests are open, {count} more exceed the {self._limit} there may be"
            raise Refused(429, message, code="queue_full", retry_after=_RETRY_SECONDS)

    def name(self, given: str | None = None) -> str:
        """A request id, the given one if it is free."""
        if given is not None and given in self._open:
            raise Refused(400, f"rid {given!r} belongs to a request that is still open; give another one", param="rid")
        return given or uuid.uuid4().hex

    def add(self, rid: str, generation: Generation, program: str = "", exchange: Exchange | None = None) -> None:
        """``generation`` begins, of ``program``, on behalf of ``exchange`` unless that is the present task's."""
        self._open[rid] = generation
        self._outputs += len(generation.request_ids)
        if self._observer is not None:
            generation.observe(self._observer.begin(rid, generation.request_ids, program=program, exchange=exchange))

    def discard(self, rid: str) -> None:
        """Nobody waits for it any more: what is left of it is aborted."""
        generation = self._open.pop(rid, None)
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
