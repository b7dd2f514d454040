"""A request's constraint: compiled off the step thread, then one matcher that moves with the committed tokens."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sglite.constrained.compiler import CompiledConstraint
from sglite.constrained.matcher import Matcher
from sglite.constrained.spec import ConstraintSpec


class Compiler(Protocol):
    """What the engine needs of a constraint compiler."""

    def submit(self, spec: ConstraintSpec) -> Future[CompiledConstraint]:
        """Compile on another thread; identical specs compile once."""
        ...

    def close(self) -> None:
        """Stop its threads."""
        ...


class GrammarState:
    """The matcher of one request; it has accepted exactly the output tokens the request knows."""

    __slots__ = ("future", "matcher")

    def __init__(self, future: Future[CompiledConstraint]) -> None:
        self.future = future
        self.matcher: Matcher | None = None

    def when_ready(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` (from any thread) once compilation has ended, well or not."""
        self.future.add_done_callback(lambda _: wake())

    def start(self) -> None:
        """Take the compiled constraint; raises what compilation raised."""
        self.matcher = self.future.result(timeout=0).matcher()

    def fill(self, row: NDArray[np.int32]) -> None:
        """Write the mask for the next token into one row of a bitmask."""
        assert self.matcher is not None
        self.matcher.fill(row)

    def accept(self, token: int) -> bool:
        """Move past an output token; ``False``: it was not allowed."""
        assert self.matcher is not None
        return self.matcher.accept(token)

    def forced(self, limit: int) -> list[int]:
        """Tokens that are the only allowed ones from here, in order."""
        assert self.matcher is not None
        return self.matcher.forced(limit) if limit > 0 else []

    @property
    def finished(self) -> bool:
        """Nothing more can follow."""
        return self.matcher is not None and self.matcher.finished

    @property
    def complete(self) -> bool:
        """The output so far is a member of the language."""
        return self.matcher is not None and (self.matcher.accepting or self.matcher.finished)
