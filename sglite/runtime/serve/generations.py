"""Generations that one HTTP request waits for: begun together, followed as one, ended whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglite.runtime.engine.engine import Engine
from sglite.runtime.engine.generation import Generation
from sglite.runtime.engine.presenter import Progress
from sglite.runtime.serve.in_flight import InFlight
from sglite.runtime.serve.logprob_count import count_logprobs
from sglite.runtime.serve.merge import Merged

_BREATH = 16
"""Generations that are submitted before others get a turn on the loop."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt, checked as far as the engine does not. ``sampling``: SGLang's ``sampling_params``; ``options``: of
    ``Engine.submit``; ``rid``: the client's name for it."""

    input_ids: list[int]
    sampling: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
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

    async def news(self) -> AsyncGenerator[tuple[int, Progress], None]:
        """(which output, its progress) as they happen, each state once; raises what went wrong."""
        starts = [sum(self.widths[:i]) for i in range(len(self.widths))]
        seen: dict[int, tuple[int, bool]] = {}
        async for at, parts in Merged(self.generations, self.in_flight.bell):
            for offset, part in enumerate(parts):
                index = starts[at] + offset
                state = (part.num_tokens, part.finish_reason is not None)
                if seen.get(index) == state and self.widths[at] > 1:
                    continue  # one of the others has changed
                seen[index] = state
                yield index, part

    def end(self) -> None:
        """Nobody waits any more: what is left is aborted."""
        for rid in self.rids:
            self.in_flight.discard(rid)


async def start(engine: Engine, in_flight: InFlight, rows: Sequence[Row]) -> Started:
    """Begins all of ``rows`` or, with ``Refused`` or ``ValueError``, none."""
    logprobs = [count_logprobs(len(row.input_ids), row.sampling, row.options, in_flight.longest) for row in rows]
    in_flight.admit(sum(row.width for row in rows), sum(logprobs))
    started = Started(in_flight)
    try:
        for index, row in enumerate(rows):
            rid = in_flight.name(row.rid)
            generation = engine.submit(row.input_ids, row.sampling, rid=rid, **row.options)
            in_flight.add(rid, generation, logprobs=logprobs[index])
            started.rids.append(rid)
            started.generations.append(generation)
            started.widths.append(row.width)
            if index % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
    except BaseException:
        started.end()
        raise
    return started
