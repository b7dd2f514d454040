"""``sglite serve`` over an engine's process whose steps are scripted: ``scripted_server.py FOLDER PORT JSON WORDS...``.

``JSON``: options of the server; ``WORDS``: of ``scripted_process``. As a module: ``Started``, such a server in a
process of its own.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
from scripted_process import SIZES, command

READY = "sglite is ready at "


class Started:
    """A server and the processes it consists of."""

    def __init__(self, folder: Path, *words: str, port: int = 0, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(folder), str(port), json.dumps(options), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line.startswith(READY), (line, self.process.stderr.read())
        self.url = line[len(READY) :].strip()
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self.log: list[str] = []
        threading.Thread(target=self._drain, args=(self.process.stdout,), daemon=True).start()
        threading.Thread(target=self._drain, args=(self.process.stderr,), daemon=True).start()

    def _drain(self, stream: Any) -> None:
        for line in stream:
            self.log.append(line)

    @property
    def engine_pid(self) -> int:
        """Of the engine's process: the server's only child."""
        (pid,) = children(self.process.pid)
        return pid

    def generate(self, tokens: int, **fields: Any) -> httpx.Response:
        """``POST /generate``."""
        body = {"input_ids": [41, 42], "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}, **fields}
        return self.http.post("/generate", json=body)

    def signal(self, number: int) -> None:
        """To the server's own process."""
        os.kill(self.process.pid, number)

    def close(self) -> None:
        """Ends it, if it has not ended."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def children(pid: int) -> list[int]:
    """Processes that ``pid`` has started."""
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether a process is there and no mere entry of a table."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def settles(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether something becomes true before long."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def main() -> None:
    from sglite.runtime.config import EngineArgs
    from sglite.runtime.engine.child import EngineProcess
    from sglite.runtime.engine.spawned import Spawned
    from sglite.runtime.serve import launch
    from sglite.runtime.serve.options import ServeOptions

    folder, port, given, *words = sys.argv[1:]
    spawn = functools.partial(EngineProcess, command(*words))
    with mock.patch.object(launch, "Spawned", functools.partial(Spawned, spawn=spawn)):
        launch.serve(EngineArgs(model_path=folder, **SIZES), ServeOptions(port=int(port), **json.loads(given)))


if __name__ == "__main__":
    main()
