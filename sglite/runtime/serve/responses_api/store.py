"""Responses that were made and may be asked for again: bounded in number and size, the oldest go first.

One that has ended is kept as the JSON it is counted by: the same as objects takes from four to twenty times as much.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec

UNFINISHED = ("queued", "in_progress")
MAX_RESPONSES = 4096
MAX_BYTES = 256 * 2**20


@dataclass
class Kept:
    """A response. ``items``: the conversation up to and with it."""

    response: dict[str, Any]
    items: list[Any]
    task: asyncio.Task[None] | None = None
    """What makes it, in the background."""


@dataclass
class _Entry:
    """``live``: while it is being made, who asks sees it grow."""

    text: bytes
    live: Kept | None

    @property
    def has_ended(self) -> bool:
        return self.live is None or self.live.task is None or self.live.task.done()


class Store:
    """By id. For the server's event loop."""

    def __init__(self, most: int = MAX_RESPONSES, most_bytes: int = MAX_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: str) -> Kept | None:
        """The response called so, if it is still there; one that has ended as a copy."""
        found = self._kept.get(name)
        if found is None or found.live is not None:
            return None if found is None else found.live
        response, items = msgspec.json.decode(found.text)
        return Kept(response, items)

    def put(self, kept: Kept) -> None:
        """Keeps a response, anew where it is there already; forgets the oldest that have ended where room is short."""
        name = kept.response["id"]
        self.drop(name)
        text = msgspec.json.encode((kept.response, kept.items))
        self._kept[name] = _Entry(text, kept if kept.response.get("status") in UNFINISHED else None)
        self._bytes += len(text)
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            oldest = next((name for name, entry in self._kept.items() if entry.has_ended), name)
            if oldest == name:
                break
            self.drop(oldest)

    def drop(self, name: str) -> bool:
        """Forgets a response; whether there was one."""
        found = self._kept.pop(name, None)
        if found is not None:
            self._bytes -= len(found.text)
        return found is not None

    def close(self) -> None:
        """Ends what is made in the background."""
        for entry in self._kept.values():
            if entry.live is not None and entry.live.task is not None:
                entry.live.task.cancel()
