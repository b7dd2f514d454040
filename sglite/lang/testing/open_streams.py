"""Which of a back end's sequences programs still hold. A run gives its last one back shortly after its body returned,
so whoever wants to know what a run asked for waits for that first."""

from __future__ import annotations

import asyncio
import threading

from sglite.lang.session import SESSION

_TURNS = 8
"""Turns of the programs' loop in which a request that was already appended opens its sequence."""


class OpenStreams:
    """A count of open sequences; safe from any thread."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def add(self, count: int) -> None:
        """``count`` more are open; less, if negative."""
        with self._changed:
            self._count += count
            self._changed.notify_all()

    def settle(self, timeout_s: float) -> bool:
        """Waits until none is open; False if that takes longer. Not on the programs' loop, which has to go on."""
        SESSION.loop.wait(SESSION.loop.spawn(_turns()))
        with self._changed:
            return self._changed.wait_for(lambda: self._count == 0, timeout_s)


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
