"""Programs: Python functions of a state ``s``, ready to be bound, run, run in batches, traced and cached."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sglite.lang.backends.base import Backend
from sglite.lang.batch import AHEAD, Batch, PrefixWarmup
from sglite.lang.bodies import Excused, arun_body, body_in_thread, check_body, end_cancelled, in_thread, run_body
from sglite.lang.cells import arrival
from sglite.lang.errors import BlockingReadError, Failure, ProgramError
from sglite.lang.ir import Sampling
from sglite.lang.order import BlockOrder
from sglite.lang.program import ProgramState
from sglite.lang.progress import progress
from sglite.lang.run import Run, RunOptions
from sglite.lang.saved_rows import saved
from sglite.lang.session import SESSION
from sglite.lang.trace import TraceState, static_prefix, trace_program, tracing
from sglite.lang.types import as_strings

if TYPE_CHECKING:
    from sglite.lang.graph import ProgramGraph

OnError = Literal["raise", "return"]
RUN_OPTIONS = ("seed", "deadline", "token_budget", "history")


class Function:
    """What ``@function`` makes of a Python function whose first parameter is ``s``.

    ``num_api_spec_tokens``: how many tokens to ask a paid completion API for at once, ahead of the body; other back
    ends have no use for it.
    """

    first_name: str | None = "s"
    """The name that the first parameter must have."""

    def __init__(
        self, func: Callable[..., Any], num_api_spec_tokens: int | None = None, bound: dict[str, Any] | None = None
    ) -> None:
        self.func = func
        self.num_api_spec_tokens = num_api_spec_tokens
        self.bound = dict(bound or {})
        self._order = BlockOrder()
        self.is_async = inspect.iscoroutinefunction(func)
        self.__name__ = getattr(func, "__name__", "program")
        self.__doc__ = func.__doc__
        self._signature = check_body(func, self.__name__, self.first_name)

    def __repr__(self) -> str:
        return f"<program {self.__name__}{self._signature}>"

    def _again(self, bound: dict[str, Any]) -> Function:
        return Function(self.func, self.num_api_spec_tokens, bound)

    def bind(self, **arguments: Any) -> Function:
        """A program with some arguments fixed. TypeError for names the function does not have."""
        try:
            self._signature.bind_partial(None, **arguments)
        except TypeError as error:
            raise TypeError(f"{self.__name__}.bind: {error}; the signature is {self._signature}") from None
        return self._again({**self.bound, **arguments})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``run``, or inside a traced program ``trace``."""
        if tracing():
            given = self._signature.bind_partial(None, *args, **kwargs).arguments
            return trace_program(self.func, {**self.bound, **dict(list(given.items())[1:])})
        return self.run(*args, **kwargs)

    # --- one run ---

    def run(
        self, *args: Any, stream: bool = False, backend: Any = None, use_thread: bool = True, **kwargs: Any
    ) -> ProgramState:
        """Runs the body in this thread and returns its state; reading the state waits for the outputs.

        ``kwargs``: the program's arguments, and defaults for every gen that does not say otherwise: max_new_tokens
        (128), stop, stop_token_ids, stop_regex, temperature (1.0), top_p, top_k, min_p, frequency_penalty,
        presence_penalty, ignore_eos, return_logprob, logprob_start_len, top_logprobs_num, return_text_in_logprobs;
        and for the run: ``seed`` (sampling becomes repeatable), ``deadline`` (seconds), ``token_budget`` (tokens that
        all outputs together may have), ``history`` ("append" or "template"). A program's own parameter of such a name
        comes first.

        ``stream``: return at once, run the body in another thread, follow outputs with ``text_iter``.
        ``use_thread=False``: every append of a plain function waits until it was executed. The body's exceptions
        propagate; with ``stream`` they are in ``error()``. The body of an ``async def`` runs in a loop of its own.
        """
        options, given = self._split(kwargs, stream=stream, inline=not use_thread and not self.is_async)
        arguments = self._arguments(args, given)
        if not stream:
            self._check_blocking("arun")
        state = self._start(backend, options, SESSION.body_loop.loop)
        if self.is_async:
            done = SESSION.body_loop.spawn(arun_body(self.func, state, arguments))
            if not stream:
                self._wait(state, done)
        elif stream:
            in_thread(self.func, state, arguments)
        else:
            run_body(self.func, state, arguments)
        return state

    async def arun(self, *args: Any, stream: bool = False, backend: Any = None, **kwargs: Any) -> ProgramState:
        """``run`` for an event loop: an ``async def`` body runs in this loop, another one in a thread.

        Returns when the body has; with ``stream`` at once. Cancelling the caller cancels the run.
        """
        options, given = self._split(kwargs, stream=stream, inline=False)
        arguments = self._arguments(args, given)
        state = self._start(backend, options, asyncio.get_running_loop)
        body = asyncio.ensure_future((arun_body if self.is_async else body_in_thread)(self.func, state, arguments))
        if stream:
            state.body = body
            body.add_done_callback(_seen)
            return state
        try:
            await body
        except asyncio.CancelledError:
            end_cancelled(state)
            raise
        return state

    def _start(
        self,
        backend: Any,
        options: RunOptions,
        loop: Callable[[], asyncio.AbstractEventLoop],
        warmup: PrefixWarmup | None = None,
    ) -> ProgramState:
        """A state for a body, which runs in ``loop()`` if it is a coroutine."""
        chosen, home = SESSION.backend(backend), loop() if self.is_async else None
        return ProgramState.start(Run(chosen, options, name=self.__name__, loop=home, warmup=warmup, order=self._order))

    def _check_blocking(self, instead: str) -> None:
        """BlockingReadError in an event loop that the run itself needs: waiting there would never end."""
        if SESSION.loop.is_here or (self.is_async and SESSION.body_loop.is_here):
            raise BlockingReadError(
                f"running {self.__name__!r} here would block the event loop that it needs: write "
                f"`await {self.__name__}.{instead}(...)`"
            )

    def _wait(self, state: ProgramState, done: Future[None]) -> None:
        """Waits for an async body; Ctrl-C stops the run."""
        try:
            done.result()
        except KeyboardInterrupt:
            done.cancel()
            state.run.end(Failure("Ctrl-C", None, RuntimeError("the run was interrupted"), ""))
            raise

    # --- many rows ---

    def run_batch(
        self,
        batch_kwargs: Sequence[dict[str, Any] | Sequence[Any]],
        *,
        backend: Any = None,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        on_error: OnError = "raise",
        output: str | Path | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the program once per row (a dict of arguments, or a tuple or list of them); states in row order.

        ``num_threads``: rows at a time; with "auto", bodies at a time, while rows wait for outputs without a thread.
        ``generator_style``: yields states instead of returning a list. ``kwargs``: as for ``run``; ``seed``,
        ``deadline`` and ``token_budget`` are each row's.

        ``on_error``: "raise": the first exception of a body ends the batch, while a refused request only spoils its
        own row (see the state's ``error``). "return": an exception of a body spoils its own row too, whose
        ``error()`` it is. ``output``: a JSON Lines file that gets a line per finished row, in row order; rows that it
        has already, from a batch that was cut off, are not run again: their places hold ``SavedRow``s.
        """
        rows, options = self._rows(batch_kwargs, kwargs)
        excused = _excused(on_error)
        self._check_blocking("arun_batch")
        chosen = SESSION.backend(backend)

        def batch(first: int) -> Iterator[ProgramState]:
            return self._batch(rows[first:], options, chosen, num_threads, progress_bar, generator_style, excused)

        states = batch(0) if output is None else saved(Path(output), self.__name__, rows, batch)
        return states if generator_style else list(states)

    async def arun_batch(
        self,
        batch_kwargs: Sequence[dict[str, Any] | Sequence[Any]],
        *,
        backend: Any = None,
        max_concurrency: int = 256,
        on_error: OnError = "raise",
        **kwargs: Any,
    ) -> list[ProgramState]:
        """``run_batch`` for an event loop: at most ``max_concurrency`` rows at a time; finished states in row order."""
        rows, options = self._rows(batch_kwargs, kwargs)
        excused = _excused(on_error)
        if type(max_concurrency) is not int or max_concurrency < 1:
            raise ValueError(f"arun_batch(max_concurrency={max_concurrency!r}): use 1 or more")
        chosen = SESSION.backend(backend)
        warmup = PrefixWarmup(chosen) if len(rows) > 1 else None
        slots = asyncio.Semaphore(max_concurrency)
        run: Any = arun_body if self.is_async else body_in_thread

        async def one(row: inspect.BoundArguments) -> ProgramState:
            async with slots:
                state = self._start(chosen, options, asyncio.get_running_loop, warmup)
                try:
                    await run(self.func, state, row, excused)
                    await arrival(state.run.finished)
                except asyncio.CancelledError:
                    end_cancelled(state)
                    raise
                return state

        tasks = [asyncio.ensure_future(one(row)) for row in rows]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def _rows(
        self, batch_kwargs: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[list[inspect.BoundArguments], RunOptions]:
        if not isinstance(batch_kwargs, (list, tuple)):
            raise TypeError(f"run_batch: rows must be a list or a tuple, not {type(batch_kwargs).__name__}")
        options, common = self._split(kwargs, stream=False, inline=False)
        return [self._row(i, row, common) for i, row in enumerate(batch_kwargs)], options

    def _batch(
        self,
        rows: list[inspect.BoundArguments],
        options: RunOptions,
        backend: Backend,
        num_threads: int | Literal["auto"],
        progress_bar: bool,
        lazy: bool,
        excused: Excused,
    ) -> Iterator[ProgramState]:
        threads = None if num_threads == "auto" else num_threads
        warmup = PrefixWarmup(backend) if len(rows) > 1 and threads != 1 else None

        def start(row: inspect.BoundArguments) -> tuple[ProgramState, Callable[[], None]]:
            state = self._start(backend, options, SESSION.body_loop.loop, warmup)
            if self.is_async:
                return state, lambda: SESSION.body_loop.spawn(arun_body(self.func, state, row, excused)).result()
            return state, lambda: run_body(self.func, state, row, excused)

        with progress(len(rows), self.__name__, shown=progress_bar) as advance:
            yield from Batch(threads, advance).results(rows, start, ahead=AHEAD if lazy else len(rows) + 1)

    # --- previews ---

    def trace(self, *, backend: Any = None, **kwargs: Any) -> TraceState:
        """What the program would do: its body run on symbols, without a request; so ``backend`` makes no difference.

        Arguments not given are symbols (defaults are used); a body that needs one's value raises SymbolicValueError.
        """
        return trace_program(self.func, {**self.bound, **kwargs})

    def compile(self, **kwargs: Any) -> ProgramGraph:
        """The program's graph as far as it is known beforehand; nothing of the body that could have an effect runs.

        Arguments not given are unknown; where the program depends on what only a run knows, the graph says so.
        """
        from sglite.lang.compile import compile_program
        from sglite.lang.graph import ProgramGraph
        from sglite.lang.graph_run import body_of

        graph = compile_program(self.func, {**self.bound, **kwargs}, self.__name__)
        return ProgramGraph(graph, lambda **options: Function(body_of(graph)).run(**options))

    def cache(self, backend: Any = None) -> None:
        """Computes the text with which every run starts, so that runs find it cached. Waits until that is done."""
        chosen = SESSION.backend(backend)
        prefix = static_prefix(trace_program(self.func, self.bound, partial=True), chosen.chat_format())
        if prefix:
            SESSION.loop.wait(SESSION.loop.spawn(chosen.prefill(prefix)))

    # --- arguments ---

    def _arguments(self, args: Sequence[Any], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        try:
            return self._signature.bind(None, *args, **{**self.bound, **kwargs})
        except TypeError as error:
            raise TypeError(f"{self.__name__}: {error}; the signature is {self._signature}") from None

    def _row(self, index: int, row: object, common: dict[str, Any]) -> inspect.BoundArguments:
        try:
            if isinstance(row, dict):
                return self._arguments((), {**common, **row})
            if isinstance(row, (list, tuple)):
                return self._arguments(row, common)
        except TypeError as error:
            raise TypeError(f"run_batch, row {index}: {error}") from None
        raise TypeError(f"run_batch, row {index}: {row!r} is no dict, tuple or list of arguments")

    def _split(self, kwargs: dict[str, Any], *, stream: bool, inline: bool) -> tuple[RunOptions, dict[str, Any]]:
        own = self._signature.parameters
        chosen = {name: kwargs[name] for name in RUN_OPTIONS if name in kwargs and name not in own}
        rest = {name: value for name, value in kwargs.items() if name not in chosen}
        defaults, given = split_sampling(rest)
        speculate = self.num_api_spec_tokens
        return RunOptions(defaults=defaults, stream=stream, inline=inline, speculate=speculate, **chosen), given


def _excused(on_error: OnError) -> Excused:
    """Which exceptions of a body do not end its batch."""
    if on_error not in ("raise", "return"):
        raise ValueError(f"on_error={on_error!r}: use 'raise' or 'return'")
    return (Exception,) if on_error == "return" else (ProgramError,)


def _seen(body: asyncio.Future[None]) -> None:
    """Whatever ended a streamed body is in ``error()``; nobody need await the task for it."""
    if not body.cancelled():
        body.exception()


# The limit of 128 tokens is the back ends' own: an engine shortens its default where the context ends, and only that.
_RUN_DEFAULTS = Sampling(
    stop=(),
    temperature=1.0,
    top_p=1.0,
    top_k=-1,
    min_p=0.0,
    frequency_penalty=0.0,
    presence_penalty=0.0,
    ignore_eos=False,
)
_NOT_FOR_RUNS = {"min_new_tokens", "n", "regex", "json_schema", "ebnf", "structural_tag", "on_limit", "seed"}
_RUN_NAMES = [f.name for f in fields(Sampling) if f.name not in _NOT_FOR_RUNS]


def split_sampling(kwargs: dict[str, Any]) -> tuple[Sampling, dict[str, Any]]:
    """The sampling defaults among ``run``'s keywords, and the rest, which are the program's arguments."""
    sampling = {name: kwargs[name] for name in _RUN_NAMES if name in kwargs}
    for name in ("stop", "stop_regex"):
        sampling[name] = as_strings(sampling.get(name))
    ids = sampling.get("stop_token_ids")
    sampling["stop_token_ids"] = None if ids is None else tuple(ids)
    rest = {name: value for name, value in kwargs.items() if name not in sampling}
    return Sampling(**sampling).over(_RUN_DEFAULTS), rest
