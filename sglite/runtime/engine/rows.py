"""Rows of a step: what one request computes next, where its tokens stand in the tree, whom it waits for.

    known tokens    0 ........ planned ........ num_tokens
                    in the cache or in flight   computed now, as far as budgets, pages and checkpoints allow

A request that finds all its tokens computed shares the logits of the row that does it in this step; when there is
none, it computes its last token again, without storing it. What it wants scored it takes from rows of the same step
that compute the same positions, so the choices of a select ask for what they have in common once.
"""

from __future__ import annotations

from collections.abc import Callable

from sglite.runtime.cache.node import RadixNode
from sglite.runtime.cache.paths import copy_source_step, node_at, planned_depth
from sglite.runtime.cache.radix import RadixCache
from sglite.runtime.engine.ahead import Ahead
from sglite.runtime.engine.memory import PagePlanner
from sglite.runtime.engine.recurrent import StatePlanner
from sglite.runtime.engine.request import Request, RequestStatus, WaitReason, owner_of
from sglite.runtime.engine.step_plan import StepPlan
from sglite.runtime.engine.windows import NOTHING, Refill
from sglite.runtime.protocol import UNKNOWN_TOKEN, CopyPages, RowStep


def block(request: Request, node: RadixNode) -> None:
    """``request`` waits for what the owner of ``node`` is computing; the owner becomes as urgent as it is."""
    request.blocked_on, request.blocked_planned = node, node.planned
    request.reasons.add(WaitReason.PROMISE)
    owner = node.lookahead or owner_of(node)
    if isinstance(owner, Request):
        owner.inherit(request)


def unblock(request: Request) -> None:
    """What ``request`` waited for has come."""
    request.blocked_on = None
    request.reasons.discard(WaitReason.PROMISE)


class RowPlanner:
    """Plans the rows of requests that are under way.

    Args:
        cache, memory, states: the tree, its pages, recurrent state.
        ahead: what lies behind the commit point.
        chunk_size: tokens of one request a step; ``None``: no bound of its own.
        make_room: called when a request lacks pages; whether there may be some now.
    """

    def __init__(
        self,
        cache: RadixCache,
        memory: PagePlanner,
        states: StatePlanner,
        ahead: Ahead,
        chunk_size: int | None,
        make_room: Callable[[Request], bool],
    ) -> None:
        self._cache = cache
        self._memory = memory
        self._states = states
        self._ahead = ahead
        self._chunk_size = chunk_size
        self._make_room = make_room

    def extend(self, request: Request, plan: StepPlan, reserve: int = 0) -> bool:
        """Plan what ``request`` can compute in this step. ``False`` only when memory is lacking."""
        if request.finish is not None or request.preempting or request.retreating:
            return True
        if 0 < request.num_needed <= request.num_scheduled:
            position = self._ahead.look_ahead(request)
            if position is not None:
                self._add_row(request, plan, [UNKNOWN_TOKEN], position, position, [])
            return True
        if not self._claim(request):
            return True
        assert request.cursor is not None
        self._share_scores(request, plan)
        planned = planned_depth(request.cursor.node)
        start = max(planned, request.num_scheduled)
        if request.logprobs is not None and request.logprobs.unscored:
            start = min(start, request.logprobs.unscored[0] - 1)
        if start >= request.num_needed:
            if self._join(request, plan):
                return True
            start = request.num_needed - 1
        return self._plan_row(request, plan, start, planned, reserve)

    def _claim(self, request: Request) -> bool:
        """Move to the end of the known tokens, through the tree and past it; ``False``: somebody else is at it."""
        cursor = request.cursor
        assert cursor is not None
        needed = request.num_needed
        if cursor.depth >= needed:
            return True
        before = cursor.node
        blocked = self._cache.follow(cursor, request.tokens, needed)
        changed = self._cache.update_table(request.page_table, cursor.node, before)
        request.pages_sent = min(request.pages_sent, changed)
        if blocked is None and cursor.depth < needed:
            if cursor.node.lookahead is None:
                self._cache.claim(cursor, request.tokens, request.reference, needed)
            else:
                blocked = cursor.node
        if blocked is not None:
            block(request, blocked)
            return False
        unblock(request)
        return True

    def _share_scores(self, request: Request, plan: StepPlan) -> None:
        """Take the scores that other rows of the step give anyway: what the choices of a select have in common."""
        state = request.logprobs
        if state is None or request.state_slots:
            return
        assert request.cursor is not None
        while state.unscored and state.unscored[0] > 0:
            position = state.unscored[0] - 1
            row = plan.row_with_logits(node_at(request.cursor.node, position), position)
            if row is None:
                return
            plan.share_score(request, row)

    def _join(self, request: Request, plan: StepPlan) -> bool:
        """All that is needed is computed or in flight: share the logits of the row that does it in this step."""
        assert request.cursor is not None
        end = request.num_needed
        pools = request.request.pool is not None
        if pools or (request.max_new_tokens > 0 and request.ending is None):
            row = plan.row_covering(request.cursor.node, end - 1)
            if row is None or request.state_slots:
                return False
            (plan.add_pool if pools else plan.add_sample)(request, row, end - 1)
        plan.join(request)
        plan.computed.append((request, end))
        request.note_start(end)
        request.num_scheduled = end
        return True

    def _plan_row(self, request: Request, plan: StepPlan, start: int, planned: int, reserve: int) -> bool:
        """Compute ``[start, ...)`` as far as tokens and pages allow; below ``planned`` nothing is stored."""
        assert request.cursor is not None
        node = request.cursor.node
        if copy_source_step(node, self._cache.page_size) >= plan.step_id:
            return True
        windows = self._memory.windows
        if windows.copy_waits(request, node, plan.step_id):
            return True
        start = windows.start(request, self._states.start(request, start, plan))
        room = min(plan.tokens_left, self._chunk_size or plan.tokens_left)
        wanted = self._states.cut(request, start, min(request.num_needed, start + room))
        refill, wanted = windows.refill(request, start, planned, wanted)
        while (end := self._memory.fit(request, start, wanted, reserve)) == start:
            if not self._make_room(request):
                return request.num_scheduled > 0 or request.status is not RequestStatus.RUNNING
        self._states.restore(request, start, plan)
        copies = self._memory.attach(request, end)
        refill = Refill(refill.start, min(refill.end, end))
        windows.enter(request, start, end, refill, copies, plan.step_id)
        self._cache.plan(node, end, plan.step_id)
        request.note_start(start)
        self._add_row(request, plan, request.tokens[start:end], start, max(start, min(planned, end)), copies, refill)
        self._states.save(request, end, plan)
        return True

    def _add_row(
        self,
        request: Request,
        plan: StepPlan,
        tokens: list[int],
        start: int,
        store_from: int,
        copies: list[CopyPages],
        refill: Refill = NOTHING,
    ) -> None:
        """Put a row into the plan, with the scores it gives and, at the end of what is known, a sample."""
        end = start + len(tokens)
        self._memory.windows.stored(request, store_from, end)
        samples = request.ending is None and end >= request.num_tokens
        samples = samples and request.num_output + request.num_unknown < request.max_new_tokens
        draft = (
            self._ahead.draft(request, plan.tokens_left - len(tokens))
            if samples and tokens[-1] != UNKNOWN_TOKEN
            else None
        )
        row = RowStep(
            slot=request.slot,
            start=start,
            token_ids=tokens + (draft.tokens if draft is not None else []),
            store_from=store_from,
            pages_from=request.pages_sent,
            pages=request.page_table[request.pages_sent :],
            parents=draft.parents if draft is not None else None,
            refill=refill,
            state_slots=request.state_slots,
        )
        request.pages_sent = len(request.page_table)
        request.account_computed(start, end, store_from)
        request.num_scheduled = max(request.num_scheduled, end)
        request.state_at = end
        index = plan.add_row(request, row, end, copies)
        if start < store_from and request.cursor is not None:
            plan.note_replay(node_at(request.cursor.node, start), start, index)
        plan.add_scores(request, index)
        if samples:
            plan.add_sample(request, index, end - 1)
        if request.request.pool is not None and end == request.num_tokens:
            plan.add_pool(request, index, end - 1)
        if request.program is not None:
            request.program.service += len(row.token_ids)
