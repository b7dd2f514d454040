"""``sglite`` with an event loop that is looked at: ``watched_server.py serve ...`` is ``python -m sglite serve ...``.

A machine that others use makes every clock unreliable, so what a callback of the loop costs is counted in processor
time of its thread. SIGUSR1 prints one line, the costliest callbacks since the last one and how many objects only
collections have let go of, and begins anew. The loop is asyncio's own: the callbacks of uvloop cannot be timed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
import time
from asyncio.events import Handle
from asyncio.selector_events import _SelectorSocketTransport
from typing import Any

MARK = "watched: "
_KEPT = 5
_ANSWERING = "Cycle.run"


def watch() -> list[tuple[float, str]]:
    """Every callback is timed from now on; the list, costliest first, is kept up to date."""
    found: list[tuple[float, str]] = []
    run = Handle._run

    def timed(handle: Handle) -> None:
        path = _path(handle)
        before = time.thread_time()
        run(handle)
        spent = time.thread_time() - before
        if len(found) < _KEPT or spent > found[-1][0]:
            found.append((spent, f"{path} {_name(handle)}".strip()))
            found.sort(reverse=True)
            del found[_KEPT:]

    Handle._run = timed  # type: ignore[method-assign]
    return found


def _path(handle: Any) -> str:
    """Of the request that a handle answers. Asked before, because a task that has ended knows it no more.

    Asked of nothing else: the names of a frame, once looked at, hold on to what they named until it ends.
    """
    task = getattr(handle._callback, "__self__", None)
    coroutine = task.get_coro() if isinstance(task, asyncio.Task) else None
    frame = getattr(coroutine, "cr_frame", None)
    if frame is None or getattr(coroutine, "__qualname__", "") != _ANSWERING:
        return ""
    return str(frame.f_locals["self"]._scope.get("path", ""))[:60]


def _name(handle: Any) -> str:
    """What a handle calls; of a task, where it stands."""
    callback = handle._callback
    task = getattr(callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        frames = task.get_stack(limit=1)
        place = f" at {frames[-1].f_code.co_name}:{frames[-1].f_lineno}" if frames else ""
        return f"{getattr(task.get_coro(), '__qualname__', '')}{place}"
    # By name alone: what a value says of itself may be of any length.
    return str(getattr(callback, "__qualname__", type(callback).__name__))[:100]


def untie_transports() -> None:
    """Those of asyncio's loop hold themselves when they have ended; those that a server uses do not."""
    transport: Any = _SelectorSocketTransport
    ended = transport._call_connection_lost

    def end(self: Any, error: Exception | None) -> None:
        ended(self, error)
        self._read_ready_cb = None

    transport._call_connection_lost = end


def main() -> None:
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # its callbacks cannot be timed; asyncio's loop can
    untie_transports()
    found, collected = watch(), [0]

    def count(phase: str, info: dict[str, int]) -> None:
        collected[0] += info["collected"] if phase == "stop" else 0

    def say(*_: object) -> None:
        costliest = found[:]
        gc.collect()
        print(MARK + json.dumps([costliest, collected[0]]), file=sys.stderr, flush=True)
        found.clear()
        collected[0] = 0

    gc.callbacks.append(count)

    signal.signal(signal.SIGUSR1, say)
    from sglite.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
