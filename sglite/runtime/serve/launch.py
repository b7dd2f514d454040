"""Starting and stopping the server: bind, start the engine's process, announce, run until told to stop, finish.

The address is bound before the model is loaded, so that a port in use is known at once, and listened on afterwards,
so that nobody waits in a queue that nobody serves. SIGTERM or SIGINT let what is being answered end, for
``ServeOptions.drain_s`` at most, while new requests are refused (``drain``); a second signal ends everything at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict
from types import FrameType

import uvicorn

from sglite.runtime import garbage, huge_pages
from sglite.runtime.config import ConfigError, EngineArgs
from sglite.runtime.engine.engine import Engine, EngineError
from sglite.runtime.engine.spawned import Spawned
from sglite.runtime.parse.detect import formats_of
from sglite.runtime.serve.app import create_app
from sglite.runtime.serve.banner import EngineFacts, banner
from sglite.runtime.serve.connection import Connection
from sglite.runtime.serve.drain import Drain
from sglite.runtime.serve.options import ServeOptions
from sglite.runtime.serve.serving import defaults_of

logger = logging.getLogger(__name__)
_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep idle connections, so that none is closed while a request is on its way."""
_BACKLOG = 2048
_LAST_SECONDS = 2.0
"""How long answers may take to end once their generations have been ended."""
_DRAIN_POLL_SECONDS = 0.02
_PARENT_POLL_SECONDS = 0.5


def serve(args: EngineArgs, options: ServeOptions) -> None:
    """Serves until SIGINT or SIGTERM. Raises ``ValueError``, in one line, for what cannot be served, and
    ``SystemExit`` with a line for what failed on our side."""
    if options.parent is not None:
        threading.Thread(target=_follow, args=(options.parent,), name="sglite-parent", daemon=True).start()
    with _bound(options) as listener:
        launching = Spawned(args, restart=options.restart_engine)
        try:
            engine = Engine(launch=lambda _: launching, **asdict(args))
        except EngineError as error:
            sys.exit(f"sglite serve: {error}")
        with engine:
            server = _Server(engine, options, launching, listener)
            _listen(listener, options)
            server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says where it listens, once it does, and drains before it stops."""

    def __init__(self, engine: Engine, options: ServeOptions, launching: Spawned, listener: socket.socket) -> None:
        self._drain = Drain(create_app(engine, options))
        config = uvicorn.Config(
            self._drain,
            http=Connection,
            ws="none",
            loop="auto",
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
            server_header=False,
            proxy_headers=False,  # nobody asks where a request came from
            backlog=_BACKLOG,
        )
        super().__init__(config)
        self._engine = engine
        self._options = options
        self._launching = launching
        shown = f"[{options.host}]" if ":" in options.host else options.host
        self._url = f"http://{shown}:{listener.getsockname()[1]}"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._signalled = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        garbage.settle()
        huge_pages.use()
        if self.started and not self._signalled:
            print(self._banner(), flush=True)

    def _banner(self) -> str:
        engine, options = self._engine, self._options
        names = options.tool_call_parser, options.reasoning_parser
        formats = formats_of(engine.chat_template, engine.tokenizer, *names)
        facts = EngineFacts.of(engine.model_path, engine.config, not isinstance(engine.pooling, str))
        return banner(facts, options, self._url, formats, defaults_of(engine, options))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end, another one is the end, of both processes.

        Nothing is left for uvicorn to raise again: a server that was asked to stop and did has not failed.
        """
        if self._signalled:
            self._launching.cancel()
            os._exit(128 + sig)
        self._signalled = True
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_to_stop)

    def _begin_to_stop(self) -> None:
        self._drain.begin()
        self._stopping = asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        """Waits for what is under way, ends what takes too long, then lets uvicorn end."""
        if not self._is_quiet:
            message = "stopping when %d requests have been answered, or in %g s; a second signal stops at once"
            logger.warning(message, self._drain.num_active, self._options.drain_s)
        if not await self._quiet(self._options.drain_s):
            logger.warning("%d requests took too long and are ended", self._drain.num_active)
            self._engine.abort_all("the server is stopping")
            await self._quiet(_LAST_SECONDS)
        self.should_exit = True

    async def _quiet(self, seconds: float) -> bool:
        """Whether nothing is under way within so many seconds."""
        end = time.monotonic() + seconds
        while not self._is_quiet and time.monotonic() < end:
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
        return self._is_quiet

    @property
    def _is_quiet(self) -> bool:
        return self._drain.num_active == 0 and self._engine.num_open == 0


def _bound(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # Spelled out, because asyncio switches Nagle's delays off only where it reads the protocol.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
    except OSError as error:
        listener.close()
        raise _cannot_listen(options, error) from None
    return listener


def _listen(listener: socket.socket, options: ServeOptions) -> None:
    """Two that have bound one port while neither listened hear of it here."""
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        raise _cannot_listen(options, error) from None


def _cannot_listen(options: ServeOptions, error: OSError) -> ConfigError:
    why = (error.strerror or str(error)).lower()
    return ConfigError(f"cannot listen on {options.host} port {options.port}: {why}; give another --host or --port")


def _follow(parent: int) -> None:
    """Ends this process once ``parent`` is its parent no more, which then has ended."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
