"""Recurrent state for the scheduler: where a request of a hybrid model can start, and which checkpoints are saved.

Attention keys can be matched at any token; recurrent state only where somebody saved it. A request starts from the
deepest checkpoint on its path and computes from there, without storing keys that are in the cache already. A
checkpoint is saved at the end of a prompt, where another request waits to branch off, and at a request's end (its
running state becomes the checkpoint, without a copy).
"""

from __future__ import annotations

from sglite.runtime.cache.node import Match, RadixNode
from sglite.runtime.cache.paths import split
from sglite.runtime.cache.radix import RadixCache
from sglite.runtime.engine.request import Request
from sglite.runtime.engine.step_plan import StepPlan
from sglite.runtime.protocol import CopyState


class StatePlanner:
    """Does nothing for models without recurrent state."""

    def __init__(self, cache: RadixCache) -> None:
        self.cache = cache

    def take(self, request: Request, plan: StepPlan) -> bool:
        """Slots for the running state of a request being admitted; ``False``: none to be had."""
        slots = self.cache.checkpoints.take_slots(plan.step_id) if self.cache.states else {}
        if slots is None:
            return False
        request.state_slots = slots
        return True

    def branch_off(self, match: Match, node: RadixNode) -> RadixNode:
        """Somebody waits to leave ``node`` at the end of ``match``: have a checkpoint saved there."""
        if self.cache.states and match.depth > node.start:
            if match.depth < node.end:
                node = split(node, match.depth, self.cache.page_size)
            node.wants_checkpoint = True
        return node

    def in_the_making(self, node: RadixNode, plan: StepPlan) -> bool:
        """Whether a checkpoint on the path to ``node`` is saved at the end of this very step: worth a step's wait."""
        if not self.cache.states:
            return False
        return any(part.checkpoint and part.checkpoint_step >= plan.step_id for part in self.cache.path(node))

    def start(self, request: Request, start: int, plan: StepPlan) -> int:
        """The position from which ``request`` must compute so that its running state is right at ``start``."""
        if not request.state_slots:
            return start
        if request.num_scheduled > 0:
            return min(start, request.num_scheduled)
        assert request.cursor is not None
        limit = min(start, request.num_tokens - 1)
        node = self.cache.checkpoints.restorable(request.cursor.node, limit)
        while node.parent is not None and node.checkpoint_step >= plan.step_id:
            node = self.cache.checkpoints.restorable(node.parent, limit)
        return node.end

    def restore(self, request: Request, start: int, plan: StepPlan) -> None:
        """Before the first row of ``request``, bring its running state to ``start``, where ``start()`` said."""
        if not request.state_slots or request.num_scheduled > 0:
            return
        assert request.cursor is not None
        node = request.cursor.node
        while node.end > start:
            assert node.parent is not None
            node = node.parent
        for group, slot in request.state_slots.items():
            plan.output.state_copies.append(CopyState(group, node.checkpoint.get(group, -1), slot))

    def cut(self, request: Request, start: int, end: int) -> int:
        """Where a row from ``start`` must stop, at or before ``end``, so that a checkpoint can be saved."""
        if not request.state_slots:
            return end
        stops = [request.prompt_len] if start < request.prompt_len else []
        assert request.cursor is not None
        stops += [node.end for node in self.cache.path(request.cursor.node) if node.wants_checkpoint]
        return min([end, *(stop for stop in stops if stop > start)])

    def save(self, request: Request, end: int, plan: StepPlan) -> None:
        """Save a checkpoint after a row that ends at ``end``, when a node ends there that wants one."""
        if not request.state_slots:
            return
        assert request.cursor is not None
        node: RadixNode | None = request.cursor.node
        while node is not None and node.end > end:
            node = node.parent
        if node is None or node.end != end or node.checkpoint:
            return
        if end != request.prompt_len and not node.wants_checkpoint:
            return
        slots = self.cache.checkpoints.take_slots(plan.step_id)
        if slots is None:
            return
        for group, slot in slots.items():
            plan.output.checkpoints.append(CopyState(group, request.state_slots[group], slot))
        self.cache.checkpoints.save(node, slots, plan.step_id)

    def release(self, request: Request) -> None:
        """The running state becomes the checkpoint of the place it stands for, or is given up."""
        slots, request.state_slots = request.state_slots, {}
        if not slots:
            return
        assert request.cursor is not None
        node = request.cursor.node
        exact = node.parent is not None and node.end == node.ready == request.state_at and self.cache.enabled
        if exact and not node.checkpoint:
            self.cache.checkpoints.save(node, slots, -1)
            return
        for group, slot in slots.items():
            self.cache.states[group].free([slot])
