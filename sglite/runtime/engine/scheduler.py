"""The scheduler: every step it says which known tokens of which request to compute. There are no phases.

A request is computed by ``num_scheduled`` catching up with ``num_tokens``: prompt, chunk, literal, forced tokens and
the token sampled last are all the same. Admission is by slots and pages; when pages run out, unlocked prefixes are
evicted, then pins given up, then the least urgent request is preempted (its computed part stays in the tree).

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

from sglite.runtime.cache.node import Cursor, Match
from sglite.runtime.cache.radix import RadixCache
from sglite.runtime.engine.ahead import Ahead
from sglite.runtime.engine.memory import PagePlanner
from sglite.runtime.engine.pins import Pins
from sglite.runtime.engine.policy import Policy, in_order
from sglite.runtime.engine.queue import Queue
from sglite.runtime.engine.recurrent import StatePlanner
from sglite.runtime.engine.request import Request, RequestStatus
from sglite.runtime.engine.row_order import RowOrder
from sglite.runtime.engine.rows import RowPlanner, block
from sglite.runtime.engine.slots import Slots
from sglite.runtime.engine.step_plan import SchedulerLimits, StepPlan
from sglite.runtime.engine.update import Updater
from sglite.runtime.protocol import FinishReason, RequestOutput, SchedulerOutput, StepOutput
from sglite.runtime.spec.base import Proposer


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
        policy: Policy = in_order,
        clock: Callable[[], float] = time.monotonic,
        proposer: Proposer | None = None,
    ) -> None:
        self.cache = cache
        self.limits = limits
        self.queue = Queue(clock)
        self.running: dict[str, Request] = {}
        self.memory = PagePlanner(cache, Pins(cache, limits.pin_budget, clock))
        self.preemptions = 0
        self.failed_steps = 0
        self._states = StatePlanner(cache)
        self._ahead = Ahead(cache, self.memory, limits.look_ahead, proposer)
        self._rows = RowPlanner(cache, self.memory, self._states, self._ahead, limits.chunk_size, self._make_room)
        self._updater, self._policy, self._clock = updater, policy, clock
        self._requeued = 0
        self._starved = False
        """A request alone lacked pages: its own prefix, shared page by page, fills the pool. Start from nothing."""
        self._steps = self._poisoned = 0
        self._slots, self._row_order = Slots(limits.max_running, updater), RowOrder()
        self._in_flight: deque[StepPlan] = deque()
        self._outbox: list[RequestOutput] = []

    # --- requests come and go ---------------------------------------------------------------------------------

    @property
    def waiting(self) -> dict[str, Request]:
        """Requests without a slot, by id."""
        return self.queue.waiting

    @property
    def has_work(self) -> bool:
        """Somebody has not finished, or a step is in flight."""
        return bool(self.waiting or self.running or self._in_flight)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.queue.add(request)
        self.memory.pins.unpark(request.request.pin)

    def find(self, request_id: str) -> Request | None:
        """A request that has not ended."""
        request = self.waiting.get(request_id) or self.running.get(request_id)
        return None if request is None or request.finish is not None else request

    def end(self, request: Request, reason: FinishReason) -> None:
        """End a request: its terminal output goes out now, its memory when no step in flight touches it any more."""
        if request.finish is None:
            self._outbox.append(self._updater.terminal(request, reason, self._clock()))
            if request.program is not None:
                request.program.leave(request.accounting)
            self._settle(request)

    def expire(self) -> None:
        """End the requests whose time is up."""
        for request, message in self.queue.expired():
            self.end(request, FinishReason(type="abort", code="timeout", message=message))

    def take_outputs(self) -> list[RequestOutput]:
        """Outputs since the last call."""
        outputs, self._outbox = self._outbox, []
        return outputs

    # --- planning ---------------------------------------------------------------------------------------------

    def schedule(self) -> SchedulerOutput | None:
        """Plan the next step; ``None`` when there is nothing to compute just now."""
        if self._poisoned:
            return None
        if self._starved and not self.running:
            self.memory.pins.give_up(self.cache.pinned_pages)
            self.cache.flush()
            self._starved = False
        plan = StepPlan(self._steps, self.limits.max_step_tokens)
        suspect = min((r for r in self.running.values() if r.suspect), key=lambda r: r.sort_key, default=None)
        if suspect is not None:
            self._extend_or_requeue(suspect, plan)
        else:
            self._plan_by_priority(plan)
        if plan.is_empty:
            return None
        self._steps += 1
        self._in_flight.append(plan)
        self._slots.announce(plan.output)
        self.memory.windows.announce(plan.output)
        plan.sort_rows(self._row_order)
        return plan.output

    def constrained(self, step_id: int) -> list[Request | None]:
        """The requests behind the constrained samples of a step, in order; ``None`` for one that has ended."""
        plan = next(plan for plan in self._in_flight if plan.step_id == step_id)
        pairs = zip(plan.output.samples, plan.sampled, strict=True)
        return [request if request.finish is None else None for task, request in pairs if task.constrained]

    def _plan_by_priority(self, plan: StepPlan) -> None:
        """Level by level, most urgent first: rows of the requests under way, then newcomers."""
        running, ready = sorted(self.running.values(), key=lambda r: r.sort_key), self.queue.ready()
        requeued, admitting = self._requeued, True
        for level in sorted({r.priority for r in (*running, *ready)}, reverse=True):
            for request in [r for r in running if r.priority == level]:
                if plan.tokens_left > 0 and request.status is RequestStatus.RUNNING:
                    self._extend_or_requeue(request, plan)
            # Who had to give way must not come back before those it made room for have had a step.
            admitting = admitting and requeued == self._requeued
            admitting = admitting and self._admit([r for r in ready if r.priority == level], plan)

    def _admit(self, ready: list[Request], plan: StepPlan) -> bool:
        """Let newcomers in, in the policy's order; ``False`` when slots, tokens or pages have run out."""
        for request in self._policy(ready, self.cache) if ready else ():
            if request.is_prefill and self._is_known(request):
                continue
            if plan.tokens_left <= 0 or (request.suspect and not plan.is_empty):
                return False
            if self._slots.all_taken and not self._make_room(request):
                return False
            if request.num_output == 0:
                self._updater.append_forced(request)
            if request.retreating:
                self._retreat(request)
                continue
            match = self.cache.match(request.tokens, request.request.namespace)
            if match.blocked_on is not None:
                block(request, self._states.branch_off(request, match, match.blocked_on))
            elif self._states.in_the_making(request, match, plan):
                continue
            elif not self._start(request, match, plan) or request.suspect:
                return False
        return True

    def _start(self, request: Request, match: Match, plan: StepPlan) -> bool:
        """Give a request a slot and a place in the tree and plan its first row; ``False``: no memory for it now."""
        if not self._states.take(request, match, plan):
            return False
        self._slots.take(request)
        request.cursor = self.cache.open(request.request.namespace)
        request.status = RequestStatus.RUNNING
        del self.waiting[request.id]
        self.running[request.id] = request
        if not self._extend_or_requeue(request, plan, reserve=len(self.running) - 1):
            return False
        request.note_run(self._clock())
        return True

    def _is_known(self, request: Request) -> bool:
        """Whether all that a request wants computed is computed, then it ends here; or will be by a step in flight."""
        namespace = request.request.namespace
        match = self.cache.match(request.tokens, namespace)
        if match.planned < request.num_tokens:
            return False
        if match.node.ready >= request.num_tokens:
            cursor = self.cache.open(namespace)
            self.cache.follow(cursor, request.tokens)
            request.note_start(request.num_tokens)
            request.note_run(self._clock())
            self._pin(request, cursor)
            self.cache.close(cursor)
            self.end(request, FinishReason(type="length"))
        return True

    def _extend_or_requeue(self, request: Request, plan: StepPlan, reserve: int = 0) -> bool:
        """Plan a row; one that cannot even start goes back to the queue, once it has the scores that others give it."""
        if self._rows.extend(request, plan, reserve):
            return True
        if request.in_flight:
            self._preempt(request)
        else:
            self._back_to_queue(request)
        self._starved |= plan.is_empty and not self.running
        return False

    # --- preemption -------------------------------------------------------------------------------------------

    def _make_room(self, request: Request) -> bool:
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

    def retract(self) -> None:
        """Every running request goes back to the queue, once no step in flight touches it."""
        for request in [r for r in self.running.values() if r.finish is None]:
            self._preempt(request)

    def _settle(self, request: Request) -> None:
        """Carry out what had to wait for the steps in flight: the end of a request, or its preemption."""
        if request.in_flight:
            return
        if request.finish is not None:
            if request.status is RequestStatus.RUNNING:
                self._release(request)
            self.queue.remove(request)
            request.status = RequestStatus.FINISHED
        elif not (request.retreating and self._retreat(request)) and request.preempting:
            self.preemptions += 1
            request.accounting.preemptions += 1
            self._back_to_queue(request)

    def _retreat(self, request: Request) -> bool:
        """Take back tokens that lead nowhere; ``True`` when that was the request's end.

        It stays where it is and computes its last token again. Recurrent state cannot be taken back: such a request
        starts over from a checkpoint.
        """
        while request.retreating:
            if not self._updater.retreat(request):
                assert request.ending is not None
                self.end(request, request.ending)
                return True
            self._ahead.withdraw(request)
            self._updater.append_forced(request)
        self._slots.renew(request)
        if request.state_slots and not request.preempting:
            self._back_to_queue(request)
        self._report(request)
        return request.finish is not None

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
        self.memory.release(request)
        if request.finish is not None and request.finish.type in ("stop", "length"):
            self._pin(request, cursor)
        self.cache.close(cursor)
        request.cursor, request.held_pages, request.page_table, request.pages_sent = None, [], [], 0
        self._slots.give_back(request)
        del self.running[request.id]

    def _pin(self, request: Request, cursor: Cursor) -> None:
        """What is computed at the end of a request stays locked for the next one of its sequence, if it has a name."""
        program = request.request.program
        if request.request.pin:
            self.memory.pins.pin(request.request.pin, cursor, 0 if program is None else program.upcoming)

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
                self._ahead.publish(request, self._steps - 1)
                self._report(request)
            self._settle(request)

    def _take_results(self, plan: StepPlan, result: StepOutput) -> None:
        """Hidden states, scores, then samples, each to its request; a row that failed ends its request only."""
        for request, pooled in zip(plan.pooled, result.pools, strict=True):
            request.hidden = pooled.hidden
            if request.finish is None and pooled.error is not None:
                self.end(request, FinishReason(type="error", code="nan", message=pooled.error))
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
            elif request.finish is None and not request.retreating:
                self.end(request, FinishReason(type="error", code="sampling", message=sample.error))

    def _report(self, request: Request) -> None:
        """Send what is new of a member of the step; end it when it has all it is going to get."""
        if request.ending is None and request.max_new_tokens == 0 and request.num_computed >= request.num_tokens:
            request.ending = FinishReason(type="length")
        if request.ending is not None and not request.lacks_results:
            self.end(request, request.ending)
        elif (output := self._updater.progress(request, self._clock())) is not None:
            self._outbox.append(output)

    def _fail(self, plan: StepPlan, error: str | None) -> None:
        """A step failed: nothing of it and of the steps after it counts. Everybody starts over, its members alone.

        A request whose own step fails is the culprit and ends with the error.
        """
        if error is not None and not self._poisoned:
            self.failed_steps += 1
            self.memory.forget_since(plan.step_id)
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
            self._preempt(request)
