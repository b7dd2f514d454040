"""The compile process as its user sees it: started when there is something to read, ended when that takes too long.

The two talk over a socket pair that nobody else can reach. The process ends when the socket does, so that a client that
is killed leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglite.constrained.apart import messages
from sglite.constrained.apart.messages import Verdict
from sglite.constrained.budget import Budget, OutOfTime
from sglite.constrained.grammar import Check
from sglite.constrained.limits import Limits
from sglite.constrained.report import KeywordReport
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec

COMMAND = (sys.executable, "-m", "sglite.constrained.apart.process")
"""Runs a compile process; ``--fd N`` is added, the number of its end of the socket."""
_STDERR = 2
_LEAST_S = 0.001
_REAP_S = 0.5  # how long a process whose socket has ended may take to be gone
_WITHOUT_BOUND = 1 << 62


@dataclass(frozen=True)
class Written:
    """A constraint that was read elsewhere: its grammar as `engines.stream` writes it, known to compile."""

    stream: NDArray[np.int32]
    checks: tuple[Check, ...]
    report: KeywordReport


class Refusal(Exception):
    """`error` is what a constraint is refused with; `lasting`: the front end said it, and will say it again."""

    def __init__(self, error: ConstraintError | ConstraintRefused, lasting: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.lasting = lasting


class CompileProcess:
    """Reads one constraint at a time for one thread; `close` may be called from any.

    `pause_s`: how long the checks of a grammar may keep the interpreter to themselves while they are made.
    """

    def __init__(
        self, limits: Limits, specials: Mapping[str, int], pause_s: float, command: Sequence[str] = COMMAND
    ) -> None:
        self.restarts = 0
        """Processes that were killed, or died."""
        self._limits = limits
        self._setup = messages.setup_to_json(limits, specials)
        self._pause_s = pause_s
        self._command = command
        self._lock = threading.Lock()
        self._running: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._ready = False
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the process that runs."""
        running = self._running
        return None if running is None else running[0].pid

    def start(self) -> None:
        """Have a process, without waiting until it is ready. OSError when there is none to be had."""
        self._connected()

    def read(self, spec: ConstraintSpec, until: float, begins: Callable[[], None] = lambda: None) -> Written:
        """The constraint, read. `until` is of time.monotonic; `begins` is called when the process is ready for it.

        Raises Refusal, and OutOfTime when it took longer; then the process has been ended. One that dies is tried once
        more.
        """
        job, how = messages.spec_to_json(spec), ""
        for _ in range(2):
            try:
                return self._read(job, until, begins)
            except TimeoutError:
                self._end(killed=True)
                self.start()
                raise OutOfTime("making it a grammar took too long; simplify it") from None
            except OSError:
                how = self._end()
        raise ConstraintRefused(f"the process that compiles it {how}, twice; simplify it")

    def close(self) -> None:
        """End the process; whoever waits for it is told that it died. Idempotent."""
        self._closed = True
        self._end(killed=True)

    def _read(self, job: bytes, until: float, begins: Callable[[], None]) -> Written:
        connection = self._connected()
        if not self._ready:
            _received(connection, until)
            self._ready = True
        begins()
        connection.settimeout(max(until - time.monotonic(), _LEAST_S))
        messages.send(connection, [job])
        parts = _received(connection, until)
        verdict = messages.verdict_of(parts[0].tobytes())
        if verdict["full"]:
            self._end(killed=True, counted=False)
            self.start()
        if verdict["kind"] != "read":
            raise _refusal(verdict)
        checks, report, stream = parts[1:]
        budget = Budget(_WITHOUT_BOUND, pause_s=self._pause_s)
        return Written(
            stream.view(np.int32),
            messages.checks_of(checks.tobytes(), self._limits, budget),
            messages.report_of(report.tobytes()),
        )

    def _connected(self) -> socket.socket:
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("closed")
            if self._running is None:
                self._running, self._ready = _spawn(self._command), False
                messages.send(self._running[1], [self._setup])
            return self._running[1]

    def _end(self, killed: bool = False, counted: bool = True) -> str:
        """Have the process gone; says how it ended."""
        with self._lock:
            if self._running is None:
                return "was ended"
            process, connection = self._running
            self._running = None
            self.restarts += counted and not self._closed
        if killed:
            process.kill()
        with contextlib.suppress(OSError):  # the process has gone
            connection.shutdown(socket.SHUT_RDWR)  # else both ends hear of it
        connection.close()
        try:
            code = process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _spawn(command: Sequence[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A process and the socket that leads to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [*command, "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,  # standard output is somebody else's
                env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # its address space is counted
            )
        except OSError as error:
            ours.close()
            raise RuntimeError(f"no process to compile it could be started: {error}") from None
    return process, ours


def _refusal(verdict: Verdict) -> Exception:
    if verdict["kind"] == "failed":
        return RuntimeError(verdict["reason"])
    if verdict["kind"] == "error":
        return Refusal(ConstraintError(verdict["reason"]), verdict["lasting"])
    refused = ConstraintRefused(verdict["reason"], pointer=verdict["pointer"], keyword=verdict["keyword"])
    return Refusal(refused, verdict["lasting"])


def _received(connection: socket.socket, until: float) -> list[NDArray[np.uint8]]:
    """The parts of a frame. TimeoutError when it is too late, ConnectionError at the end of the socket."""
    count = _exactly(connection, 1, until)
    head = _exactly(connection, 4 * int(count[0]), until)
    return [_exactly(connection, length, until) for length in messages.lengths(head.tobytes())]


def _exactly(connection: socket.socket, size: int, until: float) -> NDArray[np.uint8]:
    """So many bytes, in memory that nobody has to clear first."""
    found = np.empty(size, dtype=np.uint8)
    view, got = found.data, 0
    while got < size:
        connection.settimeout(max(until - time.monotonic(), _LEAST_S))
        piece = connection.recv_into(view[got:])
        if not piece:
            raise ConnectionResetError("the process has gone")
        got += piece
    return found
