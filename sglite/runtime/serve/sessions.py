"""``/open_session``, ``/close_session``, and what ``session_params`` of ``/generate`` mean: prompts that go on.

A session is a tree of requests by ``rid``. A new one goes on after the input and the output of the request it names,
token for token, so that all of it is found in the cache:

    {"id": session, "rid": request}            after that request, which must have ended
    {..., "offset": n}                         after its first n tokens; n < 0: all but the last -n
    {..., "drop_previous_output": true}        after its input
    {..., "replace": true}                     ends it first, and forgets what went on after it; without ``rid`` all
    {"id": session}                            from nothing; in a ``streaming`` session after the latest request

Without ``rid`` there is nothing that an offset could count, so any will do: clients send one from the first request on.
A request of a streaming session that was aborted is as if it had not been, so that the next goes on before it.

Sessions are bounded in number, length and idle time. What they keep are ids; computed values are the cache's.
"""

from __future__ import annotations

import asyncio
import uuid
from array import array
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.engine.admission import MAX_NAME
from sglite.runtime.engine.generation import Generation
from sglite.runtime.serve.body import check_names, read_object
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields, ignored_header
from sglite.runtime.serve.native_schema import CLOSE_SESSION, OPEN_SESSION
from sglite.runtime.serve.responses import json_response
from sglite.runtime.serve.serving import Route

MAX_SESSIONS = 1024
MAX_REQUESTS = 1024
"""Of one session."""
MAX_TOKENS = 2**24
"""Of all sessions together."""
DEFAULT_TIMEOUT = 3600.0
MIN_TIMEOUT = 1.0
MAX_TIMEOUT = 7 * 86_400.0
_MAX_INT = 2**63 - 1
_RETRY_SECONDS = 5
_OPEN_FIELDS = ("capacity_of_str_len", "session_id", "streaming", "timeout")
_PARAMS = ("id", "rid", "offset", "replace", "drop_previous_output")


@dataclass(frozen=True, kw_only=True)
class Params:
    """``session_params``, read."""

    id: str
    rid: str | None
    offset: int | None
    replace: bool
    drop_previous_output: bool


def read_params(value: Any) -> Params | None:
    """``session_params`` of a request; ``None``: it has none. ``Refused`` names the field that is wrong."""
    if value is None or value == {}:
        return None
    if not isinstance(value, dict):
        message = "session_params must be one object; a session goes on with one prompt at a time"
        raise Refused(400, message, param="session_params")
    check_names(value, _PARAMS, "session_params", {})
    fields = Fields(value, "session_params.")
    name = fields.text("id", MAX_NAME)
    if not name:
        raise Refused(400, "session_params.id must name a session; /open_session makes one", param="session_params.id")
    return Params(
        id=name,
        rid=fields.text("rid", MAX_NAME) or None,
        offset=fields.integer("offset", -_MAX_INT, _MAX_INT) or None,
        replace=fields.flag("replace"),
        drop_previous_output=fields.flag("drop_previous_output"),
    )


@dataclass(eq=False)
class _Node:
    """A request of a session. ``outputs`` is filled once its ``generation`` has ended."""

    inputs: array[int]
    outputs: array[int] = field(default_factory=lambda: array("i"))
    generation: Generation | None = None
    parent: str | None = None

    @property
    def size(self) -> int:
        return len(self.inputs) + len(self.outputs)


class _Session:
    def __init__(self, name: str, timeout_s: float, streaming: bool) -> None:
        self.name = name
        self.timeout_s = timeout_s
        self.streaming = streaming
        self.nodes: dict[str, _Node] = {}
        self.used_at = 0.0
        self.timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        return any(node.generation is not None and not node.generation.finished for node in self.nodes.values())


class Turn:
    """A request of a session that is about to begin: its name and its whole input. ``drop``, or ``began`` and then
    ``ended``, must be called."""

    def __init__(self, sessions: Sessions, session: _Session, rid: str, node: _Node) -> None:
        self.rid = rid
        self.input_ids = list(node.inputs)
        self._sessions = sessions
        self._session = session
        self._node = node

    def began(self, generation: Generation) -> None:
        """It is under way."""
        self._node.generation = generation

    def ended(self) -> None:
        """Nobody waits for it any more."""
        self._sessions.settle(self._session, self.rid, self._node)

    def drop(self) -> None:
        """It was refused: nothing can go on after it."""
        self._sessions.forget(self._session, self.rid, self._node)


class Sessions:
    """All sessions. For the server's event loop."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}
        self._tokens = 0

    def routes(self) -> list[Route]:
        """See the module."""
        either = ("GET", "POST")
        return [
            Route("/open_session", either, self._open, body=OPEN_SESSION),
            Route("/close_session", either, self._close, body=CLOSE_SESSION),
        ]

    def counts(self) -> dict[str, int]:
        """Sessions that are open, their requests and all of their tokens."""
        requests = sum(len(session.nodes) for session in self._sessions.values())
        return {"open": len(self._sessions), "requests": requests, "tokens": self._tokens}

    async def begin(self, params: Params, rid: str | None, ids: list[int], bos: int | None) -> Turn:
        """A request that goes on as ``params`` say with ``ids``, whose ``bos`` is taken off if anything precedes it.

        ``Refused`` for a session or request that is not there, and for one that cannot go on.
        """
        session = self._sessions.get(params.id)
        if session is None:
            raise _unknown(params.id)
        rid = rid or uuid.uuid4().hex
        if session.streaming:
            for name, node in list(session.nodes.items()):
                self.settle(session, name, node)
        params = _checked(session, params, rid)
        before, parent = array("i"), None
        if params.replace and params.rid is None:
            for one in list(session.nodes):
                self._remove(session, one)
        if params.rid is not None:
            parent = params.rid
            before = await self._before(session, params, parent)
            if self._sessions.get(session.name) is not session:
                raise _unknown(session.name)
        new = ids[1:] if before and ids and ids[0] == bos else ids
        try:
            whole = before + array("i", new)
        except OverflowError:
            raise Refused(400, "input_ids has an integer that is no token id", param="input_ids") from None
        if not whole:
            raise Refused(400, "the prompt is empty, and nothing precedes it; send some", param="text")
        self._make_room(session, len(whole))
        made = session.nodes[rid] = _Node(whole, parent=parent)
        self._tokens += made.size
        self._touch(session)
        return Turn(self, session, rid, made)

    def settle(self, session: _Session, rid: str, node: _Node) -> None:
        """Keeps the output of a request that has ended; one that failed is forgotten."""
        generation = node.generation
        if generation is None or not generation.finished or session.nodes.get(rid) is not node:
            return
        try:
            event = generation.state()[2]
        except Exception:
            self.forget(session, rid, node)
            return
        if session.streaming and event["meta_info"]["finish_reason"]["type"] == "abort":
            self.forget(session, rid, node)
            return
        node.outputs, node.generation = array("i", event["output_ids"]), None
        self._tokens += len(node.outputs)
        self._touch(session)

    def forget(self, session: _Session, rid: str, node: _Node) -> None:
        """Nothing can go on after ``node``."""
        if session.nodes.get(rid) is node:
            self._remove(session, rid)

    async def _before(self, session: _Session, params: Params, rid: str) -> array[int]:
        """The tokens of the request called ``rid`` that a new one goes on after."""
        node = session.nodes[rid]
        if params.replace:
            if node.generation is not None:
                node.generation.abort()
                await asyncio.wait({asyncio.ensure_future(node.generation.wait())})
            for child in [name for name, one in session.nodes.items() if one.parent == rid]:
                self._remove(session, child)
        self.settle(session, rid, node)
        if session.nodes.get(rid) is not node:
            raise _no_request(session, rid)
        if node.generation is not None:
            message = f"request {rid!r} of the session has not ended; wait for it, or replace it"
            raise Refused(400, message, param="session_params.rid")
        whole = node.inputs if params.drop_previous_output else node.inputs + node.outputs
        if params.offset is None:
            return whole
        if abs(params.offset) > len(whole):
            message = f"session_params.offset={params.offset} is beyond the {len(whole)} tokens before it"
            raise Refused(400, message, param="session_params.offset")
        return whole[: params.offset]

    def _make_room(self, session: _Session, size: int) -> None:
        if len(session.nodes) >= MAX_REQUESTS:
            message = f"the session has {MAX_REQUESTS} requests; replace some, or close it and open another"
            raise Refused(400, message, param="session_params.id")
        if self._tokens + size > MAX_TOKENS:
            message = f"sessions hold {self._tokens} tokens, {MAX_TOKENS} are allowed; close some"
            raise Refused(429, message, code="too_many", retry_after=_RETRY_SECONDS)

    # --- the routes -------------------------------------------------------------------------------------------

    async def _open(self, request: Request) -> Response:
        """``{"session_id", "timeout", "streaming"}`` -> its name. ``capacity_of_str_len`` has no effect."""
        body = await read_object(request)
        check_names(body, _OPEN_FIELDS, "/open_session", {})
        fields = Fields(body)
        fields.integer("capacity_of_str_len", 0, _MAX_INT)
        name = fields.text("session_id", MAX_NAME) or uuid.uuid4().hex
        timeout = fields.number("timeout", MIN_TIMEOUT, MAX_TIMEOUT) or DEFAULT_TIMEOUT
        if name in self._sessions:
            raise Refused(400, f"session {name!r} is open already; close it or choose another name", param="session_id")
        if len(self._sessions) >= MAX_SESSIONS:
            message = f"{MAX_SESSIONS} sessions are open; close some"
            raise Refused(429, message, code="too_many", retry_after=_RETRY_SECONDS)
        session = self._sessions[name] = _Session(name, timeout, fields.flag("streaming"))
        self._touch(session)
        response = json_response(name)
        response.headers.update(ignored_header(body.keys() & {"capacity_of_str_len"}))
        return response

    async def _close(self, request: Request) -> Response:
        """``{"session_id"}``: ends what is under way in it and forgets it."""
        body = await read_object(request)
        check_names(body, ("session_id",), "/close_session", {})
        name = Fields(body).text("session_id", MAX_NAME)
        session = self._sessions.get(name or "")
        if session is None:
            raise _unknown(name or "")
        self._end(session)
        return json_response({"success": True})

    # --- the end ----------------------------------------------------------------------------------------------

    def _remove(self, session: _Session, rid: str) -> None:
        """Ends a request and forgets it, with all that went on after it."""
        left = [rid]
        while left:
            name = left.pop()
            node = session.nodes.pop(name, None)
            if node is None:
                continue
            self._tokens -= node.size
            if node.generation is not None:
                node.generation.abort()
            left.extend(other for other, one in session.nodes.items() if one.parent == name)

    def _touch(self, session: _Session) -> None:
        loop = asyncio.get_running_loop()
        session.used_at = loop.time()
        if session.timer is None:
            session.timer = loop.call_later(session.timeout_s, self._look, session)

    def _look(self, session: _Session) -> None:
        """It may have been idle for too long: not if it was used meanwhile."""
        loop = asyncio.get_running_loop()
        session.timer = None
        left = session.used_at + session.timeout_s - loop.time()
        if session.busy or left > 0:
            session.timer = loop.call_later(max(left, session.timeout_s / 2), self._look, session)
        else:
            self._end(session)

    def _end(self, session: _Session) -> None:
        if session.timer is not None:
            session.timer.cancel()
        del self._sessions[session.name]
        for rid in list(session.nodes):
            self._remove(session, rid)


def _checked(session: _Session, params: Params, rid: str) -> Params:
    """``params`` with the request they leave out; ``Refused`` for what this session cannot do."""
    if session.streaming and (params.offset or params.replace or params.drop_previous_output):
        message = "a streaming session only goes on: leave offset, replace and drop_previous_output out"
        raise Refused(400, message, param="session_params")
    if session.streaming and params.rid is None and session.nodes:
        params = Params(
            id=params.id, rid=next(reversed(session.nodes)), offset=None, replace=False, drop_previous_output=False
        )
    if params.rid is not None and params.rid not in session.nodes:
        raise _no_request(session, params.rid)
    if rid in session.nodes:
        raise Refused(400, f"rid {rid!r} belongs to a request of the session; give another one", param="rid")
    return params


def _no_request(session: _Session, rid: str) -> Refused:
    message = f"the session has no request {rid!r}: it failed, was replaced, or never was"
    return Refused(400, message, param="session_params.rid", code="unknown_request")


def _unknown(name: str) -> Refused:
    message = f"session {name!r} is not open: it was closed, idle for longer than its timeout, or never opened"
    return Refused(404, message, param="session_params.id", code="unknown_session")
