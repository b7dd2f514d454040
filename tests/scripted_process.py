"""An engine's process whose steps a scripted worker computes, and engines that use one: no torch, up in a moment.

As a program it is ``sglite.runtime.engine.process`` with another model: ``--step-seconds`` is how long a step takes,
``--load-seconds`` how long loading does, ``--dies`` has it die of its first step, ``--breaks`` has its step loop fail.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sglite.runtime.config import EngineArgs, Facts
from sglite.runtime.engine import process
from sglite.runtime.engine.assemble import InProcess
from sglite.runtime.engine.child import EngineProcess
from sglite.runtime.engine.engine import Engine
from sglite.runtime.engine.scheduler import Scheduler
from sglite.runtime.engine.spawned import Spawned
from sglite.runtime.executor.base import ThreadExecutor
from sglite.runtime.executor.scripted import ScriptedWorker
from sglite.runtime.resolve import resolve

BUILD = "sglite.runtime.executor.build"
VOCAB = 384
EOS = 2
SIZES: dict[str, Any] = {"max_total_tokens": 8192, "page_size": 4, "context_length": 512}


def script(fingerprint: int) -> int:
    """Mostly one of few letters, now and then the end of the text."""
    return EOS if fingerprint % 23 == 0 else 40 + fingerprint // 23 % 20


def build(args: EngineArgs, _: Path, step_seconds: float = 0.0, load_seconds: float = 0.0) -> Any:
    """In place of ``executor.build.build``."""
    time.sleep(load_seconds)
    facts = Facts(max_context=10_000, vocab_size=VOCAB, bytes_per_token=1, free_memory=None, dtype="-", device="-")
    config = resolve(args, facts)
    worker = ScriptedWorker(script, config.num_pages, config.page_size, step_seconds=step_seconds)
    return types.SimpleNamespace(executor=ThreadExecutor(worker), config=config, eos_ids=(EOS,), weight_bytes=7)


def command(*words: str) -> tuple[str, ...]:
    """Runs this module."""
    return (sys.executable, __file__, *words)


def remote_engine(folder: Path, *words: str, restart: bool = False, **arguments: Any) -> Engine:
    """An engine whose process runs this module with ``words``."""
    spawn = functools.partial(EngineProcess, command(*words))
    return Engine(str(folder), launch=functools.partial(Spawned, restart=restart, spawn=spawn), **SIZES, **arguments)


def local_engine(folder: Path, step_seconds: float = 0.0, **arguments: Any) -> Engine:
    """The same in this process."""
    with scripted(step_seconds=step_seconds):
        return Engine(str(folder), launch=InProcess, **SIZES, **arguments)


@contextmanager
def scripted(**times: float) -> Iterator[None]:
    """Inside, models are scripted; the module that loads real ones is not even imported."""
    before = sys.modules.get(BUILD)
    fake: Any = types.ModuleType(BUILD)
    fake.build = functools.partial(build, **times)
    sys.modules[BUILD] = fake
    try:
        yield
    finally:
        del sys.modules[BUILD]
        if before is not None:
            sys.modules[BUILD] = before


def _break(*_: Any) -> None:
    raise ZeroDivisionError("a bug")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-seconds", type=float, default=0.0)
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--dies", action="store_true")
    parser.add_argument("--breaks", action="store_true")
    given, rest = parser.parse_known_args()
    if given.dies:
        ScriptedWorker.execute = lambda *_: os._exit(9)  # type: ignore[assignment, method-assign, return-value]
    if given.breaks:
        Scheduler.update = _break  # type: ignore[method-assign]
    with scripted(step_seconds=given.step_seconds, load_seconds=given.load_seconds):
        os._exit(process.main(rest))


if __name__ == "__main__":
    main()
