"""Processor time of a decode step outside the model, by part: microseconds of one thread.

    python -m benchmarks.engine_step [--models scripted tiny 29M wide] [--cases greedy sampled json] [--batch 16]

The step loop, its worker and the API's side of it take turns on one thread, so that each part's time can be told apart;
a part's figure is the least of several rounds, without what it calls of other parts. *wire* is an output's way to
another process, *present* what becomes of it there for a stream that is read after every step. ``--profile`` adds the
functions that take the most time.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.shapes import DENSE, QWEN3
from sglite.runtime.backend.cpu_native import cpu_backend
from sglite.runtime.engine.admission import Admission
from sglite.runtime.engine.core import CoreConfig, EngineCore
from sglite.runtime.engine.generation import Generation
from sglite.runtime.engine.messages import FromEngine, Outputs
from sglite.runtime.engine.weight_version import WeightVersion
from sglite.runtime.executor.base import Masks
from sglite.runtime.executor.freed import keep_freed_memory
from sglite.runtime.executor.scripted import ScriptedWorker
from sglite.runtime.executor.worker import ModelWorker
from sglite.runtime.model.loader import load_model
from sglite.runtime.protocol import GenerateRequest, SchedulerOutput, StepOutput
from sglite.runtime.text.tokenizer import Tokenizer, load_tokenizer

DEMO = Path(__file__).parents[1] / "sglite" / "bundled" / "sglite-demo"
PAGE, PROMPT, WARM_UP, STEPS = 16, 128, 24, 40
EOS = 4087
SHAPE = {**QWEN3, "head_dim": 64}
MODELS: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
             "intermediate_size": 256, "vocab_size": 8192},
    "29M": DENSE["29M"],
    "wide": {"hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
             "intermediate_size": 256, "vocab_size": 151936},
}  # fmt: skip
"""``wide``: a small model with the vocabulary of a large one, for the sampler."""
_WORD = {"type": "string", "maxLength": 12}
_RECORD = {
    "type": "object",
    "properties": {"name": _WORD, "quantity": {"type": "integer"}, "state": {"enum": ["new", "used", "broken"]}},
    "required": ["name", "quantity", "state"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": _RECORD, "minItems": 1000}
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8, "top_p": 0.95},
    "json": {"temperature": 0.8, "json_schema": json.dumps(SCHEMA)},
}


class Parts:
    """Time of the thread by part, without what is spent in other parts."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        self._stack: list[str] = []
        self._since = 0

    def watch(self, owner: Any, method: str, part: str) -> None:
        """From now on the time in ``owner.method`` belongs to ``part``."""
        setattr(owner, method, self.timed(getattr(owner, method), part))

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """``function``, with its time told."""

        def call(*args: Any, **named: Any) -> Any:
            self._turn()
            self._stack.append(part)
            try:
                return function(*args, **named)
            finally:
                self._turn()
                self._stack.pop()

        return call

    def _turn(self) -> None:
        now = time.thread_time_ns()
        if self._stack:
            self.spent[self._stack[-1]] = self.spent.get(self._stack[-1], 0) + now - self._since
        self._since = now

    def take(self) -> dict[str, int]:
        """Nanoseconds by part since the last call."""
        found, self.spent = self.spent, {}
        return found


class Inline:
    """An executor that computes a step on the caller's thread when its result is wanted."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self._steps: dict[int, SchedulerOutput] = {}
        self._masks: dict[int, Masks] = {}

    def submit(self, step: SchedulerOutput) -> None:
        self._steps[step.step_id] = step

    def supply_masks(self, step_id: int, masks: Masks) -> None:
        self._masks[step_id] = masks

    def collect(self, step_id: int) -> StepOutput:
        found: StepOutput = self.worker.execute(self._steps.pop(step_id), lambda: self._masks.pop(step_id, None))
        return found


class Bench:
    """``batch`` requests that decode, and readers of their streams."""

    def __init__(self, model: str, case: str, batch: int, overlap: bool) -> None:
        self.parts = Parts()
        tokenizer = load_tokenizer(DEMO)
        vocab = 4096 if model == "scripted" else MODELS[model]["vocab_size"]
        pages = batch * (PROMPT + 1024) // PAGE
        worker = self._scripted(pages) if model == "scripted" else self._model(model, pages)
        config = CoreConfig(
            num_pages=pages, page_size=PAGE, max_context=4096, vocab_size=vocab, eos_ids=(EOS,), overlap=overlap
        )
        table = [*tokenizer.token_bytes(), *[None] * vocab][:vocab]
        compiler = _compiler(tokenizer, table, vocab) if case == "json" else None
        executor: Any = Inline(worker)
        self.core = EngineCore(executor, config, table, compiler)
        self.handles: dict[str, Generation] = {}
        for number in range(batch):
            self._add(tokenizer, vocab, SAMPLING[case], number)
        for method, part in (("schedule", "schedule"), ("update", "update")):
            self.parts.watch(self.core.scheduler, method, part)
        self.parts.watch(self.core, "_supply_masks", "masks")
        self.loop = self.parts.timed(self.core.step, "core")
        self.deliver = self.parts.timed(self._deliver, "present")
        self._encode = self.parts.timed(msgspec.msgpack.Encoder().encode, "wire")
        self._decode = self.parts.timed(msgspec.msgpack.Decoder(FromEngine).decode, "wire")

    def _scripted(self, pages: int) -> Any:
        worker = ScriptedWorker(lambda print_: 300 + print_ % 2000, pages, PAGE)
        self.parts.watch(worker, "execute", "worker")
        return worker

    def _model(self, model: str, pages: int) -> Any:
        backend = cpu_backend(1)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps({**SHAPE, **MODELS[model]}))
            loaded = load_model(folder, backend=backend, dtype="bfloat16", load_format="dummy")
        worker = ModelWorker(
            loaded.model, backend, backend.allocate_pool(loaded.groups, num_pages=pages, page_size=PAGE)
        )
        for owner, method, part in (
            (worker, "execute", "worker"), (worker, "_sample", "sample"), (worker._rows, "batch", "layout"),
            (backend, "plan", "plan"), (loaded.model, "forward", "model"), (loaded.model, "logits", "model"),
        ):  # fmt: skip
            self.parts.watch(owner, method, part)
        return worker

    def _add(self, tokenizer: Tokenizer, vocab: int, sampling: dict[str, Any], number: int) -> None:
        admission = Admission(vocab, (EOS,), tokenizer, None)
        ids = [400 + (number * 37 + i * (1 + number)) % 2000 for i in range(PROMPT)]
        call = admission.admit({**sampling, "max_new_tokens": 900, "ignore_eos": True}, len(ids))
        generation = Generation(call.presenters(tokenizer, WeightVersion()), lambda request_id: None)
        requests: list[GenerateRequest] = call.requests(ids, 4096, None, "")
        for request in requests:
            self.core.add(request)
            self.handles[request.request_id] = generation

    def _deliver(self, outputs: list[Any]) -> None:
        for output in self._decode(self._encode(Outputs(outputs))).outputs:
            handle = self.handles[output.request_id]
            handle.push(output)
            handle.progress()

    def step(self) -> None:
        """One turn of everybody."""
        outputs = self.loop()
        if outputs:
            self.deliver(outputs)

    def warm_up(self) -> None:
        """Until all of them decode."""
        deadline = time.monotonic() + 120
        while len(self.core.scheduler.running) < len(self.handles):
            self.step()
            if self.core.is_idle:  # a constraint is being compiled
                assert time.monotonic() < deadline, "not all requests began"
                time.sleep(0.01)
        for _ in range(WARM_UP):
            self.step()
        self.parts.take()


def _compiler(tokenizer: Tokenizer, table: list[bytes | None], vocab: int) -> Any:
    from sglite.constrained.compiler import ConstraintCompiler
    from sglite.constrained.vocab import Vocabulary

    return ConstraintCompiler(
        Vocabulary(table, (EOS,), lambda text: tokenizer.encode(text, parse_special=False), vocab), deadline_s=60
    )


COLUMNS = ("core", "schedule", "update", "masks", "worker", "layout", "plan", "sample", "model", "wire", "present")


def measure(model: str, case: str, batch: int, rounds: int, overlap: bool) -> str:
    """A row of the table."""
    bench = Bench(model, case, batch, overlap)
    bench.warm_up()
    found = []
    tokens = 0
    for _ in range(rounds):
        before = bench.core.totals, sum(r.num_output for r in bench.core.scheduler.running.values())
        for _ in range(STEPS):
            bench.step()
        tokens += sum(r.num_output for r in bench.core.scheduler.running.values()) - before[1]
        found.append({part: ns / STEPS / 1000 for part, ns in bench.parts.take().items()})
    assert len(bench.core.scheduler.running) == batch, "a request ended"
    least = {part: min(row.get(part, 0.0) for row in found) for part in COLUMNS}
    own = [part for part in COLUMNS if part != "model" and not (part == "worker" and model == "scripted")]
    cells = " | ".join(f"{least[part]:.0f}" for part in COLUMNS)
    each = tokens / rounds / STEPS / batch
    return f"| {model}, {case} | {cells} | {sum(least[part] for part in own):.0f} | {each:.2f} |"


def profile(model: str, case: str, batch: int, overlap: bool) -> None:
    """Print the functions that take the most time of a step."""
    bench = Bench(model, case, batch, overlap)
    bench.warm_up()
    profiler = cProfile.Profile(time.thread_time)
    profiler.enable()
    for _ in range(3 * STEPS):
        bench.step()
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(45)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["scripted", *MODELS], default=["scripted", *MODELS])
    parser.add_argument("--cases", nargs="+", choices=SAMPLING, default=list(SAMPLING))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--sync", action="store_true", help="without overlap")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"| | {' | '.join(COLUMNS)} | all but the model | tokens a row |")
    print("|---|" + "---:|" * (len(COLUMNS) + 2))
    for model in given.models:
        for case in given.cases:
            print(measure(model, case, given.batch, given.rounds, not given.sync), flush=True)
            if given.profile:
                profile(model, case, given.batch, not given.sync)


if __name__ == "__main__":
    main()
