"""What carries a program's nodes to the server and its answers back (``docs/program-protocol.md``).

    streams    0: extend, generate     1: extend, generate        at nearly the same time
                       '------------- one POST -------------'
    answers            a  b  a  b  b ...                          each to who waits for it

Nodes of all streams of a program that are made at nearly the same time travel together. The next call is sent when the
server has begun to answer the one before, which is when it has queued its nodes: so their order is kept.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from sglite.lang.backends.endpoint_http import Http, message_of
from sglite.lang.errors import BackendError

LEASE_SECONDS = 60.0
"""How long the server keeps a program whose client says nothing."""
_GATHER_SECONDS = 0.0005
"""How long nodes wait for others to travel with: a body that appends, in another thread, gets that far meanwhile."""
_CLOSE_SECONDS = 0.005
"""How long sequences that are given back wait for those of other programs: one request does for all."""
_MAX_NODES = 4000
"""Of one call."""
_RENEWALS_PER_LEASE = 3
_PATH = "/program"


class Answer:
    """The events of one node; cumulative, so only the latest is kept."""

    def __init__(self) -> None:
        self._event: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self.done = False

    def tell(self, event: dict[str, Any]) -> None:
        """An event has come."""
        if "error" in event:
            self.fail(BackendError(message_of(event)))
            return
        self._event, self.done = event, bool(event.get("done"))
        self._news.set()

    def fail(self, error: Exception) -> None:
        """None will come any more."""
        self._error, self.done = error, True
        self._news.set()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events; the last one is complete. BackendError where the node failed."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self._error is not None:
                raise self._error
            assert self._event is not None
            done = self.done
            yield self._event
            if done:
                return

    async def last(self) -> dict[str, Any]:
        """The complete event."""
        return [event async for event in self.events()][-1]


class Link:
    """One program's way to the server. For the programs' event loop."""

    def __init__(self, http: Http, program_id: str, links: Links) -> None:
        self._http = http
        self._program = program_id
        self._links = links
        self._names = itertools.count()
        self._calls = itertools.count(1)
        self._outbox: list[dict[str, Any]] = []
        self._answers: dict[str, Answer] = {}
        self._seqs: dict[str, set[str]] = {}
        """Which sequences the nodes that await an answer are about."""
        self._sender: asyncio.Task[None] | None = None
        self._readers: set[asyncio.Task[None]] = set()
        self.num_streams = 0

    def name(self) -> str:
        """A name for a node or a sequence that the program has not used."""
        return format(next(self._names), "x")

    def put(self, op: str, seq: str, *, id: str = "", now: bool = True, **fields: Any) -> Answer:
        """A node for the server. ``now``: not only when another one travels. Its answer needs an ``id``."""
        node = {"op": op, "seq": seq, **fields}
        answer = Answer()
        if id:
            node["id"] = id
            self._answers[id] = answer
            self._seqs[id] = {seq, *fields.get("into", ())}
        self._outbox.append(node)
        self._links.keep()
        if now and (self._sender is None or self._sender.done()):
            self._sender = asyncio.ensure_future(self._send())
        return answer

    async def close(self, seq: str) -> None:
        """Gives a sequence back: with those of other programs, unless nodes about it are on their way."""
        if any(node["seq"] == seq for node in self._outbox) or any(seq in seqs for seqs in self._seqs.values()):
            await self.put("close", seq, id=self.name()).last()
        else:
            await self._links.close(self._program, seq)

    def leave(self) -> None:
        """A stream of the program is over."""
        self.num_streams -= 1
        if not self.num_streams:
            self._links.forget(self._program)

    async def _send(self) -> None:
        await asyncio.sleep(_GATHER_SECONDS)
        while self._outbox:
            nodes, self._outbox = self._outbox[:_MAX_NODES], self._outbox[_MAX_NODES:]
            begun = asyncio.Event()
            reader = asyncio.ensure_future(self._call(nodes, begun))
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
            await begun.wait()

    async def _call(self, nodes: list[dict[str, Any]], begun: asyncio.Event) -> None:
        """One call: its nodes there, its answers back. Ends with every one of its nodes answered, or failed."""
        body = {
            "version": 1,
            "program": self._program,
            "call": next(self._calls),
            "lease_s": self._links.lease_s,
            "nodes": nodes,
        }
        beside = not any(node["op"] in ("generate", "score") for node in nodes)
        failure: Exception = BackendError(f"{self._http.base_url}: the answer ended before it was complete")
        try:
            async with self._http.post_lines(_PATH, body, beside=beside) as events:
                begun.set()
                async for event in events:
                    self._deliver(event)
        except Exception as error:
            failure = error
        finally:
            begun.set()
            for node in nodes:
                answer = self._answered(node.get("id", ""))
                if answer is not None:
                    answer.fail(failure)

    def _deliver(self, event: dict[str, Any]) -> None:
        name = event.get("node", "")
        done = bool(event.get("done"))
        answer = self._answered(name) if done else self._answers.get(name)
        if answer is not None:
            answer.tell(event)

    def _answered(self, name: str) -> Answer | None:
        self._seqs.pop(name, None)
        return self._answers.pop(name, None)


class Links:
    """The programs of this process that have sequences on one server; keeps their leases while there are any."""

    def __init__(self, http: Http, lease_s: float = LEASE_SECONDS) -> None:
        self._http = http
        self.lease_s = lease_s
        self._links: dict[str, Link] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._over: dict[str, list[str]] = {}
        self._closer: asyncio.Task[None] | None = None

    def open(self, program_id: str) -> Link:
        """The way for one more stream of a program."""
        link = self._links.get(program_id)
        if link is None:
            link = self._links[program_id] = Link(self._http, program_id, self)
        link.num_streams += 1
        return link

    async def close(self, program_id: str, seq: str) -> None:
        """Gives a sequence of a program back."""
        self._over.setdefault(program_id, []).append(seq)
        if len(self._over) == len(self._over[program_id]) == 1:
            self._closer = asyncio.ensure_future(self._close_all())
        assert self._closer is not None
        await asyncio.shield(self._closer)

    async def _close_all(self) -> None:
        await asyncio.sleep(_CLOSE_SECONDS)
        over, self._over = self._over, {}
        await self._http.post(f"{_PATH}/close", {"programs": over}, beside=True)

    def keep(self) -> None:
        """Begins to renew leases; called on the loop when something is sent."""
        loop = asyncio.get_running_loop()
        if self._keeper is None or self._keeper.done() or self._keeper.get_loop() is not loop:
            self._keeper = loop.create_task(self._renew())

    def forget(self, program_id: str) -> None:
        """A program has no streams any more."""
        self._links.pop(program_id, None)
        if not self._links and self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.lease_s / _RENEWALS_PER_LEASE)
            with suppress(BackendError):  # whoever needs the server will be told that it is gone
                await self._http.post(f"{_PATH}/renew", {"programs": list(self._links)}, beside=True)
