"""Engines for tests: an EngineCore over the scripted worker, with checks after every step; and what comes out of it.

``Bench`` steps a core by hand, ``ToyCompiler`` gives it constraints over token ids, ``toy_reference`` says what a
request must give by the laws alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from toy_constraints import END_MANY, VOCAB, ToyCompiler, ToyMatcher

from sglite.runtime.cache.frames import WindowSpec
from sglite.runtime.cache.node import RadixNode
from sglite.runtime.engine.core import CoreConfig, EngineCore
from sglite.runtime.engine.step_plan import SchedulerLimits
from sglite.runtime.executor.base import ThreadExecutor
from sglite.runtime.executor.scripted import ScriptedWorker, attempt_at, fingerprint_of
from sglite.runtime.protocol import (
    GenerateRequest,
    ProgramRef,
    RequestOutput,
    SchedulerOutput,
    StepOutput,
    TokenLogprob,
)
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.spec.base import Draft

__all__ = ["END_MANY", "VOCAB", "ToyCompiler", "ToyMatcher"]


def script(fingerprint: int) -> int:
    """Next token: few values, so that sequences meet and part."""
    return fingerprint % 5


class InlineExecutor:
    """Runs a step when its result is collected, or at once: the order of steps is all that may matter."""

    def __init__(self, worker: ScriptedWorker) -> None:
        self.worker = worker
        self.steps: dict = {}
        self.masks: dict = {}
        self.inspect = lambda step: None

    def submit(self, step) -> None:
        self.inspect(step)
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
        policy: str = "program",
        eos_ids: tuple[int, ...] = (),
        states: dict[str, int] | None = None,
        window: WindowSpec | None = None,
        next_token: Callable[[int], int] = script,
        threads: bool = False,
        pin_budget: float = 0.5,
        check_every: int = 1,
        **core,
    ) -> None:
        self.worker = ScriptedWorker(next_token, num_pages, page_size, states, window=window)
        limits = SchedulerLimits(
            max_step_tokens=max_step_tokens, max_running=max_running, chunk_size=chunk_size, pin_budget=pin_budget
        )
        config = CoreConfig(
            num_pages=num_pages, page_size=page_size, max_context=10_000, vocab_size=VOCAB, eos_ids=eos_ids,
            limits=limits, policy=policy, overlap=overlap, state_slots=states or {}, window=window,
            **core.pop("config", {}),
        )  # fmt: skip
        executor = ThreadExecutor(self.worker) if threads else InlineExecutor(self.worker)
        self.core = EngineCore(executor, config, **core)
        self.done: dict[str, Done] = {}
        self.limits = limits
        self.check_every = check_every
        if isinstance(executor, InlineExecutor):
            executor.inspect = self.check_rows

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
        if self.core.num_steps % self.check_every == 0:
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
        self.check_pins(nodes)
        self.check_frames({*in_tree, *held})

    def check_pins(self, nodes: list[RadixNode]) -> None:
        """What the tree counts as pinned is what pins lock and nobody else; never more than may be."""
        cache, pins = self.core.cache, self.core.scheduler.memory.pins
        locked = Counter(node for pin in pins._held.values() for node in cache.path(pin.node))
        hinted = Counter(node for place in pins._given_up.values() for node in cache.path(place))
        assert all((node.pins, node.hints) == (locked[node], hinted[node]) for node in nodes)
        assert cache.pinned_pages == sum(len(node.pages) for node in nodes if node.locks == node.pins > 0)
        assert cache.pinned_pages <= self.limits.pin_budget * cache.allocator.total

    def check_frames(self, pages: set[int]) -> None:
        """Every frame is free or has one page; it is in use exactly while running requests see the page."""
        frames = self.core.cache.allocator.frames
        if frames is None:
            return
        counts, running = frames.counts(), self.core.scheduler.running.values()
        seen = Counter(page for request in running for page in request.window.pages)
        assert frames._uses == seen and set(frames._frames) >= set(seen) and pages >= set(frames._frames)
        assert counts.free + counts.used + counts.idle == counts.total and frames.mismatches == 0
        assert len(set(frames._frames.values())) == len(frames._frames) == counts.used + counts.idle

    def check_rows(self, step: SchedulerOutput) -> None:
        """Rows that share a prefix stand side by side."""
        by_slot = {request.slot: request for request in self.core.scheduler.running.values()}
        at: dict[RadixNode, list[int]] = {}
        for index, row in enumerate(step.rows):
            for node in self.core.cache.path(by_slot[row.slot].cursor.node):
                at.setdefault(node, []).append(index)
        assert all(places[-1] - places[0] == len(places) - 1 for places in at.values())


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


@dataclass
class Outcome:
    """What a request must give."""

    tokens: list[int] = field(default_factory=list)
    end: str = "length"
    """``stop``, ``length`` or the code of an error."""
    complete: bool = False
    resampled: int = 0


def toy_outcome(
    prompt: Sequence[int],
    n: int,
    *,
    constraint: str | None = None,
    eos_ids: tuple[int, ...] = (),
    stop_ids: tuple[int, ...] = (),
    min_new: int = 0,
    next_token: Callable[[int], int] = script,
    close: bool = False,
    stops: Callable[[list[int]], bool] = lambda tokens: False,
) -> Outcome:
    """What becomes of one request by the laws alone: no cache, no batch, no steps.

    A token that is not allowed, or that ends the sequence before ``min_new`` tokens, gives way to the next id. Where
    none is allowed the value is taken back and tried again.
    """
    matcher = None if constraint is None else ToyMatcher(constraint.split(), eos_ids, close_at=n if close else None)
    outcome, attempts = Outcome(), [0] * (n + 1)
    output = outcome.tokens
    while len(output) < n and not (matcher is not None and matcher.finished):
        allowed = set(range(VOCAB)) if matcher is None else matcher.allowed()
        if matcher is not None and not allowed:
            held, back = matcher.held, matcher.retreat()
            outcome.resampled += back
            for position in range(len(output) - back, len(output)):
                attempts[position] += 1
            del output[len(output) - held :]
            if not back:
                outcome.end = "constraint_unsatisfied"
                return outcome
            continue
        allowed -= {*eos_ids, *stop_ids} if len(output) < min_new else set()
        if not allowed:
            outcome.end = "sampling"
            return outcome
        token = next_token(attempt_at(fingerprint_of([*prompt, *output]), attempts[len(output)]))
        while token not in allowed:
            token = (token + 1) % VOCAB
        output.append(token)
        if matcher is not None:
            matcher.accept(token)
        if token in eos_ids or token in stop_ids or stops(output):
            outcome.end = "stop"
            break
    if matcher is not None:
        outcome.complete = matcher.accepting
        outcome.end = "stop" if matcher.finished else outcome.end
    return outcome


def toy_reference(prompt: Sequence[int], n: int, **fields) -> list[int]:
    """The output alone."""
    return toy_outcome(prompt, n, **fields).tokens


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


@dataclass
class ForkNode:
    """A request of a fork program and what it must give."""

    prompt: list[int]
    n: int
    ref: ProgramRef
    output: list[int]


def fork_program(rng: random.Random, depth: int = 6, width: int = 64, total: int = 150) -> list[ForkNode]:
    """A program of nested forks: a branch goes on from all that its parent knew and gave, with tokens of its own.

    Branches may begin with the same tokens. At most ``depth`` forks deep, ``width`` branches wide, about ``total``
    requests in all; the parent of a fork is asked for as a request of its own, as the language does.
    """
    nodes: list[ForkNode] = []

    def grow(state: list[int], path: str, group: str, siblings: int, level: int) -> None:
        prompt = state + [rng.randrange(5) for _ in range(rng.randrange(0 if state else 1, 9))]
        n = rng.randrange(6)
        forks = rng.choice([0, 1, 2, 3, 8, width]) if level < depth and len(nodes) < total else 0
        ref = ProgramRef(
            program_id="p", node_id=path, group_id=group, group_size=siblings, upcoming=int(forks > 0)
        )  # fmt: skip
        output = toy_reference(prompt, n)
        nodes.append(ForkNode(prompt, n, ref, output))
        if forks:
            state = prompt + output
            nodes.append(ForkNode(state, 0, ProgramRef(program_id="p", node_id=f"{path}/fork"), []))
            for branch in range(forks):
                grow(state, f"{path}.{branch}", f"{path}/fork", forks, level + 1)

    grow([], "0", "", 1, 0)
    return nodes
