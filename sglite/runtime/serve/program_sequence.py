"""A sequence of a program that is driven over HTTP: nodes are carried out in order, generations chained in the engine.

    nodes      extend  generate        extend  generate        fork
    engine             chain(ids) ------------ chain(ids) ...   (waits until both have ended)

Text that nothing has needed yet waits as text, so that neighbours are encoded together and a choice may change how the
text before it is encoded; what is committed is never encoded again. After a failure the sequence is *stuck*: whatever
comes behind it fails with the same cause, until ``truncate`` takes it back to a place before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sglite.runtime.engine.engine import Engine
from sglite.runtime.engine.generation import Generation
from sglite.runtime.engine.sequence import Sequence as EngineSequence
from sglite.runtime.serve.context_length import MAX_MADE_TOKENS
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.in_flight import InFlight
from sglite.runtime.serve.logprob_count import count_logprobs
from sglite.runtime.serve.program_call import Call
from sglite.runtime.serve.program_nodes import (
    AnyNode,
    Close,
    Extend,
    Fork,
    Generate,
    Park,
    Score,
    Truncate,
    hints_of,
)
from sglite.runtime.text.tokenizer import Tokenizer

_LONG_TEXT = 20_000
"""Encoding more characters than this takes long enough to be done beside the loop."""
_MAX_CHAIN = 64
"""Generations that the engine holds behind each other; more wait here."""
_MAX_PLACES = 65_536
"""Places of a sequence that ``truncate`` may name."""
_BREATH = 16
"""Choices that are encoded before others get a turn on the loop."""
_MAX_PENDING = 2**24
"""Characters that may wait to be encoded."""


@dataclass(frozen=True)
class _Job:
    """A node that is to be carried out. ``branches``: what a fork begins."""

    call: Call
    node: AnyNode
    branches: tuple[ServedSequence, ...]


@dataclass(frozen=True)
class _Running:
    """A generation under way or chained."""

    call: Call
    node: Generate
    rid: str


class ServedSequence:
    """See the module. All methods are for the server's event loop.

    Args:
        end: called with the sequence once a ``close`` node was carried out.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        in_flight: InFlight,
        end: Callable[[ServedSequence], None],
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._in_flight = in_flight
        self._end = end
        self._sequence: EngineSequence | None = None
        self._jobs: deque[_Job] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._running: dict[asyncio.Task[None], _Running] = {}
        self._pending = ""
        self._fresh = True
        self._places: dict[str, int] = {}
        self._stuck: Exception | None = None

    # --- from outside -----------------------------------------------------------------------------------------

    def begin(self, sequence: EngineSequence | None, error: Exception | None = None) -> None:
        """The engine's sequence is there, or never will be; jobs start."""
        self._sequence, self._stuck = sequence, self._stuck or error
        if sequence is not None:
            self._places[""] = len(sequence)
            self._fresh = len(sequence) == 0
        self._wake()

    def queue(self, call: Call, node: AnyNode, branches: Sequence[ServedSequence] = ()) -> None:
        """``node`` is to be carried out after those before it. ``branches``: the sequences that a fork begins."""
        self._jobs.append(_Job(call, node, tuple(branches)))
        if self._sequence is not None or self._stuck is not None:
            self._wake()

    def abort(self, target: str) -> None:
        """Ends the generation of node ``target``, or drops the node if it has not begun."""
        for running in self._running.values():
            if running.node.id == target:
                self._in_flight.abort(running.rid)
        for job in [job for job in self._jobs if job.node.id == target]:
            self._jobs.remove(job)
            self._fail(job, _Dropped("aborted by the client"))

    def forsake(self, call: Call) -> None:
        """Nobody reads the answer of ``call``: what it has under way ends."""
        for running in self._running.values():
            if running.call is call:
                self._in_flight.abort(running.rid)

    def kill(self, why: Exception) -> None:
        """Ends everything and gives the engine's sequence back."""
        self._stuck = why
        if self._worker is not None and self._worker is not asyncio.current_task():
            self._worker.cancel()
        jobs, self._jobs = self._jobs, deque()
        for job in jobs:
            self._fail(job, why)
        for running in self._running.values():
            self._in_flight.discard(running.rid)
        if self._sequence is not None:
            self._sequence.close()

    # --- carrying nodes out -----------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._jobs and (self._worker is None or self._worker.done()):
            self._worker = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        while self._jobs:
            job = self._jobs.popleft()
            try:
                await self._run(job)
            except asyncio.CancelledError:
                self._fail(job, self._stuck or _Dropped("the program has ended"))
                raise
            except Exception as error:
                self._fail(job, error)

    def _fail(self, job: _Job, error: Exception) -> None:
        for branch in job.branches:
            branch.begin(None, error)
        if not isinstance(job.node, (Score, Park)):
            self._stuck = self._stuck or error
        job.call.fail(job.node, error)

    async def _run(self, job: _Job) -> None:
        call, node, sequence = job.call, job.node, self._sequence
        if isinstance(node, Close):
            await self._quiet()
            self._end(self)
            call.finish(node)
            return
        if call.gone:
            raise _Dropped("the connection of a call before it was closed")
        if isinstance(node, Truncate) and sequence is not None:
            await self._truncate(sequence, node)
            call.finish(node)
            return
        if len(self._running) >= _MAX_CHAIN:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        if isinstance(node, (Fork, Score)):
            await self._quiet()
        if self._stuck is not None or sequence is None:
            raise _Dropped(f"not carried out: {self._stuck}")
        if isinstance(node, Generate):
            await self._generate(sequence, call, node)
        elif isinstance(node, Score):
            call.finish(node, **await self._score(sequence, call, node))
        else:
            await self._change(sequence, node, job.branches)
            call.finish(node)

    async def _change(self, sequence: EngineSequence, node: AnyNode, branches: Sequence[ServedSequence]) -> None:
        """Nodes that answer nothing."""
        if isinstance(node, Extend):
            if len(self._pending) + len(node.text) > _MAX_PENDING:
                raise Refused(400, f"more than {_MAX_PENDING} characters wait in {node.seq!r}; send less", param="text")
            self._pending += node.text
        elif isinstance(node, Fork):
            sequence.extend(await self._take_pending())
            self._place(node, len(sequence))
            for branch, forked in zip(branches, sequence.fork(len(branches)), strict=True):
                branch.begin(forked)
        elif isinstance(node, Park):
            sequence.park(node.expected_s)

    async def _quiet(self) -> None:
        """Every generation has ended."""
        while self._running:
            await asyncio.wait(self._running)

    async def _encoded(self, text: str, *, first: bool) -> list[int]:
        if len(text) > _LONG_TEXT:
            return await asyncio.to_thread(self._tokenizer.encode, text, add_bos=first)
        return self._tokenizer.encode(text, add_bos=first)

    async def _waiting_ids(self) -> list[int]:
        """The ids of the text that waits."""
        return await self._encoded(self._pending, first=self._fresh) if self._pending or self._fresh else []

    async def _take_pending(self) -> list[int]:
        """The ids of the text that waits, which are about to be committed."""
        ids = await self._waiting_ids()
        self._pending, self._fresh = "", False
        return ids

    # --- generating -------------------------------------------------------------------------------------------

    async def _generate(self, sequence: EngineSequence, call: Call, node: Generate) -> None:
        """Starts the node's generation behind those before it and leaves a task that follows it."""
        options, ids = node.options(), await self._waiting_ids()
        size, longest = len(sequence) + len(ids), self._in_flight.longest
        logprobs = count_logprobs(size, node.sampling_params, options, longest)
        self._in_flight.admit(logprobs=logprobs)
        self._pending, self._fresh = "", False
        rid = self._in_flight.name()
        generation = sequence.chain(ids, node.sampling_params, rid=rid, **options)
        self._in_flight.add(rid, generation, sequence.program_id, call.exchange, logprobs)
        task = asyncio.ensure_future(self._follow(_Job(call, node, ()), node, generation))
        self._running[task] = _Running(call, node, rid)

        def ended(task: asyncio.Task[None]) -> None:
            self._running.pop(task, None)
            self._in_flight.discard(rid)

        task.add_done_callback(ended)

    async def _follow(self, job: _Job, node: Generate, generation: Generation) -> None:
        try:
            if node.stream:
                async for event in generation:
                    if not generation.finished:
                        job.call.tell(node, outputs=_outputs(event))
            event = await generation.wait()
        except Exception as error:
            self._fail(job, error)
            return
        if generation.num_committed is None:
            self._stuck = self._stuck or _Dropped(f"node {node.id!r} before it {generation.verdict}")
        else:
            self._place(node, generation.num_committed)
        job.call.finish(node, outputs=_outputs(event))

    # --- what needs a quiet sequence --------------------------------------------------------------------------

    async def _truncate(self, sequence: EngineSequence, node: Truncate) -> None:
        if node.after not in self._places:
            raise Refused(400, f"truncate: sequence {node.seq!r} has no place after node {node.after!r}", param="after")
        length = self._places[node.after]
        sequence.rewind(length)
        await self._quiet()
        while next(reversed(self._places)) != node.after:
            self._places.popitem()
        self._pending, self._stuck = "", None
        self._fresh = length == 0

    def _place(self, node: AnyNode, length: int) -> None:
        if node.id:
            self._places[node.id] = length
            if len(self._places) > _MAX_PLACES:
                del self._places[next(name for name in self._places if name)]

    async def _score(self, sequence: EngineSequence, call: Call, node: Score) -> dict[str, Any]:
        """Rows of each choice, with the last tokens of the text that waits where a choice changes those.

        What the choices share is computed once. Nothing is committed.
        """
        before, rests = await self._continued(len(sequence), node.choices)
        scores = await self._scored(sequence.program_id, [*sequence.token_ids, *before], rests, call, node)
        found: dict[str, Any] = {"scores": scores}
        if node.unconditional:
            rows = [[row[1] for row in meta["input_token_logprobs"] if row[0] is not None] for meta in scores]
            start = self._tokenizer.encode("", add_bos=True)
            found["unconditional"] = await self._scored(sequence.program_id, start, rows, call, node)
        return found

    async def _continued(self, length: int, choices: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """What the text that waits has in common with all that it and a choice make, and what each goes on with.

        Made one at a time: the text may be long, and the choices many. ``length``: of the sequence before it.
        """
        whole = await self._encoded(self._pending, first=self._fresh)
        if length + len(whole) >= self._in_flight.longest:
            message = f"the text before the choices has {length + len(whole)} tokens, too many for the context; cut it"
            raise Refused(400, message, param="choices")
        parts: list[tuple[int, list[int]]] = []
        for index, choice in enumerate(choices):
            ids = await self._encoded(self._pending + choice, first=self._fresh)
            shared = common_start([whole, ids])
            parts.append((shared, ids[shared:]))
            if index % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
        common = min(len(whole), *(shared for shared, _ in parts))
        if sum(shared - common + len(rest) for shared, rest in parts) > MAX_MADE_TOKENS:
            raise Refused(400, f"the choices have more than {MAX_MADE_TOKENS} tokens together", param="choices")
        return whole[:common], [[*whole[common:shared], *rest] for shared, rest in parts]

    async def _scored(
        self, program: str, prompt: list[int], rests: list[list[int]], call: Call, node: Score
    ) -> list[dict[str, Any]]:
        """``meta_info`` of each continuation of ``prompt``."""
        self._in_flight.admit(len(rests))
        scratch = self._engine.open_sequence(program, prompt)
        rids = [self._in_flight.name() for _ in rests]
        try:
            generations = scratch.score(rests, hints=hints_of(node))
            for rid, generation in zip(rids, generations, strict=True):
                self._in_flight.add(rid, generation, program, call.exchange)
            events = [await generation.wait() for generation in generations]
        finally:
            for rid in rids:
                self._in_flight.discard(rid)
            scratch.close()
        return [event["meta_info"] for event in events]


class _Dropped(ValueError):
    """A node that was not carried out because of something else."""


def _outputs(event: Any) -> list[dict[str, Any]]:
    """What a client is told of each output; ids stay here."""
    events = event if isinstance(event, list) else [event]
    return [{"text": one["text"], "meta_info": one["meta_info"]} for one in events]


def common_start(sequences: Sequence[Sequence[int]]) -> int:
    """How many items all begin with."""
    length = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length
