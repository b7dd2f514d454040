"""``Runtime``: a server of one's own, in a process that this one starts and ends.

Programs use it like any other server. The process ends with ``shutdown()``, with the ``with`` block, when the object is
no longer used, or when this process ends, however it ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any

from sglite.lang.backends.endpoint import RuntimeEndpoint
from sglite.lang.errors import BackendError

_READY = "sglite is ready at "
_KEY_VARIABLE = "SGLITE_API_KEY"
_KEPT_LINES = 20
_SHUTDOWN_SECONDS = 15.0


class Runtime(RuntimeEndpoint):
    """Starts a server for ``model_path`` (None: the bundled model) and talks to it.

    ``engine_args``: as for ``Engine``, and ``host`` and ``port`` (default: a free one). ``log_level``: of the server,
    whose log goes to this process's standard error. ``launch_timeout``: seconds until it must be ready.
    ``api_key``: the key that the server asks for. BackendError, with the server's last words, if it does not start.
    """

    def __init__(
        self,
        model_path: str | None = None,
        *,
        log_level: str = "error",
        launch_timeout: float = 300.0,
        api_key: str | None = None,
        chat_template_name: str | None = None,
        **engine_args: Any,
    ) -> None:
        given = {"port": 0, **engine_args, "model_path": model_path, "log_level": log_level}
        self._process = _Process(_flags(given), api_key)
        self._finalizer = weakref.finalize(self, self._process.end)
        try:
            self.url = self._process.wait_until_ready(launch_timeout)
            super().__init__(self.url, api_key=api_key, chat_template_name=chat_template_name)
        except BaseException:
            self.shutdown()
            raise

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def shutdown(self) -> None:
        """Ends the server; safe to call twice."""
        self._finalizer()

    def generate(
        self, prompt: str | list[str], sampling_params: Mapping[str, Any] | None = None, **fields: Any
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """``POST /generate``, blocking: an object with ``text`` and ``meta_info``, a list of them for a batch."""
        body = {"text": prompt, "sampling_params": dict(sampling_params or {}), **fields}
        answer: dict[str, Any] | list[dict[str, Any]] = self.call("/generate", body)
        return answer

    async def async_generate(
        self, prompt: str, sampling_params: Mapping[str, Any] | None = None, **fields: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """``POST /generate`` as a stream of cumulative objects."""
        body = {"text": prompt, "sampling_params": dict(sampling_params or {}), **fields, "stream": True}
        async for event in self.stream("/generate", body):
            yield event

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


class _Process:
    """The server's process and what it says."""

    def __init__(self, flags: list[str], api_key: str | None) -> None:
        environment = {**os.environ, **({_KEY_VARIABLE: api_key} if api_key is not None else {})}
        command = [sys.executable, "-m", "sglite", "serve", *flags, "--parent-pid", str(os.getpid())]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            errors="replace",
        )
        self.pid = self._process.pid
        self._owner = os.getpid()
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._url: str | None = None
        self._told = threading.Event()
        self._threads = [
            threading.Thread(target=read, name="sglite-runtime-log", daemon=True)
            for read in (self._read_output, self._read_errors)
        ]
        for thread in self._threads:
            thread.start()

    def wait_until_ready(self, seconds: float) -> str:
        """The server's address; BackendError if it ends before, or takes longer."""
        self._told.wait(seconds)
        if self._url is not None:
            return self._url
        if not self._told.is_set():
            raise BackendError(f"the server was not ready within launch_timeout={seconds:g} s; {self._last_words()}")
        code = self._process.wait()
        self._threads[1].join(1.0)
        raise BackendError(f"the server ended with exit code {code} before it was ready; {self._last_words()}")

    def end(self) -> None:
        """Asks the process to end, and makes it. A forked child of the process that started it leaves it alone."""
        if os.getpid() != self._owner:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_SHUTDOWN_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for thread in self._threads:
            thread.join(1.0)

    def _last_words(self) -> str:
        return f"its last words: {' | '.join(self._lines)}" if self._lines else "it said nothing"

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                if line.startswith(_READY):
                    self._url = line[len(_READY) :].strip()
                    self._told.set()
        self._told.set()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as errors:
            for line in errors:
                self._lines.append(line.rstrip())
                print(line, end="", file=sys.stderr)


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    """The server's flags for keyword arguments: ``max_total_tokens=4096`` is ``--max-total-tokens=4096``."""
    flags = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags.append(f"--{flag}={value}")
    return flags
