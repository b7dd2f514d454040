"""Programs: Python functions of a state ``s``, ready to be bound, run, run in batches, traced and cached."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Literal

from sglite.lang.backends.base import Backend
from sglite.lang.batch import AHEAD, Batch, PrefixWarmup
from sglite.lang.errors import Failure, ProgramError
from sglite.lang.ir import Sampling
from sglite.lang.program import ProgramState, Run
from sglite.lang.progress import progress
from sglite.lang.session import SESSION
from sglite.lang.trace import TraceState, static_prefix, trace_program, tracing
from sglite.lang.types import as_strings


class Function:
    """What ``@function`` makes of a Python function whose first parameter is ``s``.

    ``num_api_spec_tokens``: how many tokens to ask a paid completion API for at once, ahead of the body; other back
    ends have no use for it.
    """

    def __init__(
        self, func: Callable[..., Any], num_api_spec_tokens: int | None = None, bound: dict[str, Any] | None = None
    ) -> None:
        self.func = func
        self.num_api_spec_tokens = num_api_spec_tokens
        self.bound = dict(bound or {})
        self.__name__ = getattr(func, "__name__", "program")
        self.__doc__ = func.__doc__
        self._signature = inspect.signature(func)
        first = next(iter(self._signature.parameters), None)
        if first != "s":
            raise TypeError(f"program {self.__name__!r}: the first parameter must be named 's', not {first!r}")

    def __repr__(self) -> str:
        return f"<program {self.__name__}{self._signature}>"

    def bind(self, **arguments: Any) -> Function:
        """A program with some arguments fixed. TypeError for names the function does not have."""
        try:
            self._signature.bind_partial(None, **arguments)
        except TypeError as error:
            raise TypeError(f"{self.__name__}.bind: {error}; the signature is {self._signature}") from None
        return Function(self.func, self.num_api_spec_tokens, {**self.bound, **arguments})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``run``, or inside a traced program ``trace``."""
        if tracing():
            given = self._signature.bind_partial(None, *args, **kwargs).arguments
            return trace_program(self.func, {**self.bound, **dict(list(given.items())[1:])})
        return self.run(*args, **kwargs)

    def run(
        self, *args: Any, stream: bool = False, backend: Any = None, use_thread: bool = True, **kwargs: Any
    ) -> ProgramState:
        """Runs the body in this thread and returns its state; reading the state waits for the outputs.

        ``kwargs``: the program's arguments, and defaults for every gen that does not say otherwise: max_new_tokens
        (128), stop, stop_token_ids, stop_regex, temperature (1.0), top_p, top_k, min_p, frequency_penalty,
        presence_penalty, ignore_eos, return_logprob, logprob_start_len, top_logprobs_num, return_text_in_logprobs.

        ``stream``: return at once, run the body in another thread, follow outputs with ``text_iter``.
        ``use_thread=False``: every append waits until it was executed. The body's exceptions propagate; with
        ``stream`` they are in ``error()``.
        """
        defaults, given = _split(kwargs)
        arguments = self._arguments(args, given)
        run = Run(SESSION.backend(backend), defaults, stream=stream, inline=not use_thread)
        state = ProgramState.start(run)
        if stream:
            SESSION.bodies.submit(lambda: self._body(state, arguments))
        else:
            self._body(state, arguments)
        return state

    def run_batch(
        self,
        batch_kwargs: Sequence[dict[str, Any] | Sequence[Any]],
        *,
        backend: Any = None,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Runs the program once per row (a dict of arguments, or a tuple or list of them); states in row order.

        ``num_threads``: rows at a time; with "auto", bodies at a time, while rows wait for outputs without a thread.
        ``generator_style``: yields states instead of returning a list. ``kwargs``: as for ``run``. The first
        exception of a body ends the batch; a refused request only spoils its own row (see the state's ``error``).
        """
        if not isinstance(batch_kwargs, (list, tuple)):
            raise TypeError(f"run_batch: rows must be a list or a tuple, not {type(batch_kwargs).__name__}")
        defaults, common = _split(kwargs)
        rows = [self._row(i, row, common) for i, row in enumerate(batch_kwargs)]
        states = self._batch(rows, defaults, SESSION.backend(backend), num_threads, progress_bar, generator_style)
        return states if generator_style else list(states)

    def _batch(
        self,
        rows: list[inspect.BoundArguments],
        defaults: Sampling,
        backend: Backend,
        num_threads: int | Literal["auto"],
        progress_bar: bool,
        lazy: bool,
    ) -> Iterator[ProgramState]:
        threads = None if num_threads == "auto" else num_threads
        warmup = PrefixWarmup(backend) if len(rows) > 1 and threads != 1 else None

        def start(row: inspect.BoundArguments) -> tuple[ProgramState, Callable[[], None]]:
            state = ProgramState.start(Run(backend, defaults, stream=False, inline=False, warmup=warmup))
            return state, lambda: self._body(state, row, spoils_only_itself=True)

        with progress(len(rows), self.__name__, shown=progress_bar) as advance:
            yield from Batch(threads, advance).results(rows, start, ahead=AHEAD if lazy else len(rows) + 1)

    def trace(self, **kwargs: Any) -> TraceState:
        """What the program would do: its body run on symbols, without a request.

        Arguments not given are symbols (defaults are used); a body that needs one's value raises SymbolicValueError.
        """
        return trace_program(self.func, {**self.bound, **kwargs})

    def cache(self, backend: Any = None) -> None:
        """Computes the text with which every run starts, so that runs find it cached. Waits until that is done."""
        chosen = SESSION.backend(backend)
        prefix = static_prefix(trace_program(self.func, self.bound, partial=True), chosen.chat_format())
        if prefix:
            SESSION.loop.wait(SESSION.loop.spawn(chosen.prefill(prefix)))

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

    def _body(
        self, state: ProgramState, arguments: inspect.BoundArguments, *, spoils_only_itself: bool = False
    ) -> None:
        """Runs the body on a fresh state and ends the run."""
        state.run.enter_body()
        try:
            state.ret_value = self.func(state, *arguments.args[1:], **arguments.kwargs)
        except BaseException as error:
            state.run.end(Failure(f"the body of {self.__name__!r}", None, error, ""))
            if not (spoils_only_itself and isinstance(error, ProgramError)):
                raise
        else:
            state.run.end()


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
_NOT_FOR_RUNS = {"min_new_tokens", "n", "regex", "json_schema"}
_RUN_NAMES = [f.name for f in fields(Sampling) if f.name not in _NOT_FOR_RUNS]


def _split(kwargs: dict[str, Any]) -> tuple[Sampling, dict[str, Any]]:
    """The sampling defaults among ``run``'s keywords, and the rest, which are the program's arguments."""
    sampling = {name: kwargs[name] for name in _RUN_NAMES if name in kwargs}
    for name in ("stop", "stop_regex"):
        sampling[name] = as_strings(sampling.get(name))
    ids = sampling.get("stop_token_ids")
    sampling["stop_token_ids"] = None if ids is None else tuple(ids)
    rest = {name: value for name, value in kwargs.items() if name not in sampling}
    return Sampling(**sampling).over(_RUN_DEFAULTS), rest
