"""The process of an engine: ``python -m sglite.runtime.engine.process --fd N``, started by its client, see ``child``.

The socket of that number is all it knows of the world. It loads what the first message says, runs the step loop on a
thread and carries out what comes. When the socket ends it ends, at once and whatever it is doing: nobody is left to
compute for. It heeds no SIGINT and no SIGTERM, which terminals and service managers send to every process of a group:
its client decides when there is nothing left to do. Its log goes to the client's, over the same socket.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec

from sglite.runtime import garbage
from sglite.runtime.engine.assemble import assemble, text_folder
from sglite.runtime.engine.client import EngineClient
from sglite.runtime.engine.messages import (
    Abort,
    AbortAll,
    Answer,
    Ask,
    AskWeights,
    CompileAhead,
    Dying,
    Loaded,
    LoadModel,
    LogRecord,
    NotLoaded,
    Outputs,
    Park,
    Shutdown,
    Submit,
    ToEngine,
    Unpin,
)
from sglite.runtime.engine.paced import PacedOutputs
from sglite.runtime.engine.wire import Channel, WireError
from sglite.runtime.protocol import FinishReason, PauseMode, RequestOutput, UpdateWeights

logger = logging.getLogger(__name__)
_DRAIN_SECONDS = 5.0
"""How long the last words may take to be read."""
_NAME = "sglite-engine"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the process; its exit code: 0 when it was told to end, 1 and 2 if it did not load, 3 after a failure, 4 if
    what came made no sense."""
    parser = argparse.ArgumentParser(prog=_NAME)
    parser.add_argument("--fd", type=int, required=True, help="number of the socket that leads to the client")
    given = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(_NAME)
    return EngineServer(Channel(socket.socket(fileno=given.fd), ToEngine)).run()


class EngineServer:
    """Serves one client over ``channel``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._orders: queue.SimpleQueue[LoadModel] = queue.SimpleQueue()
        self._client: EngineClient | None = None
        self._outputs: list[RequestOutput] = []
        """Of the step whose outputs are being handed out."""
        self._paced = PacedOutputs(self._send_outputs)
        self._ends: queue.SimpleQueue[int] = queue.SimpleQueue()
        """Exit codes, as soon as there is a reason to end."""

    def run(self) -> int:
        """Until there is a reason to end; the exit code."""
        threading.Thread(target=self._read, name="sglite-requests", daemon=True).start()
        code = self._load() or self._ends.get()
        if self._client is not None:
            self._client.close()
        self._paced.flush()
        self._channel.drain(_DRAIN_SECONDS)
        return code

    def _load(self) -> int:
        """Load what the client asks for and say what came of it; an exit code, 0 if it was loaded."""
        try:
            importlib.import_module("sglite.runtime.executor.build")  # takes its time, and needs no order
            from sglite.runtime.text.tokenizer import load_tokenizer

            order = self._orders.get()
            _log_to(self._channel, order.log_level)
            folder, args = Path(order.folder), order.args
            tokenizer = None if args.skip_tokenizer_init else load_tokenizer(text_folder(args, folder))
            launched = assemble(args, folder, tokenizer, self._hand_on, self._die, compile_apart=True)
            _replace_weights(launched.client, order.weights)
        except (ValueError, ModuleNotFoundError) as error:
            self._channel.send(NotLoaded(_one_line(error), users=True))
            return 2
        except Exception as error:
            logger.exception("the model could not be loaded")
            self._channel.send(NotLoaded(_one_line(error), users=False))
            return 1
        self._client = launched.client
        garbage.settle()
        loaded = Loaded(
            config=launched.config,
            eos_ids=launched.eos_ids,
            weight_bytes=launched.weight_bytes,
            statistics=dict(launched.client.load().statistics),
        )
        self._channel.send(loaded)
        return 0

    # --- what comes -------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Carry out what the client says, until the socket ends; then so does the process."""
        code = 0
        try:
            for message in self._channel.messages():
                if isinstance(message, LoadModel):
                    self._orders.put(message)
                elif isinstance(message, Shutdown) and self._client is not None:
                    self._ends.put(0)
                elif isinstance(message, Shutdown):
                    break  # nothing is open, and loading cannot be interrupted
                else:
                    self._carry_out(message)
        except WireError as error:
            logger.error("the engine ends, because %s", error)
            code = 4
        except RuntimeError as error:  # the engine was shut down while messages were on their way
            logger.debug("%s", error)
            return
        os._exit(code)

    def _carry_out(self, message: Any) -> None:
        client = self._client
        if client is None:
            raise WireError(f"a {type(message).__name__} came before a model was loaded")
        if isinstance(message, Submit):
            client.submit_all(message.requests, self._outputs_of)
        elif isinstance(message, Ask):
            self._reply(message.number, _ask(client, message))
        elif isinstance(message, AskWeights):
            self._reply(message.number, client.weights(message.order))
        elif isinstance(message, Abort):
            client.abort(message.request_id)
        elif isinstance(message, AbortAll):
            client.abort_all(message.message)
        elif isinstance(message, CompileAhead):
            client.compile_ahead(message.spec)
        elif isinstance(message, Unpin):
            client.unpin(message.prefix)
        elif isinstance(message, Park):
            client.park(message.pin, message.expected_s)

    def _reply(self, number: int, found: Future[Any]) -> None:
        """Say what a question came to, as soon as that is known."""

        def send(done: Future[Any]) -> None:
            error = done.exception()
            self._paced.flush()
            if error is None:
                self._channel.send(Answer(number, msgspec.to_builtins(done.result())))
            else:
                self._channel.send(Answer(number, error=f"{type(error).__name__}: {error}"))

        found.add_done_callback(send)

    # --- what goes, on the engine's thread --------------------------------------------------------------------

    def _outputs_of(self, output: RequestOutput) -> None:
        self._outputs.append(output)

    def _hand_on(self) -> None:
        """What one step gave."""
        outputs, self._outputs = self._outputs, []
        if outputs:
            self._paced.put(outputs, more=self._client is not None and self._client.num_open > 0)

    def _send_outputs(self, outputs: list[RequestOutput]) -> None:
        """As one message."""
        try:
            self._channel.send(Outputs(outputs))
        except WireError:
            for output in outputs:
                self._send_alone(output)

    def _send_alone(self, output: RequestOutput) -> None:
        """One of several that are too long together; too long by itself, its request fails."""
        try:
            self._channel.send(Outputs([output]))
        except WireError as error:
            reason = FinishReason(type="error", code="internal", message=f"the output is too long: {error}")
            self._channel.send(Outputs([RequestOutput(request_id=output.request_id, finish_reason=reason)]))
            if self._client is not None:
                self._client.abort(output.request_id)

    def _die(self, message: str) -> None:
        self._paced.flush()
        self._channel.send(Dying(message))
        self._ends.put(3)


def _ask(client: EngineClient, ask: Ask) -> Future[Any]:
    """The answer to a question, which is found between two steps."""
    if ask.question == "statistics":
        return client.statistics()
    if ask.question == "flush_cache":
        return client.flush_cache()
    if ask.question == "program_info":
        return client.program_info(ask.argument)
    if ask.question == "resume":
        return client.resume()
    return client.pause(msgspec.convert(ask.argument, PauseMode))


def _replace_weights(client: EngineClient, folder: str) -> None:
    """Before anybody asks for anything. ``ValueError``: those in ``folder`` cannot be used."""
    if folder and not (result := client.weights(UpdateWeights(folder=folder)).result()).success:
        raise ValueError(result.message)


class _ToClient(logging.Handler):
    """Sends records to the client, formatted, with their exceptions."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """See logging."""
        try:
            self._channel.send(LogRecord(record.name, record.levelno, self.format(record)))
        except Exception:
            self.handleError(record)


def _log_to(channel: Channel, level: int) -> None:
    root = logging.getLogger()
    root.handlers[:] = [_ToClient(channel)]
    root.setLevel(logging.WARNING)
    logging.getLogger("sglite").setLevel(level)


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name!r} is not installed; pip install 'sglite[runtime]'"
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    os._exit(main())  # everything has been said, and what the threads hold the system takes back
