"""One call's answer while it comes into being: the events of its nodes, in the order in which they happen.

Every node with an id gets any number of events and exactly one with ``"done": true``. Events are cumulative: while the
client does not read, only the latest of each node waits, so what waits is bounded by the number of nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from sglite.runtime.observe.exchange import current_exchange
from sglite.runtime.serve.errors import refusal
from sglite.runtime.serve.program_nodes import AnyNode


class Call:
    """See the module. ``gone``: nobody reads the answer; what has not begun need not."""

    def __init__(self, nodes: list[AnyNode]) -> None:
        self._unfinished = len(nodes)
        self._waiting: dict[str, dict[str, Any]] = {}
        self._news = asyncio.Event()
        self.gone = False
        self.exchange = current_exchange.get()
        """The HTTP request it came with; its nodes may be carried out by a task of another."""

    def tell(self, node: AnyNode, **fields: Any) -> None:
        """An event of a node that goes on."""
        if node.id:
            self._waiting[node.id] = {"node": node.id, **fields}
            self._news.set()

    def finish(self, node: AnyNode, **fields: Any) -> None:
        """The node's last event."""
        self._unfinished -= 1
        self.tell(node, **fields, done=True)
        self._news.set()

    def fail(self, node: AnyNode, error: Exception) -> None:
        """The node's last event, if it failed."""
        self.finish(node, **refusal(error).event())

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """The answer, one JSON object a line; the last one says that nothing is missing."""
        while True:
            while self._waiting:
                name = next(iter(self._waiting))
                yield msgspec.json.encode(self._waiting.pop(name)) + b"\n"
            if not self._unfinished:
                yield b'{"end":true}\n'
                return
            self._news.clear()
            await self._news.wait()
