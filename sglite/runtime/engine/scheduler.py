"""The scheduler: every step it says which known tokens of which request to compute. There are no phases.

A request is computed by ``num_scheduled`` catching up with ``num_tokens``: prompt, chunk, literal, forced tokens and
the token sampled last are all the same. Admission is by slots and pages; when pages run out, unlocked prefixes are
evicted, then pins dropped, then the least urgent request is preempted (its computed part stays in the tree).

Promises: a step never exceeds its token, sequence or page budget; every admitted request ends finished or aborted;
``free + held + cached == total`` in every group after every step. No torch, no model, no backend.

With look-ahead, step N+1 is planned while N runs: a row may compute the token that N is sampling. Who does so marks
its place in the tree, so that nobody else computes the same token there; a request found finished at the update of N
is dropped when N+1 comes back, and only then are its pages given up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sglite.runtime.cache.radix import RadixCache, RadixNode
from sglite.runtime.engine.memory import PagePlanner
from sglite.runtime.engine.policy import Policy, fcfs
from sglite.runtime.engine.recurrent import StatePlanner
from sglite.runtime.engine.request import Request, RequestStatus, WaitReason
from sglite.runtime.engine.step_plan import StepPlan
from sglite.runtime.engine.update import Updater
from sglite.runtime.protocol import (
    UNKNOWN_TOKEN,
    CopyPages,
    FinishReason,
    NewRow,
    RequestOutput,
    RowStep,
    SchedulerOutput,
    StepOutput,
)
from sglite.runtime.spec.base import Draft, Proposer


@dataclass(frozen=True)
class SchedulerLimits:
    """Budgets of a step and of the engine."""

    max_step_tokens: int = 2048
    """Tokens computed a step."""
    max_running: int = 64
    """Requests admitted at once."""
    chunk_size: int | None = None
    """Tokens of one request a step; ``None``: whatever the step leaves."""
    look_ahead: bool = False
    """Plan a row for a token that the step in flight is still sampling."""


class Scheduler:
    """Plans steps and takes in their results.

    Args:
        cache: the radix tree over the page pool.
        limits: budgets.
        updater: applies results to one request (stops, constraint, length).
        policy: order of the waiting requests, see ``policy.py``.
        clock: seconds, monotonic; a test may pass its own.
        proposer: guesses tokens that a row verifies along with computing the known ones.
    """

    def __init__(
        self,
        cache: RadixCache,
        limits: SchedulerLimits,
        updater: Updater,
        policy: Policy = fcfs,
        clock: Callable[[], float] = time.monotonic,
        proposer: Proposer | None = None,
    ) -> None:
        self.cache = cache
        self.limits = limits
        self.waiting: dict[str, Request] = {}
        self.running: dict[str, Request] = {}
        self.memory = PagePlanner(cache)
        self.preemptions = 0
        self.failed_steps = 0
        self._states = StatePlanner(cache)
        self._updater = updater
        self._policy = policy
        self._clock = clock
        self._proposer = proposer
        self._timed: dict[str, Request] = {}
        self._requeued = 0
        self._starved = False
        """A request alone lacked pages: its own prefix, shared page by page, fills the pool. Start from nothing."""
        self._steps = 0
        self._free_slots = list(range(limits.max_running - 1, -1, -1))
        self._released_slots: list[int] = []
        self._new_rows: dict[int, NewRow] = {}
        self._in_flight: deque[StepPlan] = deque()
        self._poisoned = 0
        self._outbox: list[RequestOutput] = []

    # --- requests come and go ---------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Somebody has not finished, or a step is in flight."""
        return bool(self.waiting or self.running or self._in_flight)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.waiting[request.id] = request
        if request.request.timeout_s is not None or request.request.queue_timeout_s is not None:
            self._timed[request.id] = request

    def find(self, request_id: str) -> Request | None:
        """A request that has not ended."""
        request = self.waiting.get(request_id) or self.running.get(request_id)
        return None if request is None or request.finish is not None else request

    def end(self, request: Request, reason: FinishReason) -> None:
        """End a request: its terminal output goes out now, its memory when no step in flight touches it any more."""
        if request.finish is None:
            self._outbox.append(self._updater.terminal(request, reason, self._clock()))
            self._settle(request)

    def take_outputs(self) -> list[RequestOutput]:
        """Outputs since the last call."""
        outputs, self._outbox = self._outbox, []
        return outputs

    # --- planning ---------------------------------------------------------------------------------------------

    def schedule(self) -> SchedulerOutput | None:
        """Plan the next step; ``None`` when there is nothing to compute just now."""
        if self._poisoned:
            return None
        self._expire()
        if self._starved and not self.running:
            self.cache.flush()
            self._starved = False
        plan = StepPlan(self._steps, self.limits.max_step_tokens)
        suspect = min((r for r in self.running.values() if r.suspect), key=lambda r: r.sort_key, default=None)
        if suspect is not None:
            self._extend(suspect, plan)
        else:
            self._plan_by_priority(plan)
        if plan.is_empty:
            return None
        self._steps += 1
        self._in_flight.append(plan)
        plan.output.released, self._released_slots = self._released_slots, []
        plan.output.new_rows, self._new_rows = list(self._new_rows.values()), {}
        return plan.output

    def constrained(self, step_id: int) -> list[Request | None]:
        """The requests behind the constrained samples of a step, in order; ``None`` for one that has ended."""
        plan = next(plan for plan in self._in_flight if plan.step_id == step_id)
        pairs = zip(plan.output.samples, plan.sampled, strict=True)
        return [request if request.finish is None else None for task, request in pairs if task.constrained]

    def _plan_by_priority(self, plan: StepPlan) -> None:
        """Level by level, most urgent first: rows of the requests under way, then newcomers."""
        ready = [r for r in self.waiting.values() if WaitReason.COMPILE not in r.reasons and not self._blocked(r)]
        requeued, admitting = self._requeued, True
        for level in sorted({r.priority for r in (*self.running.values(), *ready)}, reverse=True):
            for request in sorted((r for r in self.running.values() if r.priority == level), key=lambda r: r.sort_key):
                if plan.tokens_left > 0 and request.status is RequestStatus.RUNNING:
                    self._extend_or_requeue(request, plan)
            # Who had to give way must not come back before those it made room for have had a step.
            admitting = admitting and requeued == self._requeued
            admitting = admitting and self._admit([r for r in ready if r.priority == level], plan)

    def _admit(self, ready: list[Request], plan: StepPlan) -> bool:
        """Let newcomers in, in the policy's order; ``False`` when slots, tokens or pages have run out."""
        for request in self._policy(ready, self.cache) if ready else ():
            if plan.tokens_left <= 0 or (request.suspect and not plan.is_empty):
                return False
            if not self._free_slots and not self._make_room(request, plan):
                return False
            match = self.cache.match(request.tokens, request.request.namespace)
            if match.blocked_on is not None:
                self._block(request, self._states.branch_off(match, match.blocked_on))
            elif self._states.in_the_making(match.node, plan):
                continue
            elif not self._start(request, plan) or request.suspect:
                return False
        return True

    def _start(self, request: Request, plan: StepPlan) -> bool:
        """Give a request a slot and a place in the tree and plan its first row; ``False``: no memory for it now."""
        if not self._states.take(request, plan):
            return False
        request.slot = self._free_slots.pop()
        request.cursor = self.cache.open(request.request.namespace)
        request.status = RequestStatus.RUNNING
        del self.waiting[request.id]
        self.running[request.id] = request
        self._new_rows[request.slot] = self._new_row(request)
        if not self._extend_or_requeue(request, plan, reserve=len(self.running) - 1):
            return False
        if request.first_run is None:
            request.first_run = self._clock()
            request.accounting.queue_ms = 1000 * (request.first_run - request.start_time)
        return True

    def _new_row(self, request: Request) -> NewRow:
        """What the executor must know of a request that gets a slot."""
        sampling = request.request.sampling
        penalties = sampling.frequency_penalty, sampling.presence_penalty, sampling.repetition_penalty
        penalised = penalties != (0.0, 0.0, 1.0)
        request.unsent_forced.clear()
        return NewRow(
            slot=request.slot,
            request_id=request.id,
            sampling=sampling,
            seed=request.seed,
            banned_until_min=self._updater.ending_ids(sampling) if sampling.min_new_tokens else (),
            logprobs=request.request.logprobs,
            prompt_ids=request.tokens[: request.prompt_len] if penalised else [],
            output_ids=request.tokens[request.prompt_len :] if penalised else [],
        )

    def _extend(self, request: Request, plan: StepPlan, reserve: int = 0) -> bool:
        """Plan what ``request`` can compute in this step. ``False`` only when memory is lacking."""
        if request.finish is not None or request.preempting:
            return True
        if 0 < request.num_needed <= request.num_scheduled:
            self._look_ahead(request, plan)
            return True
        if not self._claim(request):
            return True
        assert request.cursor is not None
        planned = self.cache.planned_depth(request.cursor.node)
        start = max(planned, request.num_scheduled)
        if request.logprobs is not None and request.logprobs.unscored:
            start = min(start, request.logprobs.unscored[0] - 1)
        if start >= request.num_tokens:
            if self._join(request, plan):
                return True
            start = request.num_tokens - 1
        return self._plan_row(request, plan, start, planned, reserve)

    def _extend_or_requeue(self, request: Request, plan: StepPlan, reserve: int = 0) -> bool:
        """``_extend``; a request that cannot even start goes back to the queue. ``False``: it did."""
        if self._extend(request, plan, reserve):
            return True
        self._back_to_queue(request)
        self._starved |= plan.is_empty and not self.running
        return False

    def _claim(self, request: Request) -> bool:
        """Move to the end of the known tokens, through the tree and past it; ``False``: somebody else is at it."""
        cursor = request.cursor
        assert cursor is not None
        needed = request.num_needed
        if cursor.depth >= needed:
            return True
        before = cursor.node
        blocked = self.cache.follow(cursor, request.tokens, needed)
        changed = self.cache.update_table(request.page_table, cursor.node, before)
        request.pages_sent = min(request.pages_sent, changed)
        if blocked is None and cursor.depth < needed:
            if cursor.node.lookahead is None:
                self.cache.claim(cursor, request.tokens[:needed], request)
            else:
                blocked = cursor.node
        if blocked is not None:
            self._block(request, blocked)
        return blocked is None

    def _join(self, request: Request, plan: StepPlan) -> bool:
        """All known tokens are computed or in flight: share the logits of the row that does it in this step."""
        assert request.cursor is not None
        end = request.num_tokens
        if request.max_new_tokens > 0:
            row = plan.row_covering(request.cursor.node.owner, end - 1)
            if row is None or request.state_slots:
                return False
            plan.add_sample(request, row, end - 1)
        plan.join(request)
        plan.computed.append((request, end))
        request.note_start(end)
        request.num_scheduled = end
        return True

    def _plan_row(self, request: Request, plan: StepPlan, start: int, planned: int, reserve: int) -> bool:
        """Compute ``[start, ...)`` as far as tokens and pages allow; below ``planned`` nothing is stored."""
        assert request.cursor is not None
        node = request.cursor.node
        if self.cache.copy_source_step(node) >= plan.step_id:
            return True
        start = self._states.start(request, start, plan)
        room = min(plan.tokens_left, self.limits.chunk_size or plan.tokens_left)
        wanted = self._states.cut(request, start, min(request.num_needed, start + room))
        while (end := self.memory.fit(request, start, wanted, reserve)) == start:
            if not self._make_room(request, plan):
                return request.num_scheduled > 0 or request.status is not RequestStatus.RUNNING
        self._states.restore(request, start, plan)
        copies = self.memory.attach(request, end)
        self.cache.plan(node, end, plan.step_id)
        request.note_start(start)
        self._add_row(request, plan, request.tokens[start:end], start, max(start, min(planned, end)), copies)
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
    ) -> None:
        """Put a row into the plan, with the scores it gives and, at the end of what is known, a sample."""
        end = start + len(tokens)
        samples = request.ending is None and end >= request.num_tokens
        samples = samples and request.num_output + request.num_unknown < request.max_new_tokens
        draft = self._draft(request, plan, len(tokens)) if samples and tokens[-1] != UNKNOWN_TOKEN else None
        row = RowStep(
            slot=request.slot,
            start=start,
            token_ids=tokens + (draft.tokens if draft is not None else []),
            store_from=store_from,
            pages_from=request.pages_sent,
            pages=request.page_table[request.pages_sent :],
            parents=draft.parents if draft is not None else None,
            state_slots=request.state_slots,
        )
        request.pages_sent = len(request.page_table)
        request.account_computed(start, end, store_from)
        request.num_scheduled = max(request.num_scheduled, end)
        request.state_at = end
        index = plan.add_row(request, row, end, copies)
        plan.add_scores(request, index)
        if request.unsent_forced:
            plan.output.appended[request.slot] = request.unsent_forced
            request.unsent_forced = []
        if samples:
            plan.add_sample(request, index, end - 1)

    def _draft(self, request: Request, plan: StepPlan, num_known: int) -> Draft | None:
        """A guess to verify behind the known tokens, with pages of its own; ``None`` where there cannot be one.

        Drafts lie behind the commit point, in pages nobody else sees; constraints, penalties and recurrent state
        would have to follow every branch, so such requests go without.
        """
        if self._proposer is None or request.grammar is not None or request.state_slots:
            return None
        cursor = request.cursor
        assert cursor is not None
        room = min(request.max_new_tokens - request.num_output - 1, plan.tokens_left - num_known)
        free = self._is_alone(cursor.node) and cursor.depth == request.num_tokens
        if room < 1 or not free or request.request.sampling.has_penalties:
            return None
        draft = self._proposer.propose(request.tokens, room)
        if draft is None or not 0 < len(draft.tokens) <= room:
            return None
        size = self.cache.page_size
        pages = self.memory.take(-(-(request.num_tokens + len(draft.tokens)) // size) - len(request.page_table))
        if pages is None:
            return None
        request.held_pages = pages
        request.page_table.extend(pages)
        request.draft = draft
        cursor.node.lookahead = request
        return draft

    def _is_alone(self, node: RadixNode) -> bool:
        """Nobody but its user can come to compute, or be computing, what follows ``node``."""
        return node.cursors == 1 and not node.children and node.lookahead is None and node.parent is not None

    def _look_ahead(self, request: Request, plan: StepPlan) -> None:
        """Plan the token that the step in flight is sampling, where nobody else could be computing the same."""
        cursor = request.cursor
        assert cursor is not None
        node, position = cursor.node, request.num_tokens
        alone = self._is_alone(node)
        wanted = request.ending is None and request.num_unknown == 1 and request.num_output + 1 < request.max_new_tokens
        if not (self.limits.look_ahead and alone and wanted) or cursor.depth != position:
            return
        if position // self.cache.page_size >= len(request.page_table):
            pages = self.memory.take(1)
            if pages is None:
                return
            request.held_pages = pages
            request.page_table.extend(pages)
        node.lookahead = request
        self._add_row(request, plan, [UNKNOWN_TOKEN], position, position, [])

    # --- waiting for others -----------------------------------------------------------------------------------

    def _block(self, request: Request, node: RadixNode) -> None:
        """``request`` waits for what the owner of ``node`` is computing; the owner inherits its priority."""
        request.blocked_on, request.blocked_planned = node, node.planned
        request.reasons.add(WaitReason.PROMISE)
        owner = node.lookahead or node.owner
        if isinstance(owner, Request):
            owner.inherited_priority = max(owner.inherited_priority, request.priority)

    def _blocked(self, request: Request) -> bool:
        """Whether what a waiting request waits for has not moved since; cheap, for long queues."""
        node = request.blocked_on
        if node is None:
            return False
        if node.locks > 0 and node.planned < node.end and node.planned == request.blocked_planned:
            return True
        request.blocked_on = None
        request.reasons.discard(WaitReason.PROMISE)
        return False

    def _expire(self) -> None:
        """End requests whose time is up."""
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
            self.end(request, FinishReason(type="abort", code="timeout", message=message))

    # --- preemption -------------------------------------------------------------------------------------------

    def _make_room(self, request: Request, plan: StepPlan) -> bool:
        """Preempt the least urgent request for ``request``; ``True`` when it is gone at once.

        A newcomer displaces only lower priorities. A request that is under way displaces whoever comes after it, and
        gives way itself when that is nobody; alone with the whole pool, it starts over in an empty tree.
        """
        newcomer = request.num_scheduled == 0
        others = [r for r in self.running.values() if r is not request and r.finish is None and not r.preempting]
        victim = max(others, key=lambda r: (r.num_scheduled == 0, r.sort_key), default=None)
        if newcomer:
            return victim is not None and victim.priority < request.priority and self._preempt(victim)
        if victim is not None and (victim.num_scheduled == 0 or victim.sort_key > request.sort_key):
            return self._preempt(victim)
        self._starved |= victim is None
        self._preempt(request)
        return False

    def _preempt(self, request: Request) -> bool:
        """Back to the queue; what it computed stays in the tree until evicted. ``True`` when done at once."""
        request.preempting = True
        self._settle(request)
        return not request.preempting

    def _settle(self, request: Request) -> None:
        """Carry out what had to wait for the steps in flight: the end of a request, or its preemption."""
        if request.in_flight:
            return
        if request.finish is not None:
            if request.status is RequestStatus.RUNNING:
                self._release(request)
            for requests in (self.waiting, self._timed):
                if requests.get(request.id) is request:
                    del requests[request.id]
            request.status = RequestStatus.FINISHED
        elif request.preempting:
            self.preemptions += 1
            request.accounting.preemptions += 1
            self._back_to_queue(request)

    def _back_to_queue(self, request: Request) -> None:
        self._release(request)
        self._requeued += 1
        request.preempting = False
        request.num_cached = request.num_computed = request.num_scheduled = 0
        request.samples_in_flight.clear()
        request.draft = None
        request.scores_in_flight = 0
        if request.logprobs is not None:
            unsent = request.prompt_len + request.emitted
            request.logprobs.restart(request.prompt_len, unsent, request.num_tokens)
        request.status = RequestStatus.WAITING
        self.waiting[request.id] = request

    def _release(self, request: Request) -> None:
        """Give up slot, pages, state and place in the tree."""
        cursor = request.cursor
        assert cursor is not None and request.in_flight == 0
        if cursor.node.lookahead is request:
            cursor.node.lookahead = None
        self._states.release(request)
        self.cache.allocator.free(request.held_pages)
        pin = request.request.pin
        if pin and request.finish is not None and request.finish.type in ("stop", "length"):
            self.memory.pin(pin, cursor)
        self.cache.close(cursor)
        request.cursor, request.held_pages, request.page_table, request.pages_sent = None, [], [], 0
        if self._new_rows.pop(request.slot, None) is None:
            self._released_slots.append(request.slot)
        self._free_slots.append(request.slot)
        request.slot = -1
        del self.running[request.id]

    # --- results ----------------------------------------------------------------------------------------------

    def update(self, result: StepOutput) -> None:
        """Take in the results of the oldest step in flight: the only place where requests get tokens."""
        plan = self._in_flight.popleft()
        assert plan.step_id == result.step_id, (plan.step_id, result.step_id)
        for request in plan.members:
            request.in_flight -= 1
        if self._poisoned or result.error is not None:
            self._fail(plan, result.error)
            return
        for request, depth in plan.computed:
            assert request.cursor is not None
            request.num_computed = max(request.num_computed, depth)
            request.suspect = False
            request.accounting.compute_ms += result.compute_ms
            self.cache.finish(request.cursor.node, depth)
        self._take_results(plan, result)
        for request in plan.members:
            if request.finish is None:
                self._publish_ahead(request)
                self._report(request)
            self._settle(request)

    def _take_results(self, plan: StepPlan, result: StepOutput) -> None:
        """Scores, then samples, each to its request; a row that failed ends its request only."""
        for request, scored in zip(plan.scored, result.scores, strict=True):
            request.scores_in_flight -= len(scored.logprobs)
            if request.finish is None and scored.error is None:
                self._updater.add_scores(request, scored.position + 1, scored.logprobs)
            elif request.finish is None:
                self.end(request, FinishReason(type="error", code="nan", message=scored.error))
        for request, sample in zip(plan.sampled, result.samples, strict=True):
            expected = request.samples_in_flight.popleft() if request.samples_in_flight else None
            if request.finish is None and sample.error is None:
                self._updater.add_sample(request, expected, sample)
            elif request.finish is None:
                self.end(request, FinishReason(type="error", code="sampling", message=sample.error))

    def _report(self, request: Request) -> None:
        """Send what is new of a member of the step; end it when it has all it is going to get."""
        if request.ending is None and request.max_new_tokens == 0 and request.num_computed >= request.num_tokens:
            request.ending = FinishReason(type="length")
        expected = any(token is not None for token in request.samples_in_flight)
        state = request.logprobs
        scoring = state is not None and (bool(state.unscored) or request.scores_in_flight > 0 or expected)
        if request.ending is not None and not scoring:
            self.end(request, request.ending)
        elif (output := self._updater.progress(request, self._clock())) is not None:
            self._outbox.append(output)

    def _publish_ahead(self, request: Request) -> None:
        """Tokens of rows in flight, or of drafts, have become known: their place in the tree can be named."""
        cursor = request.cursor
        if cursor is None or cursor.node.lookahead is not request or request.num_tokens == cursor.depth:
            return
        depth = cursor.depth + (1 if request.draft is None else self._drafts_kept(request, cursor.depth))
        cursor.node.lookahead = None
        held, request.held_pages = request.held_pages, []
        if depth > cursor.depth:
            self.cache.claim(cursor, request.tokens[:depth], request)
            used = self.cache.pages_missing(cursor.node, depth)
            self.cache.add_pages(cursor.node, held[:used], depth, request.page_table)
            self.cache.plan(cursor.node, depth, self._steps - 1)
            held = held[used:]
        if request.draft is not None:
            self.cache.allocator.free(held)
            del request.page_table[-(-depth // self.cache.page_size) :]
            request.pages_sent = min(request.pages_sent, len(request.page_table))
            request.num_scheduled = request.num_computed = depth
            request.draft = None
        self.cache.finish(cursor.node, request.num_computed)

    def _drafts_kept(self, request: Request, depth: int) -> int:
        """How many accepted drafts lie in the very slots where they belong; the rest is computed again."""
        draft = request.draft
        assert draft is not None
        known = request.tokens[depth:]
        pairs = zip(draft.tokens, draft.parents, known, strict=False)
        kept = 0
        for index, (guess, parent, token) in enumerate(pairs):
            if guess != token or parent != index - 1:
                break
            kept += 1
        return kept

    def _fail(self, plan: StepPlan, error: str | None) -> None:
        """A step failed: nothing of it and of the steps after it counts. Everybody starts over, its members alone.

        A request whose own step fails is the culprit and ends with the error.
        """
        if error is not None and not self._poisoned:
            self.failed_steps += 1
            self.cache.drop_checkpoints(plan.step_id)
            for request in self.running.values():
                request.state_at = -1
            culprit = len(plan.members) == 1 or all(request.suspect for request in plan.members)
            for request in plan.members:
                request.suspect = True
                if culprit:
                    message = f"the step that computed this request failed: {error}"
                    self.end(request, FinishReason(type="error", code="internal", message=message))
        self._poisoned = len(self._in_flight)
        for request in [*self.running.values()]:
            if request.cursor is not None and request.cursor.node.lookahead is request:
                request.cursor.node.lookahead = None
            request.preempting = True
            self._settle(request)
