"""Asks ``/health`` 20 times a second from a process of its own: how long others wait while something goes on.

Beside it, a server that does nothing is asked in the same moment: what the machine itself adds.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

PERIOD = 0.05
_REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass(frozen=True)
class Seen:
    """Seconds, 99th percentile and worst, of ``/health`` and of the server that does nothing; failures."""

    count: int
    p50: float
    p99: float
    worst: float
    still_p99: float
    still_worst: float
    failed: int

    def __str__(self) -> str:
        own = f"p50 {1000 * self.p50:.1f}, p99 {1000 * self.p99:.0f}, worst {1000 * self.worst:.0f} ms"
        return f"{own} of {self.count} (machine alone: {1000 * self.still_p99:.0f}, {1000 * self.still_worst:.0f})"


class Probe:
    """``with Probe(port) as probe: ...`` and then ``probe.seen``."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.seen: Seen

    def __enter__(self) -> Probe:
        command = [sys.executable, __file__, str(self._port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: Any) -> None:
        said, _ = self._process.communicate("", timeout=30)
        self.seen = Seen(**json.loads(said))


def _still(ready: list[int]) -> None:
    """The server that does nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready.append(listener.getsockname()[1])
        connection, _ = listener.accept()
        while connection.recv(4096):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def _ask(connection: socket.socket) -> float:
    began = time.perf_counter()
    connection.sendall(_REQUEST)
    if b" 200 " not in connection.recv(65536)[:16]:
        raise OSError
    return time.perf_counter() - began


def _connected(port: int) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", port), 30)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def main() -> None:
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        ready: list[int] = []
        threading.Thread(target=_still, args=(ready,), daemon=True).start()
        while not ready:
            time.sleep(0.01)
        os.write(writer, str(ready[0]).encode())
        os.close(writer)
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)
    os.close(writer)
    still, own = _connected(int(os.read(reader, 16))), _connected(int(sys.argv[1]))
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    times: list[float] = []
    alone: list[float] = []
    failed = 0
    while not stop.wait(PERIOD):
        alone.append(_ask(still))
        try:
            times.append(_ask(own))
        except OSError:
            failed += 1
            own.close()
            with contextlib.suppress(OSError):
                own = _connected(int(sys.argv[1]))
    times, alone = sorted(times) or [0.0], sorted(alone) or [0.0]
    found = Seen(
        len(times), times[len(times) // 2], times[int(len(times) * 0.99)], times[-1],
        alone[int(len(alone) * 0.99)], alone[-1], failed,
    )  # fmt: skip
    print(json.dumps(found.__dict__))
    os.kill(child, 9)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
