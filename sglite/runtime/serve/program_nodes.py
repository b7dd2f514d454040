"""The nodes of ``POST /program``: what a call consists of, read from JSON and checked before anything begins.

    {"version": 1, "program": "name", "call": 7, "lease_s": 60, "nodes": [
        {"op": "open", "seq": "0"},
        {"op": "extend", "seq": "0", "text": "Question: ..."},
        {"op": "generate", "id": "a", "seq": "0", "sampling_params": {...}, "stream": true}]}

``docs/program-protocol.md`` says what each does. Here is only what each looks like.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from sglite.runtime.serve.errors import Refused

T = TypeVar("T")
PROGRAM_VERSION = 1
MAX_NODES = 4096
"""Of one call."""
MAX_BRANCHES = 1024
MAX_CHOICES = 4096
MIN_LEASE = 1.0
MAX_LEASE = 3600.0

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", tag=str.lower):
    """One of the operations below. ``id``: gives it an answer, and names the place behind it for ``truncate``."""

    id: Annotated[str, msgspec.Meta(max_length=128)] = ""
    seq: Name


class Open(Node, frozen=True, kw_only=True):
    """A new, empty sequence."""


class Extend(Node, frozen=True, kw_only=True):
    """Known text follows; it is encoded together with its neighbours once something needs it."""

    text: str


class Hints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where in the program's graph a request stands."""

    node: Annotated[str, msgspec.Meta(max_length=256)] = ""
    group: Annotated[str, msgspec.Meta(max_length=256)] = ""
    group_size: Count = 1
    upcoming: Count = 0


class Generate(Node, frozen=True, kw_only=True):
    """Text from the model, which then belongs to the sequence. Fields as of ``POST /generate``."""

    sampling_params: dict[str, Any] = {}
    stream: bool = False
    return_logprob: bool | None = None
    logprob_start_len: int | None = None
    top_logprobs_num: Count | None = None
    token_ids_logprob: list[Count] | None = None
    return_text_in_logprobs: bool | None = None
    priority: int | None = None
    timeout_s: Seconds | None = None
    queue_timeout_s: Seconds | None = None
    hints: Hints | None = None

    def options(self) -> dict[str, Any]:
        """What was given besides sampling, by name."""
        given = {name: getattr(self, name) for name in _OPTIONS}
        found = {name: value for name, value in given.items() if value is not None}
        return {**found, "hints": _plain(self.hints)}


_OPTIONS = (
    "return_logprob", "logprob_start_len", "top_logprobs_num", "token_ids_logprob", "return_text_in_logprobs",
    "priority", "timeout_s", "queue_timeout_s",
)  # fmt: skip


class Score(Node, frozen=True, kw_only=True):
    """Log probabilities of each choice as continuation; ``unconditional``: also without the sequence before it."""

    choices: Annotated[
        list[Annotated[str, msgspec.Meta(min_length=1)]], msgspec.Meta(min_length=1, max_length=MAX_CHOICES)
    ]
    unconditional: bool = False
    hints: Hints | None = None


class Fork(Node, frozen=True, kw_only=True):
    """New sequences, named ``into``, that start from this one; what they share is computed once."""

    into: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=MAX_BRANCHES)]


class Truncate(Node, frozen=True, kw_only=True):
    """Takes back everything behind the node called ``after``; empty: everything since the sequence began."""

    after: str = ""


class Park(Node, frozen=True, kw_only=True):
    """A hint: the program waits for something else, for about so long."""

    expected_s: Seconds | None = None


class Close(Node, frozen=True, kw_only=True):
    """The program needs the sequence no more."""


class Abort(Node, frozen=True, kw_only=True):
    """Ends the generation of node ``target``. At once: it does not wait for its turn."""

    target: Name


AnyNode = Open | Extend | Generate | Score | Fork | Truncate | Park | Close | Abort


class CallBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call. ``call``: its number, higher than those of the program's calls before it, so that none is made twice."""

    version: int
    program: Name
    call: Count | None = None
    lease_s: Annotated[float, msgspec.Meta(ge=MIN_LEASE, le=MAX_LEASE)] = 60.0
    nodes: Annotated[list[AnyNode], msgspec.Meta(max_length=MAX_NODES)]


class RenewBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Programs whose client is alive."""

    programs: Annotated[list[Name], msgspec.Meta(max_length=65_536)]


class CloseBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sequences of programs that are needed no more."""

    programs: Annotated[dict[Name, list[Name]], msgspec.Meta(max_length=65_536)]


def read_call(data: bytes) -> CallBody:
    """A call from JSON text. ``Refused`` says where it is wrong."""
    body = read_as(CallBody, data, "/program")
    if body.version != PROGRAM_VERSION:
        message = f"version {body.version} is not spoken here; this server speaks version {PROGRAM_VERSION}"
        raise Refused(400, message, param="version")
    return body


def read_as(kind: type[T], data: bytes, where: str) -> T:
    """A body of ``kind`` from JSON text. ``Refused`` says where it is wrong."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise Refused(400, f"{where}: {error}") from None
    except RecursionError:
        raise Refused(400, "the body is nested too deeply") from None


def hints_of(node: Generate | Score) -> dict[str, Any] | None:
    """The node's hints as the engine takes them."""
    return _plain(node.hints)


def _plain(hints: Hints | None) -> dict[str, Any] | None:
    return None if hints is None else msgspec.structs.asdict(hints)
