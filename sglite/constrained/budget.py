"""Budget: how much work a caller's constraint may cause before it is refused.

Promise: a loop that spends one unit for every step it takes ends, with ConstraintRefused, after a number of steps and
a time that are known before it starts.
"""

from __future__ import annotations

import time

from sglite.constrained.spec import ConstraintRefused

MAX_WORK = 2_000_000
_CLOCK_EVERY = 256  # units between two looks at the clock


class OutOfTime(ConstraintRefused):
    """The deadline passed. What is refused for it now may pass when the machine is less busy."""


class Budget:
    """`work` units, to be spent within `seconds` (None: no deadline).

    With `pause_s` the thread that spends lets others run that often: a front end is Python code, and would otherwise
    keep the interpreter to itself for as long as the interpreter lets it.
    """

    def __init__(self, work: int = MAX_WORK, seconds: float | None = None, pause_s: float | None = None) -> None:
        if work < 1 or (seconds is not None and seconds <= 0) or (pause_s is not None and pause_s <= 0):
            raise ValueError(f"work {work}, seconds {seconds} and pause_s {pause_s} must be positive")
        self.work = work
        self._left = work
        self._look_at = work - _CLOCK_EVERY
        self._seconds = seconds
        now = time.monotonic()
        self._deadline = None if seconds is None else now + seconds
        self._pause_s = pause_s
        self._paused = now

    @property
    def spent(self) -> int:
        """Units spent so far."""
        return self.work - self._left

    def spend(self, units: int = 1, pointer: str = "") -> None:
        """Take some units. Raises ConstraintRefused when there are not enough, OutOfTime when it is too late."""
        self._left -= units
        if self._left <= self._look_at:
            self._look_at = self._left - _CLOCK_EVERY
            self._look(pointer)
        if self._left < 0:
            raise ConstraintRefused(
                f"too much work: over {self.work} steps to make it a grammar; simplify it", pointer=pointer
            )

    def _look(self, pointer: str) -> None:
        now = time.monotonic()
        if self._deadline is not None and now > self._deadline:
            raise OutOfTime(f"making it a grammar took longer than {self._seconds:g} s; simplify it", pointer=pointer)
        if self._pause_s is not None and now - self._paused > self._pause_s:
            time.sleep(0)  # gives up the interpreter; a thread that waits for it goes first
            self._paused = time.monotonic()
