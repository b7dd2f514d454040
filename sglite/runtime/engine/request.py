"""A request: a few integers with an asserted order, and the objects features hang on it.

    0 <= num_cached <= num_computed <= num_scheduled <= num_tokens + num_unknown

``num_tokens`` are known; ``num_unknown`` (0, 1 or, between two updates, 2) are being sampled by steps in flight.
Why a request waits is a set of reasons, not a state of its own.
"""

from __future__ import annotations

import enum
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sglite.runtime.cache.node import Cursor, RadixNode
from sglite.runtime.engine.grammar import GrammarState
from sglite.runtime.engine.groups import Group
from sglite.runtime.engine.programs import AGING_STEPS, Program
from sglite.runtime.protocol import Accounting, FinishReason, GenerateRequest, TokenLogprob
from sglite.runtime.spec.base import Draft

if TYPE_CHECKING:
    from sglite.runtime.text.stop import StopMatcher


@dataclass(slots=True)
class WindowState:
    """What a request's last row sees in layers with a window."""

    pages: list[int] = field(default_factory=list)
    """Of its page table, from index ``first`` on."""
    first: int = 0
    end: int = -1
    """Where that row ended."""


class RequestStatus(enum.Enum):
    """Where a request stands: in the queue, admitted (it has a slot and a cursor), or over."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class WaitReason(enum.Enum):
    """Why a request cannot go on just now."""

    COMPILE = "compile"
    GROUP = "group"
    PROMISE = "promise"
    WEIGHTS = "weights"


class LogprobState:
    """Which positions still need a score, and the rows that wait for their turn to be sent."""

    __slots__ = ("output", "prompt", "prompt_sent", "prompt_start", "unscored")

    def __init__(self, start_len: int | None, prompt: list[int]) -> None:
        self.prompt_start = len(prompt) if start_len is None else min(start_len, len(prompt))
        self.prompt: list[TokenLogprob] = []
        self.prompt_sent = self.prompt_start == len(prompt)
        self.unscored: deque[int] = deque()
        """Positions of known tokens whose logprob a coming row reports, in order."""
        self.output: dict[int, TokenLogprob] = {}
        """By position; an output token is sent together with its row."""
        if self.prompt_start == 0 and prompt:
            self.prompt.append(TokenLogprob(prompt[0], None))
        self.restart(len(prompt), len(prompt), len(prompt))

    def restart(self, prompt_len: int, unsent: int, num_tokens: int) -> None:
        """Ask again for every row that has not come in; output before position ``unsent`` has been sent."""
        missing = [] if self.prompt_sent else [*range(self.prompt_start + len(self.prompt), prompt_len)]
        missing += [position for position in range(unsent, num_tokens) if position not in self.output]
        self.unscored = deque(missing)


class Request:
    """One sequence on its way through the engine; see the module's drawing. Only the scheduler changes it."""

    __slots__ = (
        "__weakref__", "accounting", "blocked_on", "blocked_planned", "cursor", "draft", "emitted", "ending", "finish",
        "first_run", "grammar", "group", "held_pages", "hidden", "in_flight", "logprobs", "num_cached", "num_computed",
        "num_scheduled", "order", "page_table", "pages_sent", "preempting", "priority", "program", "prompt_len", "rank",
        "reasons", "reference", "request", "samples_in_flight", "scores_in_flight", "seed", "seen", "slot",
        "start_time", "state_at", "state_slots", "status", "stop", "suspect", "tokens", "unsent_forced", "waited",
        "window",
    )  # fmt: skip

    def __init__(
        self, request: GenerateRequest, order: int, now: float, seed: int, program: Program | None = None
    ) -> None:
        self.request = request
        self.reference = weakref.ref(self)
        """Its name in the tree, whose nodes outlive it."""
        self.program = program
        self.order = order
        self.rank = order
        """Its place among equals: the ``order`` of the first of its fork group."""
        self.group: Group | None = None
        """The members of its fork group that it waits for."""
        self.waited = 0
        """Steps that were planned while it could have started, forgiven service included: 32 make up for a level."""
        self.seed = seed
        self.tokens = list(request.token_ids)
        self.prompt_len = len(self.tokens)
        self.num_cached = 0
        self.num_computed = 0
        self.num_scheduled = 0
        self.status = RequestStatus.WAITING
        self.reasons: set[WaitReason] = set()
        self.ending: FinishReason | None = None
        """Why it will end once the logprobs of its last tokens are there."""
        self.finish: FinishReason | None = None
        self.in_flight = 0
        """Steps submitted and not collected that this request takes part in."""
        self.samples_in_flight: deque[int | None] = deque()
        """One entry a sample not collected: the token when it is known beforehand (forced), else ``None``."""
        self.scores_in_flight = 0
        """Tokens whose logprobs steps in flight report."""
        self.hidden: bytes | None = None
        """The hidden state that it asked for, once that has come."""
        self.cursor: Cursor | None = None
        self.slot = -1
        self.page_table: list[int] = []
        self.pages_sent = 0
        self.held_pages: list[int] = []
        """Pages for positions whose tokens nobody knows yet."""
        self.draft: Draft | None = None
        """Guesses that a row in flight verifies."""
        self.state_slots: dict[str, int] = {}
        self.state_at = 0
        """Position at which the running recurrent state will stand after the steps planned so far."""
        self.window = WindowState()
        self.blocked_on: RadixNode | None = None
        self.blocked_planned = -1
        self.priority = request.priority
        """Its own, or that of the most urgent request that waits for what this one computes."""
        self.preempting = False
        self.suspect = False
        """Took part in a step that failed: runs alone until a step succeeds."""
        self.seen = 0
        """Positions below have been accounted for."""
        self.emitted = 0
        """Output tokens sent to the client."""
        self.accounting = Accounting(prompt_tokens=self.prompt_len)
        self.start_time = now
        self.first_run: float | None = None
        self.grammar: GrammarState | None = None
        self.stop: StopMatcher | None = None
        self.unsent_forced: list[int] = []
        """Forced tokens the executor has not been told of."""
        options = request.logprobs
        self.logprobs = None if options is None else LogprobState(options.start_len, self.tokens)

    @property
    def id(self) -> str:
        """The client's name for it."""
        return self.request.request_id

    @property
    def num_tokens(self) -> int:
        """Known tokens."""
        return len(self.tokens)

    @property
    def num_needed(self) -> int:
        """Known tokens that have to be computed: all, but the last one of a request that only waits for scores."""
        return len(self.tokens) - (self.ending is not None)

    @property
    def num_output(self) -> int:
        """Known output tokens."""
        return len(self.tokens) - self.prompt_len

    @property
    def num_final(self) -> int:
        """Known tokens that stay: all, but those of a value whose end may still turn out to be wrong."""
        return len(self.tokens) - (0 if self.grammar is None else self.grammar.held)

    @property
    def retreating(self) -> bool:
        """Nothing can follow its last tokens: they are taken back once no step in flight touches them."""
        return self.grammar is not None and self.grammar.stuck

    @property
    def num_unknown(self) -> int:
        """Tokens that steps in flight are sampling and nobody knows beforehand."""
        return self.samples_in_flight.count(None)

    @property
    def max_new_tokens(self) -> int:
        """Bound on the output; the engine resolved ``None`` to what the context leaves."""
        limit = self.request.sampling.max_new_tokens
        assert limit is not None
        return limit

    @property
    def is_prefill(self) -> bool:
        """It only wants its prompt computed."""
        return self.max_new_tokens == 0 and self.logprobs is None and self.request.pool is None

    @property
    def lacks_results(self) -> bool:
        """Its prompt is not computed, or what it asked for, logprobs or the hidden state, has not all come."""
        state = self.logprobs
        if self.num_computed < self.prompt_len:  # a constraint may dictate the whole answer before
            return True
        if state is None:
            return self.request.pool is not None and self.hidden is None
        expected = any(token is not None for token in self.samples_in_flight)
        return bool(state.unscored) or self.scores_in_flight > 0 or expected

    @property
    def level(self) -> int:
        """That of its program, less what waiting has made up for; 0 goes first."""
        if self.program is None or (level := self.program.level) == 0:
            return 0
        return max(0, level - self.waited // AGING_STEPS)

    @property
    def sort_key(self) -> tuple[int, int, int, int]:
        """Who goes first: higher priority, then a program that has had less, then earlier arrival."""
        return (-self.priority, 0 if self.program is None else self.level, self.rank, self.order)

    def inherit(self, waiter: Request) -> None:
        """``waiter`` needs what this one computes: it becomes as urgent as that."""
        self.priority = max(self.priority, waiter.priority)
        self.waited += AGING_STEPS * max(0, self.level - waiter.level)

    def check(self) -> None:
        """The order of the integers."""
        known = self.num_tokens + self.num_unknown
        assert 0 <= self.num_cached <= self.num_computed <= self.num_scheduled <= known, self

    def note_start(self, depth: int) -> None:
        """Everything below ``depth`` comes from the cache; the first time, that is where the request starts."""
        self.account_cached(depth)
        if self.num_scheduled == 0:
            self.num_cached = self.num_computed = depth

    def note_run(self, now: float) -> None:
        """It runs; the first time, that ends its time in the queue."""
        if self.first_run is None:
            self.first_run = now
            self.accounting.queue_ms = 1000 * (now - self.start_time)

    def account_cached(self, upto: int) -> None:
        """Positions below ``upto`` came from the cache, as far as they are new."""
        fresh = min(upto, self.prompt_len) - self.seen
        if fresh > 0:
            self.accounting.cached_tokens += fresh
        self.seen = max(self.seen, upto)

    def account_computed(self, start: int, end: int, in_cache: int) -> None:
        """Positions ``[start, end)`` are computed; below ``in_cache`` they had been before."""
        self.accounting.forward_passes += 1
        if start < in_cache or start < self.seen:
            self.accounting.replayed_tokens += max(0, min(end, max(in_cache, self.seen)) - start)
        if start < self.prompt_len:
            self.accounting.computed_prompt_tokens += max(0, min(end, self.prompt_len) - max(start, self.seen))
        if end > self.seen:
            self.seen = end

    def __repr__(self) -> str:
        return (
            f"Request({self.id}, {self.status.value}, cached={self.num_cached}, computed={self.num_computed}, "
            f"scheduled={self.num_scheduled}, tokens={self.num_tokens}, unknown={self.num_unknown})"
        )


def owner_of(node: RadixNode) -> Request | None:
    """The request that ``node`` was claimed for last, as long as there is one."""
    request = node.owner() if isinstance(node.owner, weakref.ref) else None
    return request if isinstance(request, Request) else None
