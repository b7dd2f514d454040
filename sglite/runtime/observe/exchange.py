"""One HTTP request and the engine's requests that it began: names, times and numbers.

    received ── body complete ── request begun ── first run ── first token ── last token ── ended ── answered
    Exchange    Exchange         Tracked          (accounting)  Tracked        Tracked       Tracked  Exchange

Times are those of one monotonic clock in seconds; ``wall`` relates them to the calendar.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from sglite.runtime.protocol import Accounting

MAX_TRACKED = 1024
"""Engine requests that an exchange lists; further ones are counted."""
MAX_NAME = 128
"""Characters of a name that a client gave."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+=-]{0,127}")
_TRACE = re.compile(r"[\x20-\x7e]{1,512}")


@dataclass(slots=True, eq=False)
class Tracked:
    """One request of the engine. ``rid``: what the client calls it; ``program``: the program it is part of. It does not
    know its exchange: what is forgotten goes at once, without a collection."""

    rid: str
    program: str
    begun_at: float
    admitted_at: float | None = None
    """When the engine took it in, known with its first output; behind another of its sequence later than begun."""
    first_at: float | None = None
    last_at: float | None = None
    ended_at: float | None = None
    num_tokens: int = 0
    accounting: Accounting = field(default_factory=Accounting)
    """As of its first token, then as of its end."""
    finish: str | None = None
    code: str | None = None
    """Why it was aborted or failed: a class, not a message."""
    constrained: bool = False

    @property
    def state(self) -> str:
        """``queued`` until its first token is there, ``running``, ``finished``."""
        if self.ended_at is not None:
            return "finished"
        return "queued" if self.first_at is None else "running"


@dataclass(slots=True, eq=False)
class Exchange:
    """One HTTP request. ``id``: the client's ``X-Request-Id``, or one of ours; ``route``: one of the server's paths."""

    id: str
    route: str
    method: str
    received_at: float
    wall: float
    parent: Mapping[str, str] = field(default_factory=dict)
    """W3C trace context, as it came."""
    body_at: float | None = None
    """When the last byte of the request was there."""
    answered_at: float | None = None
    status: int | None = None
    streamed: bool = False
    tracked: list[Tracked] = field(default_factory=list)
    num_tracked: int = 0
    num_open: int = 0

    @property
    def began_at(self) -> float:
        """From when on the client waits for us, not we for it."""
        return self.received_at if self.body_at is None else self.body_at

    @property
    def complete(self) -> bool:
        """Answered, and none of its requests goes on."""
        return self.answered_at is not None and not self.num_open


current_exchange: ContextVar[Exchange | None] = ContextVar("sglite_exchange", default=None)
"""The HTTP request on whose behalf something happens; tasks inherit it from whoever makes them."""


def request_id(given: str | None) -> str:
    """``given`` where it is fit to be a header, a name in a log and part of a path; else a new one."""
    return given if given is not None and _ID.fullmatch(given) else os.urandom(16).hex()


def trace_context(headers: Mapping[str, str]) -> dict[str, str]:
    """The W3C trace context among ``headers``, as far as it is well-formed text."""
    if not headers:
        return {}
    names = ("traceparent", "tracestate")
    return {name: headers[name] for name in names if name in headers and _TRACE.fullmatch(headers[name])}
