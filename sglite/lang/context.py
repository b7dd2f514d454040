"""What the parts of an execution hand each other: jobs, snapshots, and what all streams of a run share."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal, Protocol

from sglite.lang.backends.base import Backend
from sglite.lang.budget import TokenBudget
from sglite.lang.cells import Cell
from sglite.lang.errors import Failure
from sglite.lang.ir import Graph, Node, Sampling
from sglite.lang.messages import Message
from sglite.lang.threads import LoopThread
from sglite.lang.usage import Usage

if TYPE_CHECKING:
    from sglite.lang.executor import StreamRunner

History = Literal["append", "template"]


@dataclass(frozen=True)
class Job:
    """A node to run. ``path``: the request's name in its run. ``cell``: where its value goes; ``reasoning``: where the
    reasoning goes; ``needs``: the value it waits for; ``children``: the streams of a fork; ``parts``: text a join waits
    for."""

    node: Node
    path: str = ""
    cell: Cell | None = None
    reasoning: Cell | None = None
    needs: Cell | None = None
    children: tuple[StreamRunner, ...] = ()
    parts: tuple[Future[Snapshot], ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """A stream as it stood when all jobs before had run. ``new_text``: what it has beyond its parent's at the fork."""

    text: str
    new_text: str
    messages: list[Message]
    failure: Failure | None


@dataclass(frozen=True)
class Mark:
    """Resolves ``future`` when all jobs before have run; never fails."""

    future: Future[Snapshot] = field(default_factory=Future)


@dataclass(frozen=True)
class End:
    """No job follows."""


class Warmup(Protocol):
    """Lets the first requests of a batch wait until their common prefix is cached."""

    async def arrive(self, prompt: str) -> None:
        """Called with the text before a stream's first request; returns when it may be sent."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What all streams of one run share. ``nested``: it was started inside the body or a check of another run."""

    graph: Graph
    backend: Backend
    defaults: Sampling
    stream: bool
    loop: LoopThread
    on_end: Callable[[], None]
    """Called on the loop for every stream that has ended."""
    rng: random.Random
    warmup: Warmup | None = None
    seed: int | None = None
    budget: TokenBudget | None = None
    nested: bool = False
    history: History = "append"
    speculate: int | None = None
    usage: Usage = field(default_factory=Usage)
    started: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started

    def seed_of(self, path: str, attempt: int) -> int | None:
        """The seed of a request: the same in every run with the same seed; None where the run has none."""
        if self.seed is None:
            return None
        digest = blake2b(f"{self.seed}:{path}:{attempt}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def rng_of(self, path: str) -> random.Random:
        """Randomness for a choice that is made here."""
        seed = self.seed_of(path, 0)
        return self.rng if seed is None else random.Random(seed)
