"""Engines for tests: an EngineCore over the scripted worker, with checks after every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sglite.runtime.engine.core import CoreConfig, EngineCore
from sglite.runtime.engine.scheduler import SchedulerLimits
from sglite.runtime.executor.base import ThreadExecutor
from sglite.runtime.executor.scripted import ScriptedWorker
from sglite.runtime.protocol import GenerateRequest, RequestOutput
from sglite.runtime.sample.params import SamplingParams

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
        from sglite.runtime.protocol import StepOutput

        step = self.steps.pop(step_id)
        try:
            return self.worker.execute(step, lambda: self.masks.pop(step_id, None))
        except RuntimeError as error:
            return StepOutput(step_id=step_id, error=str(error))

    def shutdown(self) -> None:
        pass


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
        unlocked = 0
        for node in nodes:
            assert node.start <= node.ready <= node.planned <= node.end == node.start + len(node.tokens)
            assert node.parent is not None and node.parent.end == node.start
            assert node.locks >= node.cursors + sum(child.locks for child in node.children.values())
            assert all(child.tokens[0] == token for token, child in node.children.items())
            assert sum(child.continues for child in node.children.values()) <= 1
            assert node.planned == node.end or node.locks > 0
            unlocked += len(node.pages) if node.locks == 0 else 0
        assert cache.num_available == counts.free + unlocked
