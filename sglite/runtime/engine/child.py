"""An engine's process as its client sees it: spawned, told what to load, read from, and ended whatever happens.

The two talk over a socket pair that nobody else can reach. The process ends when the socket does, so that a client that
is killed leaves nothing behind; a client that ends properly sees to it that the process is gone.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sglite.runtime.config import ConfigError
from sglite.runtime.engine.generation import EngineError
from sglite.runtime.engine.messages import FromEngine, Loaded, LoadModel, LogRecord, NotLoaded, Shutdown
from sglite.runtime.engine.wire import Channel, WireError

COMMAND = (sys.executable, "-m", "sglite.runtime.engine.process")
"""Runs an engine; ``--fd N`` is added, the number of its end of the socket."""
_REAP_SECONDS = 0.5
"""How long a process whose socket has ended may take to be gone, before it is killed and after."""
_STDERR = 2
_SPINS = "20000"
"""Of PyTorch's OpenMP threads (GNU's) before they sleep: some hundred microseconds in place of milliseconds."""


class EngineProcess:
    """A process that is being started from the moment this exists.

    Args:
        command: what to run, see ``COMMAND``.
    """

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*command, "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,  # standard output is the client's, who may have promised what stands there
                env=_surroundings(os.environ),
            )
        self._channel = Channel(ours, FromEngine)
        self._said = ""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: Any) -> None:
        """See ``Channel.send``."""
        self._channel.send(message)

    def load(self, order: LoadModel) -> None:
        """Say what to load; ``loaded`` has the answer."""
        self.send(order)

    def loaded(self) -> Loaded:
        """Wait until the model is loaded.

        Raises ``ConfigError``, in the words of the process, for what the caller can change, else ``EngineError``.
        """
        for message in self.messages():
            if isinstance(message, NotLoaded):
                raise ConfigError(message.message) if message.users else EngineError(message.message)
            if isinstance(message, Loaded):
                return message
        raise EngineError(f"{self.end()} before it had loaded the model")

    def messages(self) -> Iterator[Any]:
        """What it says until its end, but for log records, which go to the log."""
        while (found := self.receive()) is not None:
            yield from found

    def receive(self, wait: bool = True) -> list[Any] | None:
        """What it has said, as ``messages``; may be nothing, without ``wait`` at once. ``None``: it has ended."""
        try:
            found = self._channel.receive(wait)
        except WireError as error:
            self._said = f"; it was ended because {error}"
            self.kill()
            return None
        others = []
        for message in found or ():
            if type(message) is LogRecord:
                _log(message)
            else:
                others.append(message)
        return None if found is None else others

    def fileno(self) -> int:
        """Of the socket, to know when ``receive`` has something."""
        return self._channel.fileno()

    def end(self) -> str:
        """Have it gone, if need be by force; says how it ended."""
        self._channel.close()
        if not self.wait(_REAP_SECONDS):
            self.kill()
            self.wait(_REAP_SECONDS)
        code = self._process.returncode
        if code is None:
            how = "was killed and is still there"
        else:
            how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        return f"the engine's process (pid {self.pid}) {how}{self._said}"

    def shut_down(self) -> None:
        """Ask it to end its requests and itself; ``messages`` has what it still says."""
        self.send(Shutdown())

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it now."""
        self._process.kill()


def _log(record: LogRecord) -> None:
    logger = logging.getLogger(record.logger)
    if logger.isEnabledFor(record.level):
        logger.log(record.level, "%s", record.text)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


Spawn = Callable[[], EngineProcess]
"""Starts a process."""


def _surroundings(ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that computes.

    PyTorch's threads spin when they have nothing to do. Soon after, others want the cores: those of the native kernels,
    and other processes. Whoever has said how they are to wait is heeded; it is read once, when the library is loaded.
    """
    said = "OMP_WAIT_POLICY" in ours or "GOMP_SPINCOUNT" in ours
    return dict(ours) if said else {**ours, "GOMP_SPINCOUNT": _SPINS}
