"""An ``Engine`` whose steps a scripted worker computes: real tokenizer, real constraints, instant and exact.

What it generates after a prompt is a function of the prompt alone, and every step it ran can be looked at.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tiny_engines import is_idle, settles
from tiny_models import make_tokenizer, tiny_config

from sglite import Engine
from sglite.runtime.config import EngineArgs, Facts
from sglite.runtime.executor.base import ThreadExecutor
from sglite.runtime.executor.build import Built
from sglite.runtime.executor.scripted import ScriptedWorker
from sglite.runtime.resolve import resolve

VOCAB = 384
EOS = 2
LETTERS = range(40, 60)
"""What the script writes unless it ends the text."""


def script(fingerprint: int) -> int:
    """Mostly one of few letters, now and then the end of the text."""
    return EOS if fingerprint % 23 == 0 else LETTERS[fingerprint // 23 % len(LETTERS)]


class GatedWorker(ScriptedWorker):
    """``gate``: cleared, steps wait for it."""

    gate: threading.Event

    def execute(self, step: Any, masks: Callable[[], Any]) -> Any:
        self.gate.wait()
        return super().execute(step, masks)


class ScriptedEngine(Engine):
    """``worker``: what computes its steps."""

    worker: GatedWorker

    @property
    def num_steps(self) -> int:
        """Steps so far, once nothing is open."""
        assert settles(lambda: is_idle(self))
        return int(self.get_server_info()["num_steps"])

    def rest(self) -> dict[str, Any]:
        """What the engine says when nothing is open and nothing is cached."""
        assert settles(lambda: is_idle(self))
        self.flush_cache()
        return self.get_server_info()


def scripted_engine(folder: Path, next_token: Callable[[int], int] = script, **arguments: Any) -> ScriptedEngine:
    """An engine for the tokenizer in ``folder``; of its model only the vocabulary's size counts."""
    made: list[GatedWorker] = []

    def build(args: EngineArgs, _: Path) -> Built:
        facts = Facts(
            max_context=10_000, vocab_size=VOCAB, bytes_per_token=1, free_memory=None, dtype="none", device="none"
        )
        config = resolve(args, facts)
        worker = GatedWorker(next_token, config.num_pages, config.page_size)
        worker.gate = threading.Event()
        worker.gate.set()
        made.append(worker)
        return Built(ThreadExecutor(worker), config, (EOS,), 0)

    options: dict[str, Any] = {"max_total_tokens": 8192, "page_size": 4, "context_length": 512}
    with mock.patch("sglite.runtime.executor.build.build", build):
        engine = ScriptedEngine(str(folder), **{**options, **arguments})
    engine.worker = made[0]
    return engine


def text_folder(folder: Path) -> Path:
    """Makes ``folder`` a checkpoint without weights."""
    make_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    return folder


@contextmanager
def held(engine: ScriptedEngine) -> Iterator[None]:
    """No step runs inside."""
    engine.worker.gate.clear()
    try:
        yield
    finally:
        engine.worker.gate.set()


def some_ids(rng: random.Random, longest: int = 12) -> list[int]:
    """A literal."""
    return [rng.choice(LETTERS) for _ in range(rng.randrange(longest + 1))]


COUNTERS = (
    "prompt_tokens",
    "cached_tokens",
    "computed_prompt_tokens",
    "completion_tokens",
    "forced_tokens",
    "forward_passes",
    "replayed_tokens",
)


def result_of(generation: Any) -> Any:
    """What came of a generation: per output text, ids, end and counters; or the error."""
    try:
        event = generation.result(20)
    except (ValueError, RuntimeError) as error:
        return type(error).__name__, str(error)
    events = event if isinstance(event, list) else [event]
    return [
        (e["text"], e["output_ids"], e["meta_info"]["finish_reason"], {n: e["meta_info"][n] for n in COUNTERS})
        for e in events
    ]
