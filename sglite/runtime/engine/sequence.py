"""An append-only sequence of token ids that a program owns: extend it, generate from it, chain, fork, score after it.

    ids   [ committed ........................ ][ output ][ literal ][ output ][ literal ] ...
                                                 under way  `------- chained, in order -------

Its committed ids are never encoded again. What it has computed stays locked in the tree under a pin until it is
closed; a pin is a hint, given up when memory is needed. A chained generation is read and checked when it is asked for;
on the engine's thread, where the output before it ends, its literal joins the ids and it is handed to the core, so that
the very next step computes it, whatever the caller's thread is doing.

Promises: chained calls give what the same calls one after the other give; when a generation does not end well, those
chained behind it end at once and say why; a sequence that nobody holds any more is closed.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Ids
from functools import partial
from typing import Any, NamedTuple, Protocol

from sglite.runtime.engine.admission import Admitted, placed
from sglite.runtime.engine.generation import Generation
from sglite.runtime.engine.presenter import Presenter
from sglite.runtime.protocol import FinishReason, ProgramRef

MAX_CHAINED = 1024
"""Generations of one sequence that may wait for each other."""
_BY_THE_CLIENT = "a generation before it in its sequence was aborted by the client"


class Handle:
    """What the engine knows an open sequence by; the sequence itself it does not hold."""

    __slots__ = ("name", "pinned")

    def __init__(self, name: str) -> None:
        self.name = name
        self.pinned = False
        """Something was, or is going to be, pinned under its name."""


class Start(NamedTuple):
    """A generation that is to begin, and what it begins from."""

    call: Admitted
    token_ids: list[int]
    generation: Generation
    program: ProgramRef | None
    pin: str


class SequenceEngine(Protocol):
    """What a sequence needs of its engine; all of it may be called from any thread, the engine's own included."""

    def admit(self, sampling_params: Mapping[str, Any] | None, num_prompt: int | None, /, **options: Any) -> Admitted:
        """Read and check a call for a prompt of so many tokens; ``None``: nobody knows yet."""
        ...

    def compile_ahead(self, call: Admitted) -> None:
        """Begin what takes time before a call begins."""
        ...

    def generation(
        self,
        call: Admitted,
        abort: Callable[[str], None] | None = None,
        on_finished: Callable[[Ids[Presenter]], None] | None = None,
    ) -> Generation:
        """The handle on the outputs of ``call``; it has not begun."""
        ...

    def begin(self, starts: Ids[Start]) -> None:
        """Hand generations to the core, together. RuntimeError after shutdown."""
        ...

    def hold(self, token_ids: list[int], program: ProgramRef | None, pin: str) -> None:
        """Have a prefix computed and pinned."""
        ...

    def abort(self, request_id: str) -> None:
        """End a request."""
        ...

    def park(self, pin: str, expected_s: float | None) -> None:
        """Say that what is pinned will not be needed for about so long."""
        ...

    def open_sequence(self, program_id: str, token_ids: Ids[int]) -> Sequence:
        """Another sequence of the same program."""
        ...


class _Link:
    """A generation of a sequence that has not ended: the one under way, or one behind it."""

    def __init__(self, literal: list[int], call: Admitted, program: ProgramRef | None) -> None:
        self.literal = literal
        self.call = call
        self.program = program
        self.generation: Generation


class Sequence:
    """One sequence of a program; made by ``Engine.open_sequence``. Methods may be called from any thread.

    Args:
        engine: runs what it asks for.
        handle: its name in the engine.
        program: what it belongs to, ``None``: nothing.
        token_ids: how it starts.
        let_go: tells the engine that the handle is no longer used; must not lead back to the sequence.
    """

    def __init__(
        self,
        engine: SequenceEngine,
        handle: Handle,
        program: ProgramRef | None,
        token_ids: Ids[int],
        let_go: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._handle = handle
        self._program = program
        self._lock = threading.Lock()
        self._ids = list(token_ids)
        self._links: deque[_Link] = deque()
        """Not ended, in order; the first is under way."""
        self._broken = ""
        """Why nothing can be chained: what was asked for last did not end well, and nobody has gone on from there."""
        self._let_go = weakref.finalize(self, let_go)
        self._let_go.atexit = False

    @property
    def token_ids(self) -> list[int]:
        """Committed ids; a copy."""
        with self._lock:
            return list(self._ids)

    def __len__(self) -> int:
        """Number of committed ids."""
        return len(self._ids)

    @property
    def program_id(self) -> str:
        """The program it belongs to."""
        return self._program.program_id if self._program is not None else ""

    # --- known tokens -----------------------------------------------------------------------------------------

    def extend(self, token_ids: Ids[int]) -> None:
        """Append known tokens; nothing is computed before something needs it. Refused while it generates."""
        with self._lock:
            self._check_quiet("extending it")
            self._ids.extend(token_ids)
            self._broken = ""

    def truncate(self, length: int) -> None:
        """Take back the committed ids from ``length`` on; what was computed of them may be found in the cache again.

        Refused while it generates; see ``rewind``. The pin stays where it is until the next output ends.
        """
        with self._lock:
            self._check_quiet("truncating it")
            self._cut(length)

    def rewind(self, length: int) -> None:
        """``truncate`` whatever goes on: what is under way or chained is aborted, and nothing of it joins."""
        with self._lock:
            self._cut(length)
            links, self._links = list(self._links), deque()
        if links:
            links[0].generation.abort()
        _cancel(links[1:], "the sequence was taken back to an earlier place")

    def _cut(self, length: int) -> None:
        if not 0 <= length <= len(self._ids):
            raise ValueError(f"length={length}: the sequence has {len(self._ids)} tokens; give 0 to that many")
        del self._ids[length:]
        self._broken = ""

    def _check_quiet(self, what: str) -> None:
        self._check_open()
        if self._links:
            raise RuntimeError(f"this sequence is generating: wait for its output before {what}")

    def _check_open(self) -> None:
        if not self._let_go.alive:
            raise RuntimeError("this sequence is closed; open another one")

    # --- generating -------------------------------------------------------------------------------------------

    def generate(
        self,
        sampling_params: Mapping[str, Any] | None = None,
        *,
        stream: bool = False,
        hints: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Generation:
        """Generate after the committed ids; the first output joins them at the end.

        ``options``: ``return_logprob``, ``logprob_start_len``, ``top_logprobs_num``, ``token_ids_logprob``,
        ``return_text_in_logprobs``, ``rid``, ``priority`` and so on as in ``Engine.generate``. ``hints``: where in its
        program's graph this stands (``node``, ``group``, ``group_size``, ``upcoming``). Events come either way;
        ``stream`` is accepted for symmetry with ``Engine.generate``. Raises ``ValueError`` naming the field for bad
        values.
        """
        link = self._link([], self._engine.admit(sampling_params, len(self._ids), **options), hints)
        with self._lock:
            self._check_open()
            if self._links:
                raise RuntimeError("this sequence is generating already: wait for its output, fork it, or chain")
            self._broken = ""
            self._add(link)
        return link.generation

    def chain(
        self,
        token_ids: Ids[int],
        sampling_params: Mapping[str, Any] | None = None,
        *,
        stream: bool = False,
        hints: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Generation:
        """``extend`` and ``generate`` as soon as everything asked for before has ended; at once where that is so.

        Several may wait in order. Bad values are refused now, except what depends on the length of the sequence: that
        ends the generation as the engine's refusal. When one does not end well, those behind it end with an abort
        (``code`` ``cancelled``) that says so, and their tokens do not join; later ones too, until somebody extends the
        sequence, takes it back or generates. A time limit counts from its own start.
        """
        link = self._link(list(token_ids), self._engine.admit(sampling_params, None, **options), hints)
        with self._lock:
            self._check_open()
            if len(self._links) > MAX_CHAINED:
                raise RuntimeError(f"{MAX_CHAINED} generations of this sequence wait already; wait for some of them")
            broken = self._broken
            if self._links:
                self._engine.compile_ahead(link.call)
            if not broken:
                self._add(link)
        _cancel([link] if broken else [], broken)
        return link.generation

    def _link(self, literal: list[int], call: Admitted, hints: Mapping[str, Any] | None) -> _Link:
        link = _Link(literal, call, placed(self._program, hints))
        link.generation = self._engine.generation(call, partial(self._abort, link), partial(self._ended, link))
        return link

    def _add(self, link: _Link) -> None:
        """One more generation; the first one begins. The lock is held."""
        if not self._links:
            self._begin(link)
        self._links.append(link)

    def _begin(self, link: _Link) -> None:
        """Append the literal and hand the request to the core, both or neither. The lock is held."""
        before = len(self._ids)
        self._ids.extend(link.literal)
        self._handle.pinned = True
        try:
            start = Start(link.call, list(self._ids), link.generation, link.program, self._handle.name)
            self._engine.begin([start])
        except BaseException:
            del self._ids[before:]
            raise

    def _ended(self, link: _Link, presenters: Ids[Presenter]) -> None:
        """On the engine's thread, when all outputs of a generation have ended: take over the first, begin what follows.

        ``presenters`` is empty when it did not end well. Does nothing for what was taken back meanwhile.
        """
        with self._lock:
            if not self._links or self._links[0] is not link:
                return
            self._links.popleft()
            verdict = "" if presenters else link.generation.verdict
            try:
                if presenters:
                    self._ids.extend(presenters[0].state_ids())
                    link.generation.num_committed = len(self._ids)
                    if self._links:
                        self._begin(self._links[0])
            except Exception as error:
                verdict = f"could not be followed: {error}"
            if not verdict:
                return
            orphans, self._links = self._links, deque()
            self._broken = why = f"the generation before it in its sequence {verdict}"
        _cancel(orphans, why)

    def _abort(self, link: _Link, request_id: str) -> None:
        """End a generation: by the engine if it has begun; otherwise here, with all behind it."""
        with self._lock:
            place = self._links.index(link) if link in self._links else 0
            dropped = [self._links.pop() for _ in range(len(self._links) - place)][::-1] if place else []
            if dropped:
                self._broken = _BY_THE_CLIENT
        if not dropped:
            self._engine.abort(request_id)
            return
        _cancel(dropped[:1], "aborted by the client")
        _cancel(dropped[1:], _BY_THE_CLIENT)

    # --- around it --------------------------------------------------------------------------------------------

    def score(
        self,
        continuations: Ids[list[int]],
        *,
        top_logprobs_num: int = 0,
        hints: Mapping[str, Any] | None = None,
    ) -> list[Generation]:
        """One generation a continuation; ``meta_info["input_token_logprobs"]`` has its tokens' rows. Changes nothing.

        They are admitted together, and what they share, the sequence itself first, is computed once.
        """
        ids = self.token_ids
        first = self._engine.admit(
            {"max_new_tokens": 0, "temperature": 0.0},
            len(ids),
            return_logprob=True,
            logprob_start_len=len(ids),
            top_logprobs_num=top_logprobs_num,
        )
        program = placed(self._program, hints)
        starts = []
        for continuation in continuations:
            call = first.again()
            starts.append(Start(call, ids + continuation, self._engine.generation(call), program, ""))
        self._engine.begin(starts)
        return [start.generation for start in starts]

    def fork(self, n: int) -> list[Sequence]:
        """``n`` sequences with the same committed ids.

        The ids are computed once, as a node of their own and at the program's cost: every branch finds them cached.
        Where they are computed already, that takes no step.
        """
        if n < 1:
            raise ValueError(f"fork needs at least one branch, got {n}")
        with self._lock:
            self._check_open()
            ids = list(self._ids)
            if ids:
                quiet = not self._links  # what is under way locks more than this and will leave its own pin
                self._handle.pinned |= quiet
                self._engine.hold(ids, self._program, self._handle.name if quiet else "")
        return [self._engine.open_sequence(self.program_id, ids) for _ in range(n)]

    def park(self, expected_s: float | None = None) -> None:
        """A hint: its program now waits for something else, for about so many seconds."""
        if expected_s is not None and not expected_s >= 0:
            raise ValueError(f"park(expected_s={expected_s!r}): give seconds, 0 or more, or None")
        self._engine.park(self._handle.name, expected_s)

    def close(self) -> None:
        """Its pin is released; what it computed may be evicted from now on. What is chained is aborted.

        What is under way goes on to its end. Safe to call twice.
        """
        with self._lock:
            chained = [self._links.pop() for _ in range(len(self._links) - 1)][::-1]
        _cancel(chained, "the sequence was closed")
        self._let_go()


def _cancel(links: Ids[_Link], why: str) -> None:
    """End generations that have not begun. Not under the lock, which their end takes too."""
    for link in links:
        link.generation.end(FinishReason(type="abort", code="cancelled", message=why))
