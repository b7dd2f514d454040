"""From a model's folder to an engine that runs, in this process: executor, constraint compiler, core and its thread.

``Launching`` is what an ``Engine`` needs of whoever starts its core. The one here keeps it in this process; the one of
``spawned`` starts another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sglite.runtime.cache.frames import WindowSpec
from sglite.runtime.config import ConfigError, EngineArgs, EngineConfig
from sglite.runtime.engine.client import EngineClient, EngineThread
from sglite.runtime.engine.core import CoreConfig, EngineCore
from sglite.runtime.engine.step_plan import SchedulerLimits
from sglite.runtime.executor.base import Executor

if TYPE_CHECKING:
    from sglite.constrained.compiler import ConstraintCompiler
    from sglite.runtime.executor.build import Built
    from sglite.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Launched:
    """An engine that runs, and what its user must know of the model. ``compiler``: where it is in this process."""

    client: EngineClient
    config: EngineConfig
    eos_ids: tuple[int, ...]
    weight_bytes: int
    compiler: ConstraintCompiler | None = None


class Launching(Protocol):
    """Somebody who is about to start an engine. ``load``, then ``finish``; or ``cancel`` at any time."""

    def load(self, folder: Path) -> None:
        """The model is in ``folder``: it may be loaded while the caller does something else."""
        ...

    def finish(self, tokenizer: Tokenizer | None) -> Launched:
        """Wait until the engine runs. Raises ValueError, in one line, for a model or arguments that cannot be used."""
        ...

    def cancel(self) -> None:
        """Nobody wants it any more."""
        ...


Launch = Callable[[EngineArgs], Launching]
"""Begins to start an engine."""


class InProcess:
    """Runs the core on a thread of this process."""

    def __init__(self, args: EngineArgs) -> None:
        self._args = args
        self._folder = Path()

    def load(self, folder: Path) -> None:
        """Remembers the folder; loading begins with ``finish``."""
        self._folder = folder

    def finish(self, tokenizer: Tokenizer | None) -> Launched:
        """See ``Launching``."""
        return assemble(self._args, self._folder, tokenizer)

    def cancel(self) -> None:
        """Nothing runs yet."""


def assemble(
    args: EngineArgs,
    folder: Path,
    tokenizer: Tokenizer | None,
    on_outputs: Callable[[], None] = lambda: None,
    on_death: Callable[[str], None] = lambda reason: None,
    compile_apart: bool = False,
) -> Launched:
    """Load the model in ``folder`` and run it on a thread; ``on_outputs`` and ``on_death``: see ``EngineThread``.

    ``compile_apart``: constraints are read in a process, because they come from others.
    """
    from sglite.runtime.executor.build import build

    built = build(args, folder)
    try:
        return _around(built, args, folder, tokenizer, on_outputs, on_death, compile_apart)
    except BaseException:
        built.executor.shutdown()
        raise


def _around(
    built: Built,
    args: EngineArgs,
    folder: Path,
    tokenizer: Tokenizer | None,
    on_outputs: Callable[[], None],
    on_death: Callable[[str], None],
    compile_apart: bool,
) -> Launched:
    config = built.config
    eos = built.eos_ids if tokenizer is None else (*built.eos_ids, *tokenizer.eos_token_ids)
    eos_ids = tuple(dict.fromkeys(i for i in eos if i < config.vocab_size))
    token_bytes = None if tokenizer is None else _token_bytes(folder, tokenizer, config.vocab_size)
    compiler = None
    if tokenizer is not None and eos_ids:  # else no constrained text could ever end
        compiler = _compiler(args, config, tokenizer, token_bytes or [], eos_ids, compile_apart)
    make_core = functools.partial(_core, built.executor, args, config, eos_ids, token_bytes, compiler)
    client = EngineThread(make_core, on_outputs, on_death)
    return Launched(client, config, eos_ids, built.weight_bytes, compiler)


def _token_bytes(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> list[bytes | None]:
    """What every row of the embedding stands for. ConfigError: the tokenizer has ordinary tokens beyond its end.

    Special tokens may lie there, as some text models keep those of their siblings for images: requests with them are
    refused.
    """
    known = tokenizer.token_bytes()
    beyond = [i for i in range(vocab_size, len(known)) if known[i] is not None]
    if beyond:
        raise ConfigError(
            f"{folder}: the tokenizer has {len(beyond)} tokens from id {beyond[0]} on, beyond the model's {vocab_size} "
            "embeddings; they do not belong together: give the model's own with tokenizer_path"
        )
    return list(known[:vocab_size])


def _core(
    executor: Executor,
    args: EngineArgs,
    config: EngineConfig,
    eos_ids: tuple[int, ...],
    token_bytes: Sequence[bytes | None] | None,
    compiler: ConstraintCompiler | None,
    wake: Callable[[], None],
) -> EngineCore:
    sizes = CoreConfig(
        num_pages=config.num_pages,
        page_size=config.page_size,
        max_context=config.context_length,
        vocab_size=config.vocab_size,
        eos_ids=eos_ids,
        state_slots=dict.fromkeys(config.state_groups, config.num_states),
        window=WindowSpec(config.window, config.num_frames) if config.window and config.num_frames else None,
        limits=SchedulerLimits(
            max_step_tokens=config.max_step_tokens,
            max_running=config.max_running,
            chunk_size=config.chunk_size,
            pin_budget=config.pin_budget,
        ),
        policy=args.schedule_policy,
        radix_cache=not args.disable_radix_cache,
        overlap=config.overlap,
        jump_forward=config.jump_forward,
        seed=args.random_seed,
        max_waiting=args.max_queued_requests + config.max_running,  # nobody runs before the next step
    )
    return EngineCore(executor, sizes, token_bytes, compiler, wake)


def _compiler(
    args: EngineArgs,
    config: EngineConfig,
    tokenizer: Tokenizer,
    token_bytes: Sequence[bytes | None],
    eos_ids: tuple[int, ...],
    apart: bool,
) -> ConstraintCompiler:
    from sglite.constrained.compiler import ConstraintCompiler
    from sglite.constrained.vocab import Vocabulary

    named = ((tokenizer.token_text(i), i) for i in tokenizer.special_token_ids if i < config.vocab_size)
    specials = {text: i for text, i in named if text}
    encode = functools.partial(tokenizer.encode, parse_special=False)
    vocabulary = Vocabulary(token_bytes, eos_ids, encode, config.vocab_size, specials)
    return ConstraintCompiler(vocabulary, deadline_s=args.grammar_timeout_s, engine=config.grammar_backend, apart=apart)


def text_folder(args: EngineArgs, folder: Path) -> Path:
    """Where tokenizer and chat template of the model in ``folder`` are."""
    return Path(args.tokenizer_path) if args.tokenizer_path is not None else folder
