"""The compile process: ``python -m sglite.constrained.apart.process --fd N``, started by `client`.

It knows the socket of that number and does one job after another. When the socket ends it ends, at once and whatever
it is doing. Its memory is bounded. A job that takes longer than most goes on at lower and lower priority. It heeds no
SIGINT and no SIGTERM, which terminals and service managers send to every process of a group: its client ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sglite.constrained.apart import messages
from sglite.constrained.apart.messages import Verdict
from sglite.constrained.engines.native_calls import OUT_OF_MEMORY, Trial
from sglite.constrained.engines.stream import serialise
from sglite.constrained.idle import NICENESS
from sglite.constrained.limits import Limits
from sglite.constrained.lower import lower
from sglite.constrained.spec import ConstraintError, ConstraintRefused

MAX_MEMORY = 1 << 30
"""Bytes of address space."""
_FULL = 256 << 20  # bytes of memory, at most, after which it had better be replaced
_LOWERED = ((0.02, NICENESS // 2), (0.5, NICENESS))  # after so many seconds, to what
_NAME = "sglite-compile"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the process until the socket ends."""
    parser = argparse.ArgumentParser(prog=_NAME)
    parser.add_argument("--fd", type=int, required=True, help="number of the socket that leads to the client")
    given = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(_NAME)
    connection = socket.socket(fileno=given.fd)
    setup = _receive(connection)
    if setup is None:
        return 0
    with contextlib.suppress(OSError, ValueError):  # not every system bounds it, or lets it be lowered
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    messages.send(connection, [messages.READY])
    _serve(connection, *messages.setup_of(setup[0]))
    return 0


def _serve(connection: socket.socket, limits: Limits, specials: Mapping[str, int]) -> None:
    """Each job on a thread, so that the end of the socket is heard of meanwhile, and priority is whole for the next."""
    trial: Trial | None = None
    while (job := _receive(connection)) is not None:
        trial = trial or Trial()  # whoever has a job has loaded the library, and built it first if need be
        read = functools.partial(_read, job[0], limits, specials, trial)
        thread = threading.Thread(target=_answer, args=(connection, read), daemon=True)
        thread.start()
        for seconds, niceness in _LOWERED:
            if select.select([connection], [], [], seconds)[0]:  # the next job, or the end
                break
            if thread.is_alive():
                with contextlib.suppress(OSError, AttributeError):  # it has ended; no priorities for threads here
                    os.setpriority(os.PRIO_PROCESS, thread.native_id or 0, niceness)


def _answer(connection: socket.socket, read: Callable[[], list[bytes | memoryview]]) -> None:
    try:
        parts = read()
    except MemoryError:
        parts = [_verdict("refused", OUT_OF_MEMORY)]
    with contextlib.suppress(OSError):  # the client has gone
        messages.send(connection, parts)


def _read(job: bytes, limits: Limits, specials: Mapping[str, int], trial: Trial) -> list[bytes | memoryview]:
    """The parts of the answer to a job."""
    lasting = True
    try:
        lowered = lower(messages.spec_of(job), limits, specials=specials)
        lasting = False
        stream = serialise(lowered.grammar)
        trial.compile(stream)
        checks, report = messages.checks_to_json(lowered.grammar.checks), messages.report_to_json(lowered.report)
        return [_verdict("read"), checks, report, memoryview(stream).cast("B")]
    except ConstraintRefused as error:
        return [_verdict("refused", error.reason, error.pointer, error.keyword, lasting)]
    except ConstraintError as error:
        return [_verdict("error", str(error), lasting=lasting)]
    except MemoryError:
        raise
    except Exception as error:
        return [_verdict("failed", f"{type(error).__name__}: {error}")]


def _verdict(kind: Any, reason: str = "", pointer: str = "", keyword: str = "", lasting: bool = False) -> bytes:
    unit = 1 if sys.platform == "darwin" else 1024
    full = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit > _FULL
    return messages.verdict_to_json(
        Verdict(kind=kind, reason=reason, pointer=pointer, keyword=keyword, lasting=lasting, full=full)
    )


def _receive(connection: socket.socket) -> list[bytes] | None:
    """The parts of the next frame; None at the end of the socket."""
    count = _exactly(connection, 1)
    head = _exactly(connection, 4 * count[0]) if count else b""
    parts = [_exactly(connection, length) for length in messages.lengths(head)] if head else []
    return parts if parts and all(parts) else None


def _exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes; none at the end of the socket."""
    found = bytearray()
    while len(found) < size:
        piece = connection.recv(min(size - len(found), 1 << 20))
        if not piece:
            return b""
        found += piece
    return bytes(found)


if __name__ == "__main__":
    main()
    os._exit(0)  # a job that nobody waits for any more is not waited for
