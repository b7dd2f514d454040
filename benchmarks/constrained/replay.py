"""A scripted model that writes given answers under their constraints, through the real step loop.

The worker has no network: its next token is the answer's own next token, so whatever jump-forward saves or costs shows
in the counters of ``meta_info`` and in nothing else. An answer that the constraint does not let through comes out
changed; it is counted as diverged and left out of the sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.spec import ConstraintSpec
from sglite.constrained.vocab import Vocabulary
from sglite.runtime.engine.client import EngineThread
from sglite.runtime.engine.core import CoreConfig, EngineCore
from sglite.runtime.engine.presenter import Presenter
from sglite.runtime.engine.step_plan import SchedulerLimits
from sglite.runtime.executor.base import ThreadExecutor
from sglite.runtime.executor.scripted import ScriptedWorker, extend_fingerprint, fingerprint_of
from sglite.runtime.protocol import GenerateRequest, RequestOutput
from sglite.runtime.sample.params import SamplingParams

CONTEXT = 32_768
PAGE_SIZE = 16
NUM_PAGES = 8192
AT_ONCE = 16
"""Requests in flight: enough for the loop to be busy, few enough for every page to fit."""
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Answer:
    """A text that the model is to write under a constraint."""

    name: str
    spec: ConstraintSpec
    text: str


@dataclass(frozen=True)
class Cost:
    """What one answer cost, from ``meta_info``."""

    name: str
    completion_tokens: int
    forward_passes: int
    forced_tokens: int
    problem: str = ""
    """Why it does not count: refused, or what came out is not the answer."""

    @property
    def ratio(self) -> float:
        return self.forward_passes / self.completion_tokens


@dataclass
class Costs:
    """Costs and their sums over the answers that came out as they were."""

    costs: list[Cost] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        good = [cost for cost in self.costs if not cost.problem]
        tokens = sum(cost.completion_tokens for cost in good)
        passes = sum(cost.forward_passes for cost in good)
        return {
            "answers": len(good),
            "left_out": len(self.costs) - len(good),
            "completion_tokens": tokens,
            "forward_passes": passes,
            "forced_tokens": sum(cost.forced_tokens for cost in good),
            "passes_per_token": round(passes / tokens, 4) if tokens else None,
        }


class _Client:
    """Collects one request's outputs."""

    def __init__(self, presenter: Presenter) -> None:
        self.presenter = presenter
        self.done: Future[dict[str, Any]] = Future()

    def __call__(self, output: RequestOutput) -> None:
        self.presenter.add(output)
        if output.finish_reason is not None:
            self.done.set_result(self.presenter.progress().event())


class ReplayEngine:
    """The step loop over a scripted worker. Make one with ``replay_engine``."""

    def __init__(self, vocab: Vocabulary, compiler: ConstraintCompiler, *, overlap: bool, jump_forward: bool) -> None:
        self._vocab = vocab
        self._script: dict[int, int] = {}
        self._worker = ScriptedWorker(lambda print_: self._script.get(print_, 0), NUM_PAGES, PAGE_SIZE)
        config = CoreConfig(
            num_pages=NUM_PAGES,
            page_size=PAGE_SIZE,
            max_context=CONTEXT,
            vocab_size=vocab.size,
            eos_ids=vocab.eos_ids,
            limits=SchedulerLimits(max_step_tokens=4096, max_running=AT_ONCE),
            overlap=overlap,
            jump_forward=jump_forward,
        )
        executor = ThreadExecutor(self._worker)
        self._thread = EngineThread(lambda wake: EngineCore(executor, config, vocab.token_bytes, compiler, wake))

    def close(self) -> None:
        """End the thread and its compiler."""
        self._thread.close()

    def replay(self, answers: Sequence[Answer]) -> Costs:
        """Have every answer written."""
        costs = Costs()
        for first in range(0, len(answers), AT_ONCE):
            self._script.clear()
            self._worker.steps.clear()
            started = [self._start(answer, first + i) for i, answer in enumerate(answers[first : first + AT_ONCE])]
            costs.costs += [_cost(answer, ids, client.done.result(PATIENCE_S)) for answer, ids, client in started]
        return costs

    def _start(self, answer: Answer, index: int) -> tuple[Answer, list[int], _Client]:
        ids = self._vocab.encode(answer.text)
        prompt = self._vocab.encode(f"Request {index}:")
        fingerprint = fingerprint_of(prompt)
        for token in [*ids, self._vocab.eos_ids[0]]:
            self._script[fingerprint] = token
            fingerprint = extend_fingerprint(fingerprint, token)
        sampling = SamplingParams(temperature=0.0, max_new_tokens=min(len(ids) + 8, CONTEXT - len(prompt) - 1))
        client = _Client(Presenter(f"r{index}", sampling, None, None))
        request = GenerateRequest(request_id=f"r{index}", token_ids=prompt, sampling=sampling, constraint=answer.spec)
        self._thread.submit(request, client)
        return answer, ids, client


@contextmanager
def replay_engine(
    vocab: Vocabulary, compiler: ConstraintCompiler, *, overlap: bool, jump_forward: bool = True
) -> Iterator[ReplayEngine]:
    """A running engine, closed at the end. It takes over the compiler."""
    engine = ReplayEngine(vocab, compiler, overlap=overlap, jump_forward=jump_forward)
    try:
        yield engine
    finally:
        engine.close()


def _cost(answer: Answer, ids: list[int], event: dict[str, Any]) -> Cost:
    meta = event["meta_info"]
    problem = _problem(ids, event["output_ids"], meta["finish_reason"] or {})
    return Cost(answer.name, meta["completion_tokens"], meta["forward_passes"], meta["forced_tokens"], problem)


def _problem(ids: list[int], output: list[int], reason: dict[str, Any]) -> str:
    """What is wrong with an output; an end of sequence behind the answer is not."""
    if reason.get("type") not in ("stop", "length"):
        return str(reason.get("message") or reason)
    if output[: len(ids)] != ids or len(output) > len(ids) + 1:
        at = next((i for i, (a, b) in enumerate(zip(output, ids, strict=False)) if a != b), min(len(output), len(ids)))
        return f"diverged at token {at} of {len(ids)}"
    return "" if reason["type"] == "stop" else "did not end"
