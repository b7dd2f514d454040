"""The waiting requests: why each of them waits, who may be considered now, and whose time is up.

A request waits for nothing but slots, tokens and pages unless a reason is set: a constraint being compiled, the
members of its fork group, a prefix that somebody else is computing, other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sglite.runtime.engine.groups import Groups
from sglite.runtime.engine.request import Request, WaitReason
from sglite.runtime.engine.rows import unblock


class Queue:
    """Waiting requests by id, in order of arrival; and the time limits of all open ones.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.waiting: dict[str, Request] = {}
        self._clock = clock
        self._groups = Groups()
        self._timed: dict[str, Request] = {}

    @property
    def has_time_limits(self) -> bool:
        """Somebody has to start or end by a certain time."""
        return bool(self._timed)

    def expect(self, request: Request) -> None:
        """A request has come, even if it cannot run: its fork group need not wait for it any longer."""
        if request.request.program is None:
            return
        now = self._clock()
        group = self._groups.join(request.request.program, request.id, request.order, now)
        if group is None:
            return
        request.rank = group.order
        if not group.is_over(now):
            request.group = group
            request.reasons.add(WaitReason.GROUP)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.waiting[request.id] = request
        if request.request.timeout_s is not None or request.request.queue_timeout_s is not None:
            self._timed[request.id] = request

    def remove(self, request: Request) -> None:
        """A request has ended."""
        for requests in (self.waiting, self._timed):
            if requests.get(request.id) is request:
                del requests[request.id]

    def ready(self) -> list[Request]:
        """Requests that could start; to have been considered for a step counts as having waited for it."""
        now = self._clock()
        ready = []
        for request in self.waiting.values():
            if request.reasons and _has_to_wait(request, now):
                continue
            request.waited += 1
            ready.append(request)
        return ready

    def expired(self) -> Iterator[tuple[Request, str]]:
        """Requests whose time is up, with what to tell them."""
        now = self._clock()
        for request in [*self._timed.values()]:
            wire = request.request
            waited = now - request.start_time
            if wire.timeout_s is not None and waited > wire.timeout_s:
                message = f"not finished within timeout_s={wire.timeout_s}"
            elif wire.queue_timeout_s is not None and request.first_run is None and waited > wire.queue_timeout_s:
                message = f"not started within queue_timeout_s={wire.queue_timeout_s}"
            else:
                continue
            del self._timed[request.id]
            yield request, message


def _has_to_wait(request: Request, now: float) -> bool:
    """Whether what a request waits for has not come or moved; cheap, for long queues."""
    if request.group is not None and request.group.is_over(now):
        request.group = None
        request.reasons.discard(WaitReason.GROUP)
    if request.reasons & {WaitReason.COMPILE, WaitReason.GROUP, WaitReason.WEIGHTS}:
        return True
    node = request.blocked_on
    if node is None:
        return False
    if node.locks > 0 and node.planned < node.end and node.planned == request.blocked_planned:
        return True
    unblock(request)
    return False
