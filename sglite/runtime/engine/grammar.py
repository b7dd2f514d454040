"""A request's constraint: compiled off the step thread, then one matcher that moves with the known tokens.

Whatever takes long happens where compilation ends: making the matcher, the shortest text, the first mask. The step
loop finds it done (``ready``) or the request waits, and nobody else.

A value whose rightness is known only at its end is *held*: its tokens may still be taken back, so they are neither
sent nor final. When nothing can follow (``stuck``, found where masks are filled) the matcher retreats to where it can
go another way, or gives up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sglite.constrained import bitmask
from sglite.constrained.closing import filled_pointers
from sglite.constrained.spec import ConstraintRefused, ConstraintSpec
from sglite.constrained.thinking_budget import ThinkingBudget
from sglite.constrained.wrappers import ReasoningGate, ThinkEnd
from sglite.runtime.protocol import GenerateRequest, ThinkingLimit

if TYPE_CHECKING:
    from sglite.constrained.compiler import CompiledConstraint
    from sglite.constrained.matcher import Matcher
    from sglite.constrained.vocab import Vocabulary
    from sglite.runtime.text.stop import StopMatcher

T = TypeVar("T")
MAX_SHOWN = 80
"""Characters of a constraint that an error message repeats."""


class Compiler(Protocol):
    """What the engine needs of a constraint compiler."""

    @property
    def vocab(self) -> Vocabulary:
        """The vocabulary it compiles for."""
        ...

    def submit(self, spec: ConstraintSpec) -> Future[CompiledConstraint]:
        """Compile on another thread; identical specs compile once."""
        ...

    def counts(self) -> dict[str, float]:
        """What it has done so far."""
        ...

    def close(self) -> None:
        """Stop its threads."""
        ...


@dataclass(frozen=True, kw_only=True)
class GrammarOptions:
    """How a request wants its constraint carried out."""

    vocab: Vocabulary
    is_json: bool = False
    """The text is one JSON value."""
    jump_forward: bool = True
    close_at: int | None = None
    """Output tokens after which the text must be whole; ``None``: it may be cut off."""
    must_close: bool = True
    """Refuse what cannot be whole by then; else it may be cut off after all."""
    starts_after: tuple[int, ...] = ()
    """Tokens that end the reasoning, which is free."""
    reasoning_budget: int | None = None
    thinking: ThinkingLimit | None = None
    allowed_ids: Collection[int] | None = None
    banned_ids: Collection[int] = ()
    """Not sampled as the first token: what ends the output, where a minimum length is asked for."""


def options_of(
    wire: GenerateRequest, spec: ConstraintSpec, vocab: Vocabulary, jump_forward: bool, banned_ids: Collection[int]
) -> GrammarOptions:
    """How the request ``wire`` wants ``spec`` carried out."""
    sampling = wire.sampling
    return GrammarOptions(
        vocab=vocab,
        is_json=spec.kind == "json_schema",
        jump_forward=jump_forward,
        close_at=None if sampling.on_limit == "stop" else sampling.max_new_tokens,
        must_close=sampling.on_limit == "close",
        starts_after=wire.constraint_after,
        reasoning_budget=wire.reasoning_budget,
        thinking=wire.thinking,
        allowed_ids=sampling.allowed_token_ids,
        banned_ids=banned_ids,
    )


class GrammarState:
    """The matcher of one request; it has accepted exactly the output tokens the request knows."""

    __slots__ = (
        "_future", "_gate", "_options", "_row", "_unprepared", "failure", "forced_at", "held", "mask_ms",
        "masks_filled", "matcher", "num_before", "ready", "retreats", "stop_mark", "stuck",
    )  # fmt: skip

    def __init__(self, future: Future[CompiledConstraint], options: GrammarOptions) -> None:
        self._future: Future[CompiledConstraint] | None = future
        """Until it is done: it holds whom it told, and with that this."""
        self._options = options
        self._unprepared: BaseException | None = None
        self._gate: ReasoningGate | None = None
        self._row: NDArray[np.int32] | None = None
        """The last mask, as long as it is right."""
        self.matcher: Matcher | None = None
        self.ready = False
        """Compilation has ended, well or not: ``why_not`` may be asked."""
        self.num_before = 0
        """Output tokens before the text begins: the reasoning and its end."""
        self.stuck = False
        """Nothing can follow; ``retreat`` is due."""
        self.failure: str | None = None
        """The matcher raised an exception: this one. It is not asked again."""
        self.held = 0
        """Tokens at the end that may still be taken back."""
        self.masks_filled = 0
        self.mask_ms = 0.0
        self.retreats: list[range] = []
        """Positions whose tokens were taken back, one entry a time."""
        self.forced_at: list[int] = []
        """Positions of held tokens that were forced."""
        self.stop_mark: tuple[int, StopMatcher] | None = None
        """The state of stop matching before the first held token, and that token's position."""

    # --- compilation ------------------------------------------------------------------------------------------

    def when_ready(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` (from any thread) once ``ready``."""

        def finish(future: Future[CompiledConstraint]) -> None:
            self._future = None
            # Asked for, not raised and caught: an exception would hold this frame, and it what waits for it.
            self._unprepared = future.exception()
            if self._unprepared is None:
                try:
                    self._prepare(future.result())
                except Exception as error:
                    self._unprepared = error.with_traceback(None)
            self.ready = True
            wake()

        assert self._future is not None
        self._future.add_done_callback(finish)

    def why_not(self) -> BaseException | None:
        """What compilation raised, or why this request cannot have what was compiled; told once. ``None``: it can."""
        assert self.ready
        error, self._unprepared = self._unprepared, None
        return error

    def _prepare(self, compiled: CompiledConstraint) -> None:
        """On the thread on which compilation ended: everything up to the first mask."""
        options = self._options
        budget = options.reasoning_budget
        room = self._room_to_close(compiled)
        if room is not None:
            budget = room if budget is None else min(budget, room)
        close_at = None if room is None else options.close_at
        matcher = compiled.matcher(jump_forward=options.jump_forward, close_at=close_at)
        self._check_first(matcher)
        if options.starts_after:
            end = ThinkEnd(options.vocab, options.starts_after)
            matcher = self._gate = ReasoningGate(matcher, end, budget, jump_forward=options.jump_forward)
        if (limit := options.thinking) is not None:
            matcher = ThinkingBudget(matcher, options.vocab, limit.begin, limit.end, limit.tokens)
        self.matcher = matcher

    def _room_to_close(self, compiled: CompiledConstraint) -> int | None:
        """Tokens between the shortest text and the limit by which it must be whole; ``None``: it need not, or where
        that is left open cannot be."""
        options = self._options
        if options.close_at is None:
            return None
        try:
            least = compiled.shortest_tokens() + len(options.starts_after)
        except ConstraintRefused:
            if options.must_close:
                raise
            return None
        if least <= options.close_at:
            return options.close_at - least
        if not options.must_close:
            return None
        raise ConstraintRefused(
            f"the shortest text has {least} tokens and on_limit='close' is to end it within max_new_tokens="
            f"{options.close_at}; give max_new_tokens>={least}"
        )

    def _check_first(self, matcher: Matcher) -> None:
        """Refuse what leaves no first token, naming both sides."""
        options = self._options
        if options.starts_after or (options.allowed_ids is None and not options.banned_ids):
            return
        row = np.empty(options.vocab.words, dtype=np.int32)
        matcher.fill(row)
        if not row.any():
            return
        if options.allowed_ids is not None:
            row &= bitmask.from_ids(options.allowed_ids, options.vocab.size)
            if not row.any():
                raise ConstraintRefused("allowed_token_ids has no token with which the text can begin; allow some")
        bitmask.forbid(row, options.banned_ids)
        if not row.any():
            raise ConstraintRefused("the text can only begin with a token that min_new_tokens bans; set it to 0")

    # --- steps ------------------------------------------------------------------------------------------------

    def fill(self, row: NDArray[np.int32]) -> None:
        """Write the mask for the next token into one row of a bitmask; all ones, and ``stuck``, where none is left."""
        started = time.perf_counter()
        matcher = self._matcher()
        if matcher is not None:
            try:
                if matcher.fill(row) and not np.count_nonzero(row):  # of a few words faster than any()
                    self.stuck = True
            except Exception as error:
                self._fail(error)
        if self.stuck:
            row.fill(-1)
        self._row = row
        self.masks_filled += 1
        self.mask_ms += 1000 * (time.perf_counter() - started)

    def run_follows(self) -> bool:
        """Whatever the token being sampled is, forced tokens or the end come after it. False where that costs much."""
        row, matcher = self._row, self._matcher()
        if row is None or self.held or matcher is None:
            return False
        try:
            return matcher.run_follows(row)
        except Exception as error:
            self._fail(error)
            return False

    def accept(self, token: int) -> bool:
        """Move past an output token; ``False``: it was not allowed."""
        self._row = None
        if self._gate is not None:
            self.num_before += self._gate.thinking
        matcher = self._matcher()
        if matcher is None:
            return False
        try:
            taken = matcher.accept(token)
            self.held = matcher.held
        except Exception as error:
            self._fail(error)
            return False
        return taken

    def forced(self, limit: int) -> list[int]:
        """Tokens that are the only allowed ones from here, in order."""
        matcher = self._matcher()
        if matcher is None or limit <= 0:
            return []
        try:
            return matcher.forced(limit)
        except Exception as error:
            self._fail(error)
            return []

    def retreat(self) -> int:
        """Take back what leads nowhere: how many tokens; 0 when there is no other way left to try."""
        self.stuck = False
        back = self._ask(lambda matcher: matcher.retreat(), 0)
        if back:
            self.held = self._ask(lambda matcher: matcher.held, 0)
        return back

    def filled(self, text: bytes) -> list[str] | None:
        """JSON pointers of the values in ``text``, the constrained part, that closing chose; ``None``: no closing."""
        if self.matcher is None or self._options.close_at is None:
            return None
        offset = self._ask(lambda matcher: matcher.closed_from, None)
        return [] if offset is None or not self._options.is_json else filled_pointers(text, offset)

    def attempt(self, position: int) -> int:
        """How often a token at ``position`` has been taken back."""
        return sum(position in taken for taken in self.retreats)

    @property
    def finished(self) -> bool:
        """Nothing more can follow."""
        matcher = self._matcher()
        if matcher is None:
            return False
        try:
            return matcher.finished
        except Exception as error:
            self._fail(error)
            return False

    @property
    def complete(self) -> bool:
        """The output so far is a member of the language."""
        return self.matcher is not None and self._ask(lambda matcher: matcher.accepting or matcher.finished, False)

    @property
    def error(self) -> str | None:
        """Why nothing can follow."""
        return self.failure or self._ask(lambda matcher: matcher.error, None)

    def _ask(self, question: Callable[[Matcher], T], otherwise: T) -> T:
        matcher = self._matcher()
        if matcher is None:
            return otherwise
        try:
            return question(matcher)
        except Exception as error:
            self._fail(error)
            return otherwise

    def _matcher(self) -> Matcher | None:
        """``None``: it has failed."""
        assert self.matcher is not None
        return self.matcher if self.failure is None else None

    def _fail(self, error: Exception) -> None:
        """A matcher that raises ends its own request, as one that is stuck for good, and nobody else's."""
        self.failure = f"the constraint failed at run time: {type(error).__name__}: {error}"
        self.stuck = True


def name_the_constraint(spec: ConstraintSpec, message: str) -> str:
    """A compiler's message with the parameter it is about and the value, when it does not begin with them."""
    if message.startswith(spec.kind):
        return message
    shown = spec.value if len(spec.value) <= MAX_SHOWN else spec.value[:MAX_SHOWN] + "..."
    return f"{spec.kind} {shown!r}: {message}"
