"""EngineCore: the step loop. It holds no tensor: requests come in, plans go to the executor, results come back.

    sync       schedule N, submit N, masks N, collect N, update
    overlap    schedule N+1, submit N+1  (N is running)   collect N, update, masks N+1

Both give the same output. One thread runs it; whoever talks to it does so through an inbox.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from sglite.constrained.spec import CompilerBusy, ConstraintError, ConstraintRefused, ConstraintSpec
from sglite.runtime.cache.allocator import PageAllocator
from sglite.runtime.cache.frames import Frames, WindowSpec
from sglite.runtime.cache.radix import RadixCache
from sglite.runtime.engine.grammar import Compiler, GrammarState, name_the_constraint, options_of
from sglite.runtime.engine.policy import get_policy
from sglite.runtime.engine.programs import Programs
from sglite.runtime.engine.request import Request, WaitReason
from sglite.runtime.engine.scheduler import Scheduler
from sglite.runtime.engine.step_plan import SchedulerLimits
from sglite.runtime.engine.update import Updater
from sglite.runtime.engine.weights import Weights
from sglite.runtime.executor.base import Executor
from sglite.runtime.protocol import Accounting, FinishReason, GenerateRequest, PauseMode, RequestOutput
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.spec.base import Proposer

LATE_MS = 100.0
"""A step that waits longer for a constraint counts as late."""


@dataclass(frozen=True)
class CoreConfig:
    """Sizes and switches of an EngineCore; where the values come from is the caller's business."""

    num_pages: int
    page_size: int
    max_context: int
    """Longest sequence, prompt and output together."""
    vocab_size: int
    """Width of the logits."""
    eos_ids: tuple[int, ...] = ()
    state_slots: dict[str, int] = field(default_factory=dict)
    """Recurrent-state groups and how many slots each has."""
    window: WindowSpec | None = None
    """Of layers that have frames of their own."""
    limits: SchedulerLimits = field(default_factory=SchedulerLimits)
    policy: str = "program"
    radix_cache: bool = True
    overlap: bool = False
    jump_forward: bool = True
    """Take over tokens that a constraint forces without sampling them."""
    seed: int = 0
    """Seeds of requests that bring none are drawn from it."""
    max_waiting: int = 100_000


class EngineCore:
    """Requests in, outputs out, one step at a time. Not thread-safe.

    Args:
        executor: computes the steps.
        config: sizes.
        token_bytes: bytes of every token, for stop strings; ``None`` without a tokenizer.
        compiler: compiles constraints off this thread; ``None`` refuses them.
        wake: called from any thread when there may be something to do.
        proposer: guesses tokens for speculative decoding.
    """

    def __init__(
        self,
        executor: Executor,
        config: CoreConfig,
        token_bytes: Sequence[bytes | None] | None = None,
        compiler: Compiler | None = None,
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        proposer: Proposer | None = None,
    ) -> None:
        self.config = config
        self.totals = Accounting()
        self.programs = Programs(levelled=config.policy == "program")
        self.paused = False
        self.num_finished = 0
        self.num_steps = 0
        self.step_tokens = 0
        self.late_steps = 0
        """Steps that a constraint held up: its compilation or its masks, for longer than ``LATE_MS``."""
        frames = None if config.window is None else Frames(config.window, config.page_size)
        allocator = PageAllocator(config.num_pages, frames)
        states = {group: PageAllocator(slots) for group, slots in config.state_slots.items()}
        self.cache = RadixCache(allocator, config.page_size, states=states, enabled=config.radix_cache)
        limits = replace(config.limits, look_ahead=config.overlap)
        self._updater = Updater(config.eos_ids, token_bytes)
        self.scheduler = Scheduler(self.cache, limits, self._updater, get_policy(config.policy), clock, proposer)
        self.weights = Weights(executor, self.scheduler, wake, self.abort_all)
        self._executor = executor
        self._compiler = compiler
        self._wake = wake
        self._clock = clock
        self._order = 0
        self._in_flight: deque[int] = deque()
        self._maskless: deque[int] = deque()

    # --- requests ---------------------------------------------------------------------------------------------

    def add(self, wire: GenerateRequest) -> None:
        """Take a request in. One that cannot run ends at once with an output that says why."""
        reason, code = self._refusal(wire), "invalid_request"
        if reason is None and len(self.scheduler.waiting) >= self.config.max_waiting:
            reason, code = f"the queue is full ({self.config.max_waiting} requests); try again later", "queue_full"
        if reason is None and wire.sampling.max_new_tokens is None:
            limit = self.capacity - len(wire.token_ids)
            wire = msgspec.structs.replace(wire, sampling=msgspec.structs.replace(wire.sampling, max_new_tokens=limit))
        self._order += 1
        seed = wire.sampling.seed if wire.sampling.seed is not None else self._draw_seed(wire.sampling)
        program = None if wire.program is None else self.programs.enter(wire.program.program_id)
        request = Request(wire, self._order, self._clock(), seed, program)
        self.scheduler.queue.expect(request)
        if reason is None:
            reason = self._prepare(request)
        if reason is None:
            self.weights.hold(request)
            self.scheduler.add(request)
        else:
            self.scheduler.end(request, FinishReason(type="error", code=code, message=reason))

    def abort(self, request_id: str) -> bool:
        """End a request; ``False`` when there is none of that name."""
        request = self.scheduler.find(request_id)
        if request is None:
            return False
        self.scheduler.end(request, FinishReason(type="abort", code="cancelled", message="aborted by the client"))
        return True

    def abort_all(self, message: str) -> None:
        """End everything."""
        for request in [*self.scheduler.waiting.values(), *self.scheduler.running.values()]:
            self.scheduler.end(request, FinishReason(type="abort", code="cancelled", message=message))

    def pause(self, mode: PauseMode) -> None:
        """Compute nothing until ``resume``; what is being computed is taken in first. Requests may come and wait.

        ``abort`` ends the open requests, ``retract`` sends those that run back to the queue, so that what they have
        computed may be flushed, ``in_place`` leaves them as they are. Time limits go on.
        """
        while self._in_flight:
            self._supply_masks()
            self._collect()
        if mode == "abort":
            self.abort_all("generation was paused; send the request again")
        elif mode == "retract":
            self.scheduler.retract()
        self.paused = True

    def resume(self) -> None:
        """Go on after ``pause``."""
        self.paused = False

    def compile_ahead(self, spec: ConstraintSpec) -> None:
        """Begin to compile a constraint that a request will bring; from any thread. RuntimeError after ``close``."""
        if self._compiler is not None:
            self._compiler.submit(spec)

    def unpin(self, prefix: str) -> None:
        """Forget the pins whose names start with ``prefix``, those too that requests under way were to leave."""
        self.scheduler.memory.pins.unpin(prefix)
        for request in (*self.scheduler.waiting.values(), *self.scheduler.running.values()):
            if request.request.pin.startswith(prefix):
                request.request.pin = ""

    def park(self, pin: str, expected_s: float | None = None) -> None:
        """The sequences whose pins' names start with ``pin`` wait for a tool, for about ``expected_s`` seconds.

        They keep their pins, which go before others when memory is short; the next request that is to leave a pin of
        that name ends the wait. Raises ``ValueError`` for an empty name or a negative time.
        """
        if not pin or (expected_s is not None and not expected_s >= 0):
            raise ValueError(f"park({pin!r}, {expected_s!r}): give the pin's name, and seconds >= 0 or None")
        pins = self.scheduler.memory.pins
        pins.park_all(pin, expected_s)
        for request in self.scheduler.running.values():
            if request.finish is not None and request.request.pin.startswith(pin):
                pins.park(request.request.pin, expected_s)  # it has ended; a step in flight still delays the pin

    def flush_cache(self) -> int:
        """Drop all cached prefixes that nothing in flight uses, pinned ones too; returns the pages freed."""
        self.scheduler.memory.pins.unpin("")
        return self.cache.flush()

    def _refusal(self, wire: GenerateRequest) -> str | None:
        """Why a request can never run, or ``None``."""
        n, capacity = len(wire.token_ids), self.capacity
        if self.scheduler.find(wire.request_id) is not None:
            return f"rid {wire.request_id!r} belongs to a request that is still open; give another one"
        if n == 0:
            return "input_ids is empty: give at least one token, or a prompt that is not empty"
        if n > capacity or (n == capacity and wire.sampling.max_new_tokens != 0):
            return f"the prompt has {n} tokens and the engine holds {capacity}, output included; {self._remedy}"
        limit = wire.sampling.max_new_tokens
        if limit is not None and n + limit > capacity:
            return (
                f"max_new_tokens={limit} with a prompt of {n} tokens exceeds the {capacity} tokens the engine holds; "
                f"give max_new_tokens<={capacity - n}, or {self._remedy}"
            )
        if min(wire.token_ids) < 0 or max(wire.token_ids) >= self.config.vocab_size:
            bad = next(t for t in wire.token_ids if not 0 <= t < self.config.vocab_size)
            return f"input_ids has {bad}, outside the vocabulary of {self.config.vocab_size} tokens"
        if wire.logprobs is not None and wire.logprobs.start_len is not None and not 0 <= wire.logprobs.start_len <= n:
            return f"logprob_start_len={wire.logprobs.start_len} is outside the prompt of {n} tokens"
        return None

    @property
    def capacity(self) -> int:
        """Tokens of the longest sequence that fits the context and the page pool."""
        return min(self.config.max_context, self.config.num_pages * self.config.page_size)

    @property
    def _remedy(self) -> str:
        if self.config.max_context <= self.config.num_pages * self.config.page_size:
            return "shorten it: the model's context ends there"
        return f"raise max_total_tokens (now {self.config.num_pages * self.config.page_size})"

    def _draw_seed(self, sampling: SamplingParams) -> int:
        """A seed for the latest request: the engine's own, so that a run can be repeated."""
        if sampling.is_greedy:  # nothing is drawn
            return 0
        return int(np.random.SeedSequence([self.config.seed, self._order]).generate_state(1, np.uint64)[0])

    def _prepare(self, request: Request) -> str | None:
        """Stops and constraint of a new request; returns why it cannot run, or ``None``."""
        try:
            self._updater.prepare(request)
        except ValueError as error:
            return str(error)
        spec = request.request.constraint
        if spec is None:
            return None
        if self._compiler is None:
            return f"{spec.kind} needs a tokenizer, which skip_tokenizer_init=True left out"
        request.reasons.add(WaitReason.COMPILE)
        sampling = request.request.sampling
        banned = self._updater.ending_ids(sampling) if sampling.min_new_tokens else ()
        options = options_of(request.request, spec, self._compiler.vocab, self.config.jump_forward, banned)
        request.grammar = GrammarState(self._compiler.submit(spec), options)
        request.grammar.when_ready(self._wake)
        return None

    def _start_compiled(self) -> None:
        """Let go of requests whose constraint has been compiled, or end them with what was wrong with it."""
        for request in [r for r in self.scheduler.waiting.values() if WaitReason.COMPILE in r.reasons]:
            assert request.grammar is not None
            if not request.grammar.ready:
                continue
            request.reasons.discard(WaitReason.COMPILE)
            error = request.grammar.why_not()
            if error is not None:
                self.scheduler.end(request, _uncompiled(request, error))

    # --- steps ------------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Nothing to do until something happens outside: no step in flight, and nobody who could run."""
        if self._in_flight or self.paused:
            return not self._in_flight
        if self.scheduler.running:
            return False
        return all(r.reasons & {WaitReason.COMPILE, WaitReason.WEIGHTS} for r in self.scheduler.waiting.values())

    @property
    def has_time_limits(self) -> bool:
        """Some open request has to end by a certain time."""
        return self.scheduler.queue.has_time_limits

    @property
    def has_steps_in_flight(self) -> bool:
        """Something is being computed."""
        return bool(self._in_flight)

    def step(self) -> list[RequestOutput]:
        """Plan a step if there is something to compute, take in one that has finished; returns what came of it."""
        started = time.perf_counter()
        self._start_compiled()
        self._count_late(1000 * (time.perf_counter() - started))
        depth = 2 if self.config.overlap else 1
        self.scheduler.expire()
        resting = self.paused or self.weights.writing
        planned = self.scheduler.schedule() if len(self._in_flight) < depth and not resting else None
        if planned is not None:
            self._executor.submit(planned)
            self._in_flight.append(planned.step_id)
            self.num_steps += 1
            self.step_tokens += planned.num_tokens
            if any(task.constrained for task in planned.samples):
                self._maskless.append(planned.step_id)
        self._supply_masks()
        if len(self._in_flight) == depth or (planned is None and self._in_flight):
            self._collect()
            self._supply_masks()
        self.scheduler.memory.pins.keep_budget()
        self.weights.go_on(self.paused)
        return self._outputs()

    def _collect(self) -> None:
        result = self._executor.collect(self._in_flight.popleft())
        self._count_late(result.mask_wait_ms)
        self.scheduler.update(result)

    def _count_late(self, waited_ms: float) -> None:
        self.late_steps += waited_ms > LATE_MS

    def _supply_masks(self) -> None:
        """Fill the masks of the oldest step in flight; those of a later one depend on what it samples."""
        if not (self._maskless and self._in_flight and self._maskless[0] == self._in_flight[0]):
            return
        step_id = self._maskless.popleft()
        requests = self.scheduler.constrained(step_id)
        masks = np.full((len(requests), -(-self.config.vocab_size // 32)), -1, dtype=np.int32)
        for row, request in zip(masks, requests, strict=True):
            if request is None or request.grammar is None:
                continue
            expected = request.samples_in_flight[0] if request.samples_in_flight else None
            if expected is not None:
                row[:] = 0
                row[expected // 32] = np.array(1 << (expected % 32), dtype=np.uint32).view(np.int32)
            elif request.ending is None and not request.retreating:
                request.grammar.fill(row)
        self._executor.supply_masks(step_id, masks)

    def _outputs(self) -> list[RequestOutput]:
        outputs = self.scheduler.take_outputs()
        for output in outputs:
            if output.finish_reason is not None:
                self.num_finished += 1
                self.totals.add(output.accounting)
        return outputs

    def drain(self) -> list[RequestOutput]:
        """Collect what is in flight without planning more."""
        while self._in_flight:
            self._supply_masks()
            self._collect()
        return self._outputs()

    def close(self) -> None:
        """Stop the executor and the compiler; nothing may be in flight."""
        self._executor.shutdown()
        if self._compiler is not None:
            self._compiler.close()

    def statistics(self) -> dict[str, Any]:
        """Counters of the engine so far and its present load."""
        pages, pins = self.cache.allocator.counts(), self.scheduler.memory.pins
        return {
            "num_running": len(self.scheduler.running),
            "num_waiting": len(self.scheduler.waiting),
            "num_compiling": sum(WaitReason.COMPILE in r.reasons for r in self.scheduler.waiting.values()),
            "paused": self.paused,
            "num_finished": self.num_finished,
            "num_steps": self.num_steps,
            "step_tokens": self.step_tokens,
            "late_steps": self.late_steps,
            "failed_steps": self.scheduler.failed_steps,
            "preemptions": self.scheduler.preemptions,
            "evicted_pages": self.cache.evicted_pages,
            "pins": len(pins),
            "pinned_pages": self.cache.pinned_pages,
            "pins_dropped": pins.num_dropped,
            "pages": {"free": pages.free, "held": pages.held, "cached": pages.cached, "total": pages.total},
            "available_pages": self.cache.num_available,
            "page_mismatches": self.cache.allocator.mismatches + self.cache.checkpoints.mismatches,
            "states": self.cache.checkpoints.counts(),
            "frames": self.scheduler.memory.windows.counts(),
            "grammar": {} if self._compiler is None else self._compiler.counts(),
            "totals": msgspec.structs.asdict(self.totals),
        }


def _named(request: Request, message: str) -> str:
    spec = request.request.constraint
    return message if spec is None else name_the_constraint(spec, message)


def _uncompiled(request: Request, error: BaseException) -> FinishReason:
    """The end of a request whose constraint is not to be had."""
    if isinstance(error, ConstraintRefused | ConstraintError):
        return FinishReason(type="error", code="constraint_refused", message=_named(request, str(error)))
    if isinstance(error, CompilerBusy):
        return FinishReason(type="error", code="queue_full", message=str(error))
    message = f"the constraint could not be compiled: {type(error).__name__}: {error}"
    return FinishReason(type="error", code="internal", message=message)
