"""Outputs on their way to another process: what steps give in quick succession goes as one message, because waking up
costs the reader more than a token.

Promise: an output that has ``PACE_SECONDS`` or more of silence before it, or after which nothing is to come, goes at
once; any other within ``PACE_SECONDS``, however long the next step takes. They go in the order in which they came.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sglite.runtime.engine.gather import gathered
from sglite.runtime.protocol import RequestOutput

PACE_SECONDS = 0.002
"""Between messages while more is to come."""


class PacedOutputs:
    """See the module. ``send`` gets what goes together, one output a request; it is called by one thread at a time."""

    def __init__(self, send: Callable[[list[RequestOutput]], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        """Of what follows, and held while something is sent: nothing overtakes it."""
        self._held: list[RequestOutput] = []
        self._due = 0.0
        self._late = threading.Event()
        """Something is held."""
        threading.Thread(target=self._run, name="sglite-outputs", daemon=True).start()

    def put(self, outputs: list[RequestOutput], more: bool) -> None:
        """Send ``outputs`` or hold them. ``more``: others are to come."""
        with self._lock:
            first, self._held = not self._held, self._held + outputs
            if not more or time.monotonic() >= self._due:
                self._go()
            elif first:
                self._late.set()

    def flush(self) -> None:
        """Send what is held: something else is about to be said."""
        with self._lock:
            if self._held:
                self._go()

    def _go(self) -> None:
        outputs, self._held = self._held, []
        self._due = time.monotonic() + PACE_SECONDS
        self._send(gathered(outputs) if len(outputs) > 1 else outputs)

    def _run(self) -> None:
        """Send what no step sends in time."""
        while True:
            self._late.wait()
            self._late.clear()
            time.sleep(max(0.0, self._due - time.monotonic()))
            self.flush()
