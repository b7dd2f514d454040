"""The last requests by id: what happened to each, and when. Numbers and names only, never a text.

An id is that of an HTTP request (``X-Request-Id``) or of one of the generations it began. The oldest HTTP requests are
forgotten when more engine requests than ``LIMIT`` are remembered.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from sglite.runtime.observe.exchange import Exchange, Tracked

LIMIT = 4096
"""Engine requests that are remembered."""
_COUNTS = (
    "prompt_tokens", "cached_tokens", "computed_prompt_tokens", "forced_tokens", "resampled_tokens", "forward_passes",
    "replayed_tokens", "preemptions",
)  # fmt: skip


class Timeline:
    """See the module. Not thread-safe: the observer holds a lock."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._kept: deque[Exchange] = deque()
        self._names: dict[Exchange, set[str]] = {}
        self._by_name: dict[str, Exchange] = {}
        self._total = 0

    def add(self, exchange: Exchange, rid: str, count: int) -> None:
        """``exchange`` lists ``count`` more requests, called ``rid``."""
        if exchange not in self._names:
            self._kept.append(exchange)
            self._names[exchange] = {exchange.id}
            self._by_name[exchange.id] = exchange
            self._total += len(exchange.tracked) - count  # listed before it was forgotten
        if count:
            self._names[exchange].add(rid)
            self._by_name[rid] = exchange
        self._total += count
        while self._total > self._limit and len(self._kept) > 1:
            self._forget(self._kept.popleft())

    def _forget(self, exchange: Exchange) -> None:
        self._total -= len(exchange.tracked)
        for name in self._names.pop(exchange):
            if self._by_name.get(name) is exchange:
                del self._by_name[name]

    def find(self, name: str) -> Exchange | None:
        """The latest HTTP request of that id, or that began a generation of that id."""
        return self._by_name.get(name)

    def recent(self, count: int) -> list[Exchange]:
        """The last ones, newest first."""
        return [self._kept[-1 - at] for at in range(min(count, len(self._kept)))]


def summary(exchange: Exchange, now: float) -> dict[str, Any]:
    """One line of the list."""
    return {
        "id": exchange.id,
        "object": "request",
        "route": exchange.route,
        "state": state_of(exchange),
        "status": exchange.status,
        "age_s": round(now - exchange.received_at, 3),
        "num_generations": exchange.num_tracked,
        "generations": list(dict.fromkeys(tracked.rid for tracked in exchange.tracked[:8])),
    }


def state_of(exchange: Exchange) -> str:
    """``finished`` once answered and over, ``running`` once there is a token, ``queued`` before."""
    if exchange.complete:
        return "finished"
    return "running" if any(tracked.state != "queued" for tracked in exchange.tracked) else "queued"


def details(exchange: Exchange, now: float) -> dict[str, Any]:
    """Everything about one. Times are milliseconds since it was received; ``null``: has not happened."""
    return {
        **summary(exchange, now),
        "method": exchange.method,
        "streamed": exchange.streamed,
        "received_at": round(exchange.wall, 3),
        "body_ms": _since(exchange, exchange.body_at),
        "answered_ms": _since(exchange, exchange.answered_at),
        "generations": [_generation(exchange, tracked) for tracked in exchange.tracked],
        "not_listed": exchange.num_tracked - len(exchange.tracked),
    }


def _generation(exchange: Exchange, tracked: Tracked) -> dict[str, Any]:
    accounting = tracked.accounting
    ran = tracked.admitted_at is not None and accounting.forward_passes
    started = tracked.admitted_at + accounting.queue_ms / 1000 if ran and tracked.admitted_at is not None else None
    return {
        "id": tracked.rid,
        **({"program": tracked.program} if tracked.program else {}),
        "state": tracked.state,
        "finish_reason": tracked.finish,
        "code": tracked.code,
        "submitted_ms": _since(exchange, tracked.begun_at),
        "admitted_ms": _since(exchange, tracked.admitted_at),
        "first_run_ms": _since(exchange, started),
        "first_token_ms": _since(exchange, tracked.first_at),
        "last_token_ms": _since(exchange, tracked.last_at),
        "ended_ms": _since(exchange, tracked.ended_at),
        "completion_tokens": tracked.num_tokens,
        **{name: getattr(accounting, name) for name in _COUNTS},
        "queue_ms": round(accounting.queue_ms, 3),
        "compute_ms": round(accounting.compute_ms, 3),
        "constrained": tracked.constrained,
    }


def _since(exchange: Exchange, when: float | None) -> float | None:
    return None if when is None else round(1000 * (when - exchange.received_at), 3)
