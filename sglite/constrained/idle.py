"""Work that may take what the machine has left over."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

NICENESS = 10


def run_idle(call: Callable[[], T]) -> T:
    """What `call` returns or raises, run on a thread of low priority while this one waits.

    A thread of its own, because a priority once lowered cannot be raised again. Only for calls that let go of the
    interpreter: one that held it while it had to wait for a processor would hold up everybody.
    """
    done: Future[T] = Future()

    def run() -> None:
        with contextlib.suppress(OSError, AttributeError):  # not every system has priorities for threads
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="constraint-engine", daemon=True).start()
    return done.result()
