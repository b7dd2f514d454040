"""What a client and an engine in another process say to each other; see ``wire`` for how.

    client --LoadModel, then Submit, Abort, Ask ...--> engine
    client <--Loaded or NotLoaded, then Outputs ...---- engine

Every message stands for one operation of ``EngineClient``, carried out in the order in which they were sent. ``Ask``
and ``AskWeights`` are answered by one ``Answer`` with their number; ``Outputs`` has what came of a step, or of several
in quick succession.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.config import EngineArgs, EngineConfig
from sglite.runtime.protocol import GenerateRequest, RequestOutput, WeightOrder

Question = Literal["statistics", "flush_cache", "program_info", "pause", "resume"]


class LoadModel(msgspec.Struct, tag="load", frozen=True, kw_only=True):
    """The first message: load the model in ``folder``. ``log_level``: of the records that are wanted back.

    ``weights``: the folder of other weights, where those of ``folder`` have been replaced.
    """

    args: EngineArgs
    folder: str
    log_level: int
    weights: str = ""


class Submit(msgspec.Struct, tag="submit", frozen=True):
    """Start requests, together."""

    requests: list[GenerateRequest]


class Abort(msgspec.Struct, tag="abort", frozen=True):
    """End a request."""

    request_id: str


class AbortAll(msgspec.Struct, tag="abort_all", frozen=True):
    """End every request; ``message``: what they are told."""

    message: str


class CompileAhead(msgspec.Struct, tag="compile", frozen=True):
    """Compile a constraint that will be needed."""

    spec: ConstraintSpec


class Unpin(msgspec.Struct, tag="unpin", frozen=True):
    """Forget the pins whose names begin so."""

    prefix: str


class Park(msgspec.Struct, tag="park", frozen=True):
    """What is pinned under names that begin so is not needed for about so many seconds."""

    pin: str
    expected_s: float | None


class Ask(msgspec.Struct, tag="ask", frozen=True):
    """A question, or an operation that says when it is done; ``argument``: the program's name, the mode of a pause."""

    number: int
    question: Question
    argument: str = ""


class AskWeights(msgspec.Struct, tag="weights", frozen=True):
    """Read or replace the model's weights."""

    number: int
    order: WeightOrder


class Shutdown(msgspec.Struct, tag="shutdown", frozen=True):
    """Give every open request its end, then end the process."""


ToEngine = LoadModel | Submit | Abort | AbortAll | CompileAhead | Unpin | Park | Ask | AskWeights | Shutdown


class Loaded(msgspec.Struct, tag="loaded", frozen=True, kw_only=True):
    """The model is loaded; what the client must know of it, and the engine's first statistics."""

    config: EngineConfig
    eos_ids: tuple[int, ...]
    weight_bytes: int
    statistics: dict[str, Any]


class NotLoaded(msgspec.Struct, tag="not_loaded", frozen=True):
    """Why the model could not be loaded, in one line. ``users``: the caller's words are to be changed for it."""

    message: str
    users: bool


class Outputs(msgspec.Struct, tag="outputs", frozen=True):
    """What became of requests; one output a request."""

    outputs: list[RequestOutput]


class Answer(msgspec.Struct, tag="answer", frozen=True):
    """To the question of that number; ``error``: why there is none."""

    number: int
    value: Any = None
    error: str | None = None


class Dying(msgspec.Struct, tag="dying", frozen=True):
    """The step loop has failed and the process ends; every open request has been told."""

    message: str


class LogRecord(msgspec.Struct, tag="log", frozen=True):
    """A line for the client's log, which is where the process's own log goes."""

    logger: str
    level: int
    text: str


FromEngine = Loaded | NotLoaded | Outputs | Answer | Dying | LogRecord
