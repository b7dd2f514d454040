"""Generations that one HTTP request waits for: begun together, followed as one, ended whatever happens."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sglite.runtime.engine.engine import Engine
from sglite.runtime.engine.generation import Generation
from sglite.runtime.engine.presenter import Progress
from sglite.runtime.serve.in_flight import InFlight
from sglite.runtime.serve.logprob_count import count_logprobs
from sglite.runtime.serve.merge import Merged

_BREATH = 16
"""Generations that are submitted before others get a turn on the loop."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt, checked as far as the engine does not. ``sampling``: SGLang's ``sampling_params``; ``options``: of
    ``Engine.submit``; ``rid``: the client's name for it."""

    input_ids: list[int]
    sampling: dict[str, Any] = {}
    options: dict[str, Any] = {}
    rid: str | None = None

    @property
    def width(self) -> int:
        """Outputs asked for; what is no count is refused by the engine."""
        n = self.sampling.get("n")
        return n if type(n) is int and n > 0 else 1


@dataclass
class Started:
    """Generations under way. ``widths``: how many outputs each has. ``end`` must be called in any case."""

    in_flight: InFlight
    rids: list[str] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)

    async def outcomes(self) -> list[Progress]:
        """How it ended, one an output, in order. Raises what went wrong."""
        found: list[Progress] = []
        for generation in self.generations:
            await generation.ended()
            found.extend(generation.progress()[2])
        return found

    async def results(self) -> list[dict[str, Any]]:
        """``outcomes``, as events."""
        return [outcome.event() for outcome in await self.outcomes()]

    def news(self) -> AsyncIterator[tuple[int, Progress]]:
        """(which output, its progress) as they happen, each state once; raises what went wrong."""
        return _News(Merged(self.generations, self.in_flight.bell), self.widths)

    def end(self) -> None:
        """Nobody waits any more: what is left is aborted."""
        for rid in self.rids:
            self.in_flight.discard(rid)


class _News(AsyncIterator[tuple[int, Progress]]):
    """News of generations, as those of their outputs. ``widths``: how many each has."""

    def __init__(self, merged: Merged, widths: Sequence[int]) -> None:
        self._merged = merged
        self._widths = widths
        self._seen: dict[int, tuple[int, bool]] = {}
        self._ready: deque[tuple[int, Progress]] = deque()

    async def __anext__(self) -> tuple[int, Progress]:
        while not self._ready:
            at, parts = await self._merged.__anext__()
            start = at if len(self._widths) == 1 else sum(self._widths[:at])
            if self._widths[at] == 1:
                return start, parts[0]
            for index, part in enumerate(parts, start):
                state = (part.num_tokens, part.finish_reason is not None)
                if self._seen.get(index) != state:  # else one of the others has changed
                    self._seen[index] = state
                    self._ready.append((index, part))
        return self._ready.popleft()


async def start(engine: Engine, in_flight: InFlight, rows: Sequence[Row]) -> Started:
    """Begins all of ``rows`` or, with ``Refused`` or ``ValueError``, none."""
    logprobs = [count_logprobs(len(row.input_ids), row.sampling, row.options, in_flight.longest) for row in rows]
    widths = [row.width for row in rows]
    in_flight.admit(sum(widths), sum(logprobs))
    started = Started(in_flight)
    try:
        for index, row in enumerate(rows):
            rid = in_flight.name(row.rid)
            generation = engine.submit(row.input_ids, row.sampling, rid=rid, **row.options)
            in_flight.add(rid, generation, logprobs=logprobs[index])
            started.rids.append(rid)
            started.generations.append(generation)
            started.widths.append(widths[index])
            if index % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
    except BaseException:
        started.end()
        raise
    return started
