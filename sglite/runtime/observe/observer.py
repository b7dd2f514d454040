"""The one object that the server tells what happens: to HTTP requests on the event loop, to the engine's requests from
whatever thread brings their outputs.

Promises: an event costs some microseconds; nothing that goes wrong in here reaches who told; every request that was
begun is counted exactly once when it ends, with the numbers of its ``meta_info``, whoever still waits for it or not.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from sglite.runtime.observe.exchange import (
    MAX_NAME,
    MAX_TRACKED,
    Exchange,
    Tracked,
    current_exchange,
    request_id,
    trace_context,
)
from sglite.runtime.observe.tally import Tally
from sglite.runtime.observe.timeline import Timeline
from sglite.runtime.protocol import Accounting, RequestOutput

logger = logging.getLogger(__name__)

CLIENT_GONE = 499
_REFUSED = ("invalid_request", "constraint_refused")
"""Codes of requests that the engine did not take in: an HTTP error without usage."""
_REASONS = {
    400: "invalid", 401: "no_key", 403: "forbidden", 404: "not_found", 405: "method", 408: "timeout", 409: "conflict",
    410: "gone", 413: "too_large", 415: "media_type", 421: "host", 422: "invalid", 429: "overloaded",
    431: "header_too_large", CLIENT_GONE: "client_gone", 503: "unavailable", 504: "timeout",
}  # fmt: skip


class Follower(Protocol):
    """Whoever wants to hear of complete exchanges: the log, the traces."""

    def complete(self, exchange: Exchange) -> None:
        """``exchange`` has been answered and all its requests have ended."""

    def close(self) -> None:
        """Nothing comes any more."""


class Observer:
    """See the module. ``followers`` are told outside of the lock, one exchange at a time and each once."""

    def __init__(self, followers: Sequence[Follower] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self.tally = Tally()
        self.timeline = Timeline()
        self.lock = threading.Lock()
        """Held while the tally or the timeline change; who reads them takes it."""
        self.clock = clock
        self._followers = tuple(followers)

    # --- HTTP requests ----------------------------------------------------------------------------------------

    def received(self, route: str, method: str, headers: Mapping[str, str]) -> Exchange:
        """A request begins. ``route``: one of the server's paths, never the client's text. ``headers``: lower case."""
        exchange = Exchange(
            id=request_id(headers.get("x-request-id")),
            route=route,
            method=method,
            received_at=self.clock(),
            wall=time.time(),
            parent=trace_context(headers),
        )
        with self.lock:
            self.tally.http_open += 1
        return exchange

    def answered(self, exchange: Exchange, status: int) -> None:
        """Its answer is over, complete or not. ``status``: 499 if the client went away before it began."""
        with self.lock:
            exchange.answered_at, exchange.status = self.clock(), status
            self.tally.http_open -= 1
            self.tally.http[exchange.route, str(status)] += 1
            if status >= 400:
                self.tally.refused[_REASONS.get(status, "invalid" if status < 500 else "internal")] += 1
            complete = exchange.complete
        if complete:
            self._tell(exchange)

    # --- requests of the engine -------------------------------------------------------------------------------

    def begin(
        self, rid: str, request_ids: Sequence[str], *, program: str = "", exchange: Exchange | None = None
    ) -> Callable[[RequestOutput], None]:
        """Requests begin that the client calls ``rid``; returns what their outputs are to be given to.

        ``exchange``: on whose behalf, unless it is the one that the present task works for.
        """
        now = self.clock()
        owner = exchange or current_exchange.get()
        if owner is None or owner.answered_at is not None:
            owner = Exchange(request_id(None), "none", "", now, time.time(), answered_at=now)
        short, program = rid[:MAX_NAME], program[:MAX_NAME]
        made = {name: Tracked(short, program, now) for name in request_ids}
        with self.lock:
            owner.num_open += len(made)
            owner.num_tracked += len(made)
            listed = list(made.values())[: MAX_TRACKED - len(owner.tracked)]
            owner.tracked.extend(listed)
            self.timeline.add(owner, short, len(listed))
        return functools.partial(self._saw, owner, made)

    def _saw(self, exchange: Exchange, made: Mapping[str, Tracked], output: RequestOutput) -> None:
        complete = False
        try:
            tracked, now = made[output.request_id], self.clock()
            with self.lock:
                if tracked.admitted_at is None:
                    tracked.admitted_at = max(tracked.begun_at, now - output.accounting.e2e_ms / 1000)
                if output.new_token_ids:
                    self._tokens(exchange, tracked, len(output.new_token_ids), output.accounting, now)
                if output.finish_reason is not None and tracked.ended_at is None:
                    self._end(exchange, tracked, output, now)
                    complete = exchange.complete
        except Exception:
            logger.exception("an output of %s could not be counted", output.request_id)
        if complete:
            self._tell(exchange)

    def _tokens(self, exchange: Exchange, tracked: Tracked, count: int, accounting: Accounting, now: float) -> None:
        tally = self.tally
        if tracked.last_at is None:
            tracked.first_at = now
            assert tracked.admitted_at is not None
            # What stands before it in its sequence is not what a request of a program waits for.
            since = tracked.admitted_at if tracked.program else exchange.began_at
            tally.first_token.observe(now - since)
            self._prompt(tracked, accounting, now)
            if count > 1:
                tally.between_tokens.observe(0.0, count - 1)
        else:
            tally.between_tokens.observe((now - tracked.last_at) / count, count)
        tracked.last_at = now
        tracked.num_tokens += count
        tally.counts["generation_tokens"] += count
        tally.generated.add(now, count)

    def _prompt(self, tracked: Tracked, accounting: Accounting, now: float) -> None:
        """Count what has been added to the prompt's numbers since they were counted last."""
        before, counts = tracked.accounting, self.tally.counts
        if not before.forward_passes and accounting.forward_passes:
            self.tally.queue.observe(accounting.queue_ms / 1000)
        prompt = accounting.prompt_tokens - before.prompt_tokens
        cached = accounting.cached_tokens - before.cached_tokens
        counts["prompt_tokens"] += prompt
        counts["cached_tokens"] += cached
        counts["computed_tokens"] += accounting.computed_prompt_tokens - before.computed_prompt_tokens
        if accounting.forward_passes:
            self.tally.prompts.add(now, cached, prompt)
        tracked.accounting = msgspec.structs.replace(accounting)

    def _end(self, exchange: Exchange, tracked: Tracked, output: RequestOutput, now: float) -> None:
        reason, accounting, counts = output.finish_reason, output.accounting, self.tally.counts
        assert reason is not None
        tracked.ended_at, tracked.finish, tracked.code = now, reason.type, reason.code
        exchange.num_open -= 1
        counts["num_requests"] += 1
        if reason.code in _REFUSED:
            counts["num_refused_requests"] += 1
            return
        self._prompt(tracked, accounting, now)
        counts["forced_tokens"] += accounting.forced_tokens
        counts["resampled_tokens"] += accounting.resampled_tokens
        counts["forward_passes"] += accounting.forward_passes
        counts["replayed_tokens"] += accounting.replayed_tokens
        counts["masks_filled"] += accounting.masks_filled
        if output.constraint_complete is not None:
            tracked.constrained = True
            counts["num_so_requests"] += 1
            counts["num_so_incomplete"] += not output.constraint_complete
        if reason.type in ("stop", "length"):
            since = accounting.e2e_ms / 1000 if tracked.program else now - exchange.began_at
            self.tally.request.observe(since)
        else:
            counts["num_aborted_requests" if reason.type == "abort" else "num_failed_requests"] += 1

    def close(self) -> None:
        """Nothing comes any more: followers let go of what they hold."""
        for follower in self._followers:
            follower.close()

    def _tell(self, exchange: Exchange) -> None:
        for follower in self._followers:
            try:
                follower.complete(exchange)
            except Exception:
                logger.exception("request %s could not be reported", exchange.id)
