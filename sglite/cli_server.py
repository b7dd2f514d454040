"""A server for one command: given by URL, or started for it and ended with it.

A started server shows how far loading is on this terminal, and is in a session of its own, so that Ctrl-C, which stops
an answer, does not reach it. It ends when this process does, however that ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

READY = "sglite is ready at "
"""What the server's line begins with that says where it listens."""
_END_SECONDS = 15.0


class ServerEnded(ValueError):
    """A server that was started for a command and ended before it was ready."""


@contextmanager
def server(url: str | None, model: str | None, flags: Sequence[str] = ()) -> Iterator[str]:
    """The URL of the server at ``url``, or of one that is started for ``model`` (None: the bundled one) and ended.

    ``flags``: more of ``sglite serve``, for a server that is started. ValueError for a URL that is none, or with which
    there is nothing to start; ServerEnded.
    """
    if url is not None:
        if model is not None or flags:
            raise ValueError(f"--url {url} is a server that runs; leave MODEL and its flags out")
        yield checked(url)
        return
    command = [sys.executable, "-m", "sglite", "serve", *([] if model is None else [model])]
    command += ["--port=0", "--host=127.0.0.1", "--no-playground", "--log-level=error", *flags]
    command += ["--parent-pid", str(os.getpid())]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield _ready(process)
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def checked(url: str) -> str:
    """``url`` without a slash or ``/v1`` at its end. ValueError if it is none."""
    if not url.startswith(("http://", "https://")) or len(url.split("://", 1)[1].strip("/")) == 0:
        raise ValueError(f"{url!r} is no URL; write http://127.0.0.1:30000")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(READY):
            # what it says later must not fill the pipe, which nobody reads otherwise
            threading.Thread(target=process.stdout.read, name="sglite-server-output", daemon=True).start()
            return line[len(READY) :].strip()
    raise ServerEnded(f"the server ended with exit code {process.wait()} before it was ready; it says why above")
