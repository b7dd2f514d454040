"""Recurrent state for the scheduler: where a request of a hybrid model can start, and which checkpoints are saved.

Attention keys can be matched at any token; recurrent state only where somebody saved it. A request starts from the
deepest checkpoint on its path and computes from there, without storing keys that are in the cache already. A
checkpoint is saved

- before the last token of a prompt, whose logits everybody who comes with the same prompt has to compute;
- where another request waits to branch off, or turns out to have branched off: it computes what lies between the last
  checkpoint and the branch once more, and those after it need not;
- at a request's end: its running state becomes the checkpoint, without a copy;
- at the ends of the chunks of a long prompt, as long as there are free slots: these are the first to go.

Who needs a checkpoint that a running request is about to reach waits for it, without holding anything.
"""

from __future__ import annotations

from sglite.runtime.cache.node import Match, RadixNode
from sglite.runtime.cache.paths import node_at, split
from sglite.runtime.cache.radix import RadixCache
from sglite.runtime.engine.request import Request
from sglite.runtime.engine.step_plan import StepPlan
from sglite.runtime.protocol import CopyState

SPARE_INTERVAL = 256
"""Tokens between checkpoints that are saved along a prompt because there is room."""


class StatePlanner:
    """Does nothing for models without recurrent state."""

    def __init__(self, cache: RadixCache) -> None:
        self.cache = cache
        self._makers: dict[RadixNode, Request] = {}
        """Who is going to leave a checkpoint at the end of a node that is computed, or will be any moment."""

    def take(self, request: Request, match: Match, plan: StepPlan) -> bool:
        """Slots for the running state of a request being admitted; ``False``: none to be had.

        What it starts from is given up last.
        """
        if not self.cache.states:
            return True
        self.cache.checkpoints.restorable(match.node, min(match.depth, request.num_tokens - 1))
        slots = self.cache.checkpoints.take_slots(plan.step_id)
        request.state_slots = slots or {}
        return slots is not None

    def branch_off(self, request: Request, match: Match, node: RadixNode) -> RadixNode:
        """``request`` waits for ``node``, to leave it at the end of ``match``: have a checkpoint saved there."""
        depth = min(match.depth, request.num_tokens - 1)
        if self.cache.states and depth > node.start:
            if depth < node.end:
                node = split(node, depth, self.cache.page_size)
            node.wants_checkpoint = True
        return node

    def in_the_making(self, request: Request, match: Match, plan: StepPlan) -> bool:
        """Whether the deepest checkpoint that ``request`` could start from is still to come: worth waiting for."""
        if not self.cache.states:
            return False
        for node in reversed(self.cache.path(match.node)):
            if node.end >= request.num_tokens or node.end > match.depth:
                continue
            if node.checkpoint:
                return node.checkpoint_step >= plan.step_id
            maker = self._makers.get(node)
            if maker is not None:
                maker.inherit(request)
                return True
        return False

    def start(self, request: Request, start: int, plan: StepPlan) -> int:
        """The position from which ``request`` must compute so that its running state is right at ``start``."""
        if not request.state_slots:
            return start
        if request.num_scheduled > 0:
            return min(start, request.num_scheduled)
        assert request.cursor is not None
        if request.is_prefill and self.cache.enabled:
            self._makers[request.cursor.node] = request  # it ends there, and others are about to branch off
        limit = min(start, request.num_tokens - 1)
        node = self.cache.checkpoints.restorable(request.cursor.node, limit)
        while node.parent is not None and node.checkpoint_step >= plan.step_id:
            node = self.cache.checkpoints.restorable(node.parent, limit)
        if self.cache.enabled and node.end < limit:
            self._want(request, limit)
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
        self.cache.checkpoints.restored += bool(node.checkpoint)
        for group, slot in request.state_slots.items():
            plan.output.state_copies.append(CopyState(group, node.checkpoint.get(group, -1), slot))

    def cut(self, request: Request, start: int, end: int) -> int:
        """Where a row from ``start`` must stop, at or before ``end``, so that a checkpoint can be saved."""
        if not request.state_slots:
            return end
        assert request.cursor is not None
        stops = [node.end for node in self.cache.path(request.cursor.node) if node.wants_checkpoint]
        if self.cache.enabled:
            stops.append(request.prompt_len - 1)
        return min([end, *(stop for stop in stops if stop > start)])

    def save(self, request: Request, end: int, plan: StepPlan) -> None:
        """Save a checkpoint after a row that ends at ``end``, if one is wanted there."""
        if not request.state_slots:
            return
        assert request.cursor is not None
        node = node_at(request.cursor.node, end - 1)
        wanted = node.end == end and node.wants_checkpoint
        asked = wanted or (self.cache.enabled and end == request.prompt_len - 1)
        if (node.end == end and node.checkpoint) or not (asked or self._is_far(request, node, end)):
            return
        if node.end == end:
            node.wants_checkpoint = False
            self._makers.pop(node, None)
        slots = self.cache.checkpoints.take_slots(plan.step_id, spare=not asked)
        if slots is None:
            return
        if node.end > end:
            node = split(node, end, self.cache.page_size)
        for group, slot in slots.items():
            plan.output.checkpoints.append(CopyState(group, request.state_slots[group], slot))
        self.cache.checkpoints.save(node, slots, plan.step_id, spare=not asked)

    def release(self, request: Request) -> None:
        """The running state becomes the checkpoint of the place it stands for, or is given up."""
        slots, request.state_slots = request.state_slots, {}
        if not slots:
            return
        self._makers = {node: maker for node, maker in self._makers.items() if maker is not request}
        assert request.cursor is not None
        node = request.cursor.node
        exact = node.parent is not None and node.end == node.ready == request.state_at and self.cache.enabled
        if exact and not node.checkpoint:
            self.cache.checkpoints.save(node, slots, -1)
            return
        for group, slot in slots.items():
            self.cache.states[group].free([slot])

    def _want(self, request: Request, depth: int) -> None:
        """``request`` leaves at ``depth`` what others computed: have the state there saved when it has got there."""
        assert request.cursor is not None
        node = node_at(request.cursor.node, depth - 1)
        if node.end == depth and not node.checkpoint:
            node.wants_checkpoint = True
            self._makers[node] = request

    def _is_far(self, request: Request, node: RadixNode, end: int) -> bool:
        """Whether a prompt goes on behind ``end``, and a checkpoint there would be the first for a while."""
        if not self.cache.enabled or end >= request.prompt_len:
            return False
        while node.parent is not None and (node.end > end or not node.checkpoint):
            node = node.parent
        return end - node.end >= SPARE_INTERVAL
