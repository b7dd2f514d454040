"""Engines for tests: an EngineCore over the scripted worker, with checks after every step; and what comes out of it.

``Bench`` steps a core by hand, ``ToyCompiler`` gives it constraints over token ids, ``toy_reference`` says what a
request must give by the laws alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from sglite.constrained import bitmask
from sglite.constrained.spec import ConstraintRefused, ConstraintSpec
from sglite.runtime.engine.core import CoreConfig, EngineCore
from sglite.runtime.engine.scheduler import SchedulerLimits
from sglite.runtime.executor.base import ThreadExecutor
from sglite.runtime.executor.scripted import ScriptedWorker, fingerprint_of
from sglite.runtime.protocol import GenerateRequest, RequestOutput, StepOutput, TokenLogprob
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.spec.base import Draft

VOCAB = 64


def script(fingerprint: int) -> int:
    """Next token: few values, so that sequences meet and part."""
    return fingerprint % 5


class InlineExecutor:
    """Runs a step when its result is collected, or at once: the order of steps is all that may matter."""

    def __init__(self, worker: ScriptedWorker) -> None:
        self.worker = worker
        self.steps: dict = {}
        self.masks: dict = {}

    def submit(self, step) -> None:
        self.steps[step.step_id] = step

    def supply_masks(self, step_id, masks) -> None:
        self.masks[step_id] = masks

    def collect(self, step_id):
        step = self.steps.pop(step_id)
        try:
            return self.worker.execute(step, lambda: self.masks.pop(step_id, None))
        except RuntimeError as error:
            return StepOutput(step_id=step_id, error=str(error))

    def shutdown(self) -> None:
        assert not self.steps, "shut down with steps in flight"


@dataclass
class Done:
    """What a request gave."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list = field(default_factory=list)
    prompt_logprobs: list = field(default_factory=list)
    last: RequestOutput | None = None
    terminals: int = 0


class Bench:
    """An engine core with a scripted worker, stepped by hand."""

    def __init__(
        self,
        num_pages: int = 64,
        page_size: int = 4,
        max_step_tokens: int = 64,
        max_running: int = 8,
        chunk_size: int | None = None,
        overlap: bool = False,
        policy: str = "fcfs",
        eos_ids: tuple[int, ...] = (),
        states: dict[str, int] | None = None,
        next_token: Callable[[int], int] = script,
        threads: bool = False,
        **core,
    ) -> None:
        self.worker = ScriptedWorker(next_token, num_pages, page_size, states)
        limits = SchedulerLimits(max_step_tokens=max_step_tokens, max_running=max_running, chunk_size=chunk_size)
        config = CoreConfig(
            num_pages=num_pages, page_size=page_size, max_context=10_000, vocab_size=VOCAB, eos_ids=eos_ids,
            limits=limits, policy=policy, overlap=overlap, state_slots=states or {}, **core.pop("config", {}),
        )  # fmt: skip
        executor = ThreadExecutor(self.worker) if threads else InlineExecutor(self.worker)
        self.core = EngineCore(executor, config, **core)
        self.done: dict[str, Done] = {}
        self.limits = limits

    def add(self, name: str, prompt: list[int], n: int = 8, **fields) -> None:
        """Queue a request for ``n`` tokens."""
        sampling = fields.pop("sampling", {})
        self.done[name] = Done()
        params = SamplingParams(**{"max_new_tokens": n, "ignore_eos": True, **sampling})
        self.core.add(GenerateRequest(request_id=name, token_ids=prompt, sampling=params, **fields))

    def step(self) -> None:
        """One step and every check there is."""
        for output in self.core.step():
            done = self.done[output.request_id]
            assert done.terminals == 0, f"{output.request_id} got something after its end"
            done.tokens += output.new_token_ids
            done.logprobs += output.logprobs
            done.prompt_logprobs += output.prompt_logprobs
            done.last = output
            done.terminals += output.finish_reason is not None
        self.check()

    def run(self, limit: int = 2000) -> dict[str, Done]:
        """Until nothing is left."""
        for _ in range(limit):
            if not self.core.scheduler.has_work:
                break
            self.step()
        assert not self.core.scheduler.has_work, (self.core.scheduler.waiting, self.core.scheduler.running)
        self.step()  # an abort between two steps is reported by the next one, even when nothing is left to compute
        assert all(done.terminals == 1 for done in self.done.values())
        return self.done

    def check(self) -> None:
        """Conservation of pages and slots, order of the integers, budgets, and the tree's own promises."""
        scheduler, cache = self.core.scheduler, self.core.cache
        nodes = list(cache.nodes())
        in_tree = [page for node in nodes for page in node.pages]
        held = [page for request in scheduler.running.values() for page in request.held_pages]
        counts = cache.allocator.counts()
        assert cache.allocator.mismatches == 0
        assert len(set(in_tree + held)) == len(in_tree) + len(held)
        assert (counts.cached, counts.held) == (len(in_tree), len(held)), (counts, in_tree, held)
        assert counts.free + counts.held + counts.cached == counts.total
        for group, states in cache.states.items():
            slots = states.counts()
            running = [request.state_slots[group] for request in scheduler.running.values()]
            saved = [node.checkpoint[group] for node in nodes if node.checkpoint]
            assert (slots.held, slots.cached) == (len(running), len(saved)), group
            assert slots.free + slots.held + slots.cached == slots.total and states.mismatches == 0
        for request in scheduler.running.values():
            request.check()
        assert len(scheduler.running) <= self.limits.max_running
        if self.worker.steps:
            assert self.worker.steps[-1].num_tokens <= self.limits.max_step_tokens
        kept = {node for request in scheduler.running.values() for node in cache.path(request.cursor.node)}
        unlocked = 0
        for node in nodes:
            assert node.start <= node.ready <= node.planned <= node.end == node.start + len(node.tokens)
            assert node.parent is not None and node.parent.end == node.start
            assert node.locks >= node.cursors + sum(child.locks for child in node.children.values())
            assert all(child.tokens[0] == token for token, child in node.children.items())
            assert sum(child.continues for child in node.children.values()) <= 1
            assert node.planned == node.end or node in kept, f"nobody keeps the promise of {node}"
            unlocked += len(node.pages) if node.locks == 0 else 0
        assert cache.num_available == counts.free + unlocked


# --- constraints over token ids ---------------------------------------------------------------------------------

WILD = "*"
"""An element of a toy constraint: any of the tokens 0 to 4."""
NEXT = "+"
"""The token before plus one, modulo 5: forced, and only right for who knows what was sampled."""


class ToyMatcher:
    """A constraint over token ids: one element a position, such as ``"* + 7 1|3 +"``; then nothing, or an end token.

    Keeps what it accepted, so that a test can compare it with the output of its request.
    """

    error = None

    def __init__(self, elements: list[str], eos_ids: tuple[int, ...] = (), taken: list[int] | None = None) -> None:
        self.elements = elements
        self.eos_ids = eos_ids
        self.taken = list(taken or [])

    def allowed(self) -> set[int]:
        """Tokens that may come next."""
        if len(self.taken) >= len(self.elements):
            return set(self.eos_ids)
        element = self.elements[len(self.taken)]
        if element == WILD:
            return set(range(5))
        if element == NEXT:
            return {(self.taken[-1] + 1) % 5 if self.taken else 0}
        return {int(token) for token in element.split("|")}

    def fill(self, mask) -> bool:
        mask[:] = 0
        bitmask.allow(mask, self.allowed())
        return True

    def accept(self, token_id: int) -> bool:
        if token_id not in self.allowed():
            return False
        self.taken.append(token_id)
        return True

    def forced(self, limit: int = 64) -> list[int]:
        ahead = ToyMatcher(self.elements, self.eos_ids, self.taken)
        while len(ahead.taken) < min(len(self.taken) + limit, len(self.elements)) and len(ahead.allowed()) == 1:
            ahead.accept(next(iter(ahead.allowed())))
        return ahead.taken[len(self.taken) :]

    @property
    def accepting(self) -> bool:
        return len(self.taken) >= len(self.elements)

    @property
    def finished(self) -> bool:
        return len(self.taken) >= len(self.elements) + (1 if self.eos_ids else 0)


class ToyCompiler:
    """Compiles ``ConstraintSpec.regex`` texts into toy constraints: at once, or when ``release`` is called.

    The text ``refused`` is refused and ``broken`` fails in an unforeseen way.
    """

    def __init__(self, eos_ids: tuple[int, ...] = (), slow: bool = False) -> None:
        self.eos_ids = eos_ids
        self.slow = slow
        self.pending: list[tuple[ConstraintSpec, Future]] = []
        self.matchers: list[ToyMatcher] = []
        self.closed = False

    def submit(self, spec: ConstraintSpec) -> Future:
        future: Future = Future()
        self.pending.append((spec, future))
        if not self.slow:
            self.release()
        return future

    def release(self) -> None:
        """Finish everything that is being compiled."""
        pending, self.pending = self.pending, []
        for spec, future in pending:
            if spec.value == "refused":
                future.set_exception(ConstraintRefused("a toy that is refused"))
            elif spec.value == "broken":
                future.set_exception(KeyError("compiler bug"))
            else:
                future.set_result(_Compiled(self, spec.value.split()))

    def close(self) -> None:
        self.closed = True


class _Compiled:
    def __init__(self, compiler: ToyCompiler, elements: list[str]) -> None:
        self._compiler = compiler
        self._elements = elements

    def matcher(self) -> ToyMatcher:
        matcher = ToyMatcher(self._elements, self._compiler.eos_ids)
        self._compiler.matchers.append(matcher)
        return matcher


class Guesser:
    """Proposes draft trees: paths that are sometimes right, with wrong turns, some of them before the right one."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def propose(self, tokens: Sequence[int], limit: int) -> Draft | None:
        rng = self._rng
        draft = Draft([], [])
        tip, path = -1, list(tokens)
        for _ in range(rng.randrange(5)):
            guess = script(fingerprint_of(path)) if rng.random() < 0.8 else rng.randrange(5)
            siblings = [guess] if rng.random() < 0.6 else [(guess + 1) % 5, guess]
            if len(draft.tokens) + len(siblings) > limit:
                break
            for token in siblings:
                draft.tokens.append(token)
                draft.parents.append(tip)
            tip = len(draft.tokens) - 1
            path.append(guess)
        return draft if draft.tokens else None


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# --- what outputs must be ----------------------------------------------------------------------------------------


def toy_reference(
    prompt: Sequence[int],
    n: int,
    *,
    constraint: str | None = None,
    eos_ids: tuple[int, ...] = (),
    stop_ids: tuple[int, ...] = (),
    min_new: int = 0,
    next_token: Callable[[int], int] = script,
) -> list[int]:
    """The output of one request by the laws alone: no cache, no batch, no steps.

    A token that is not allowed, or that ends the sequence before ``min_new`` tokens, gives way to the next id.
    """
    matcher = None if constraint is None else ToyMatcher(constraint.split(), eos_ids)
    output: list[int] = []
    while len(output) < n and not (matcher is not None and matcher.finished):
        token = next_token(fingerprint_of([*prompt, *output]))
        forced = matcher is not None and len(matcher.taken) < len(matcher.elements) and len(matcher.allowed()) == 1
        banned = {*eos_ids, *stop_ids} if len(output) < min_new and not forced else set()
        while token in banned or (matcher is not None and token not in matcher.allowed()):
            token = (token + 1) % VOCAB
        output.append(token)
        if matcher is not None:
            matcher.accept(token)
        if token in eos_ids or token in stop_ids:
            break
    return output


def toy_logprobs(worker: ScriptedWorker, tokens: Sequence[int], start: int) -> list[TokenLogprob]:
    """The rows that the scripted worker must give for ``tokens[start:]``."""
    first = max(start, 1)
    return [worker._logprob(fingerprint_of(tokens[:i]), tokens[i]) for i in range(first, len(tokens))]


def program(rng: random.Random) -> list[list[int]]:
    """Prompts of a random fork program: every one extends a prefix of another, as the branches of a program do."""
    prompts = [[rng.randrange(5) for _ in range(rng.randrange(1, 20))]]
    for _ in range(rng.randrange(1, 9)):
        trunk = rng.choice(prompts)
        cut = rng.choice([len(trunk), len(trunk), rng.randrange(len(trunk) + 1)])
        prompts.append(trunk[:cut] + [rng.randrange(5) for _ in range(rng.randrange(1, 12))])
    return prompts
