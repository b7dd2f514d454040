"""Fork groups: the first requests of a fork's branches are considered together, so that they start in one step.

The branches of a fork reach the engine one after the other within a moment. Whoever comes first waits for the rest,
but only for ``PATIENCE_S``: a branch that comes later or never hurts nobody. Together or not, the members that came
in time stand side by side in the queue, in the place of the first.
"""

from __future__ import annotations

from collections import OrderedDict

from sglite.runtime.protocol import ProgramRef

PATIENCE_S = 0.004
"""How long the members of a group wait for each other: a few tokenisations, well below the time of a step."""
MAX_GROUPS = 4096
"""Groups remembered, so that a request sent again by a member waits for nobody."""


class Group:
    """One fork's first requests, as they come in."""

    __slots__ = ("_came", "_complete", "_since", "_size", "order")

    def __init__(self, size: int, order: int, now: float) -> None:
        self.order = order
        """When the first member arrived: the place of all."""
        self._size = size
        self._since = now
        self._complete = False
        self._came: set[str] = set()

    def arrive(self, member: str) -> None:
        """A member has come, whatever becomes of it."""
        self._came.add(member)
        if len(self._came) >= self._size:
            self._complete = True
            self._came.clear()

    def is_over(self, now: float) -> bool:
        """Nobody waits any longer: all have come, or it took too long."""
        return self._complete or now - self._since >= PATIENCE_S


class Groups:
    """The groups of all programs."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Group] = OrderedDict()

    def join(self, program: ProgramRef, request_id: str, order: int, now: float) -> Group | None:
        """A request has come, the ``order``-th; its group if it is a member and came in time.

        Members are told apart by ``node_id``: ``n`` outputs of one branch are one member.
        """
        if not program.group_id or program.group_size < 2:
            return None
        key = program.program_id, program.group_id
        group = self._known.get(key)
        if group is None:
            group = self._known[key] = Group(program.group_size, order, now)
            if len(self._known) > MAX_GROUPS:
                self._known.popitem(last=False)
        if group.is_over(now):
            return None
        group.arrive(program.node_id or request_id)
        return group
