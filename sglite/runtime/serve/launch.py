"""Starting the server: bind, load, announce, run until told to stop.

The address is bound before the model is loaded, so that a port in use is known at once, and listened on afterwards,
so that nobody waits in a queue that nobody serves.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from dataclasses import asdict

import uvicorn

from sglite.runtime.config import ConfigError, EngineArgs
from sglite.runtime.engine.engine import Engine
from sglite.runtime.serve.app import create_app
from sglite.runtime.serve.options import ServeOptions

READY_LINE = "sglite is ready at "
"""What the line on standard output begins with that says where the server listens."""
_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep idle connections, so that none is closed while a request is on its way."""
_DRAIN_SECONDS = 5
_PARENT_POLL_SECONDS = 0.5


def serve(args: EngineArgs, options: ServeOptions) -> None:
    """Serves until SIGINT or SIGTERM. Raises ``ValueError``, in one line, for what cannot be served."""
    if options.parent is not None:
        threading.Thread(target=_follow, args=(options.parent,), name="sglite-parent", daemon=True).start()
    with _bound(options) as listener, Engine(**asdict(args)) as engine:
        config = uvicorn.Config(
            create_app(engine, options),
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
            server_header=False,
        )
        _Announced(config, options.host, listener).run(sockets=[listener])


class _Announced(uvicorn.Server):
    """Says where it listens, once it does."""

    def __init__(self, config: uvicorn.Config, host: str, listener: socket.socket) -> None:
        super().__init__(config)
        shown = f"[{host}]" if ":" in host else host
        self._url = f"http://{shown}:{listener.getsockname()[1]}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if self.started:
            print(f"{READY_LINE}{self._url}", flush=True)


def _bound(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {options.host} port {options.port}: {error.strerror or error}") from None
    return listener


def _follow(parent: int) -> None:
    """Ends this process once ``parent`` is its parent no more, which then has ended."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
