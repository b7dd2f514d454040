"""When requests are sent: closed loop (so many at a time) or open loop (at times that do not wait for answers).

In an open loop a request counts from the moment it was due, so that a server that is slow, and thereby delays what is
sent after, is not shown in a better light (coordinated omission).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Job:
    """A request. ``about``: what its maker wants to find again beside the answer."""

    path: str
    body: dict[str, Any]
    about: Any = None


@dataclass
class Answer:
    """What came of a job. Times are seconds after the run's beginning; ``gaps``: (seconds, tokens) between events."""

    job: Job
    due: float
    first: float | None = None
    last: float | None = None
    gaps: list[tuple[float, int]] = field(default_factory=list)
    status: str = ""
    """``ok``, the HTTP status, or the name of what went wrong."""
    error: str = ""
    text: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    """Calls of tools by index: ``name`` and ``arguments``, as they were streamed."""
    finish: str | None = None
    counts: dict[str, float] = field(default_factory=dict)
    """The server's own accounting of this request."""

    @property
    def ok(self) -> bool:
        """It was answered to its end."""
        return self.status == "ok"


Send = Callable[[Answer, Callable[[], float]], Awaitable[None]]
"""Sends an answer's job and fills the answer in; is given a clock."""


@dataclass(frozen=True)
class Pace:
    """``rate``: requests a second, at exponentially distributed distances; None: closed loop. ``concurrency``: at most
    so many at a time; None: no bound, which is for open loops."""

    concurrency: int | None
    rate: float | None = None
    seed: int = 0


async def run(jobs: Sequence[Job], send: Send, pace: Pace) -> tuple[list[Answer], float]:
    """The answers in the order of ``jobs``, and how many seconds all took."""
    rng, due = random.Random(pace.seed), 0.0
    answers = []
    for job in jobs:
        answers.append(Answer(job, due))
        due += rng.expovariate(pace.rate) if pace.rate is not None else 0.0
    free = asyncio.Semaphore(pace.concurrency or len(jobs) or 1)
    start = time.perf_counter()

    def now() -> float:
        return time.perf_counter() - start

    async def one(answer: Answer) -> None:
        if pace.rate is not None:
            await asyncio.sleep(max(0.0, answer.due - now()))
        async with free:
            if pace.rate is None:
                answer.due = now()
            await send(answer, now)

    await asyncio.gather(*(one(answer) for answer in answers))
    return answers, now()
