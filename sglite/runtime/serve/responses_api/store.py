"""Responses that were made and may be asked for again: bounded in number and size, the oldest go first."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import msgspec

MAX_RESPONSES = 4096
MAX_BYTES = 256 * 2**20


@dataclass
class Kept:
    """A response. ``items``: the conversation up to and with it; ``own``: where its own input begins among them."""

    response: dict[str, Any]
    items: list[Any]
    task: asyncio.Task[None] | None = None
    """What makes it, in the background."""
    size: int = field(default=0)


class Store:
    """By id. For the server's event loop."""

    def __init__(self, most: int = MAX_RESPONSES, most_bytes: int = MAX_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: str) -> Kept | None:
        """The response called so, if it is still there."""
        return self._kept.get(name)

    def put(self, kept: Kept) -> None:
        """Keeps a response, anew where it is there already; forgets the oldest that have ended where room is short."""
        name = kept.response["id"]
        self.drop(name)
        kept.size = len(msgspec.json.encode((kept.response, kept.items)))
        self._kept[name] = kept
        self._bytes += kept.size
        for old in [name for name, one in self._kept.items() if one.task is None or one.task.done()]:
            if (len(self._kept) <= self._most and self._bytes <= self._most_bytes) or old == name:
                break
            self.drop(old)

    def drop(self, name: str) -> bool:
        """Forgets a response; whether there was one."""
        found = self._kept.pop(name, None)
        if found is not None:
            self._bytes -= found.size
        return found is not None

    def close(self) -> None:
        """Ends what is made in the background."""
        for kept in self._kept.values():
            if kept.task is not None:
                kept.task.cancel()
