"""``sglite serve`` over an engine's process whose steps take no computing: what is left is the server's own cost.

    python -m benchmarks.server.scripted serve --step-ms 0       prints the line "sglite is ready at URL"

Tokenizer and chat template are the bundled model's. A step draws each row's next token from a fixed script after
``--step-ms``; an answer therefore ends at its ``max_tokens``.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
import types
from pathlib import Path
from typing import Any
from unittest import mock

import sglite
from sglite.runtime.config import EngineArgs, Facts
from sglite.runtime.engine import process
from sglite.runtime.engine.child import EngineProcess
from sglite.runtime.engine.spawned import Spawned
from sglite.runtime.executor.base import ThreadExecutor
from sglite.runtime.protocol import SampledToken, SchedulerOutput, StepOutput
from sglite.runtime.resolve import resolve
from sglite.runtime.serve import launch
from sglite.runtime.serve.options import ServeOptions

FOLDER = Path(sglite.__file__).parent / "bundled" / "sglite-demo"
_VOCAB, _EOS = 4096, 4087
_WORDS = range(400, 500)
"""Ids of ordinary tokens, which the script goes through."""


class Worker:
    """Gives every row its next token."""

    groups: tuple[Any, ...] = ()

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def execute(self, step: SchedulerOutput, _: Any) -> StepOutput:
        """See ``executor.base.Worker``."""
        if self._step_s:
            time.sleep(self._step_s)
        samples = [
            SampledToken(slot=task.slot, token_ids=[_WORDS[task.position * 7 % len(_WORDS)]]) for task in step.samples
        ]
        return StepOutput(step_id=step.step_id, samples=samples)


def _build(step_s: float, args: EngineArgs, _: Path) -> Any:
    """In place of ``executor.build.build``."""
    facts = Facts(max_context=2048, vocab_size=_VOCAB, bytes_per_token=1, free_memory=None, dtype="-", device="-")
    executor = ThreadExecutor(Worker(step_s))
    return types.SimpleNamespace(executor=executor, config=resolve(args, facts), eos_ids=(_EOS,), weight_bytes=0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("serve", "engine"))
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    given, rest = parser.parse_known_args()
    if given.role == "engine":
        fake: Any = types.ModuleType("sglite.runtime.executor.build")
        fake.build = functools.partial(_build, given.step_ms / 1000)
        sys.modules[fake.__name__] = fake
        os._exit(process.main(rest))
    command = (sys.executable, "-m", "benchmarks.server.scripted", "engine", "--step-ms", str(given.step_ms))
    spawn = functools.partial(EngineProcess, command)
    with mock.patch.object(launch, "Spawned", functools.partial(Spawned, spawn=spawn)):
        launch.serve(EngineArgs(model_path=str(FOLDER), max_total_tokens=65_536), ServeOptions(port=given.port))


if __name__ == "__main__":
    main()
