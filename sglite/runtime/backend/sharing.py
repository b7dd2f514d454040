"""When a step reads pages that its rows share once for all of them: the rule, and how times become one. Host alone.

Reading them once takes a launch more and a merge of every row. It saves what would be read again, of each group
``(rows - 1) * shared`` slots. So a rule is the least saving of a step, by how many rows the step has:

    rows up to     2       8      32
    slots      1,024   2,048   never      a step of 5 rows goes by 8, one of 100 by 32
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sglite.runtime.backend.base import BackendError

ESTIMATE = 8192
"""Slots, where nothing was measured: 4 KiB each, of 8 KV heads of 128, take as long to read as the launch and merge."""


@dataclass(frozen=True)
class Sharing:
    """A rule. ``least``: rows, ascending, and the fewest slots that a step of up to so many must save; ``None``: it
    shares nothing. Steps of more rows go by the last entry; without any, no step shares."""

    least: tuple[tuple[int, int | None], ...]
    origin: str
    """Where it comes from, for people."""

    def pays(self, rows: int, saved: int) -> bool:
        """Whether a step of ``rows`` rows reads shared pages once that saves ``saved`` slots."""
        least = self._least(rows)
        return least is not None and saved >= least

    def ever(self, rows: int) -> bool:
        """Whether a step of ``rows`` rows may."""
        return self._least(rows) is not None

    def _least(self, rows: int) -> int | None:
        found = None
        for most, least in self.least:
            found = least
            if rows <= most:
                break
        return found

    def __str__(self) -> str:
        if all(least is None for _, least in self.least):
            return f"shared pages are read by every row ({self.origin})"
        known = ["never" if least is None else f"{least} slots" for _, least in self.least]
        last = known.pop()
        said = [f"{what} at up to {rows} rows" for (rows, _), what in zip(self.least, known, strict=False)]
        saved = ", ".join([*said, f"{last} above"]) if {*known} - {last} else last
        return f"shared pages are read once where that saves a step {saved} ({self.origin})"


ESTIMATED = Sharing(((1, ESTIMATE),), "an estimate")


def never(reason: str) -> Sharing:
    """Nothing is shared."""
    return Sharing((), reason)


def asked_for(cascade: str, attention: str, *, deterministic: bool) -> Sharing | None:
    """The rule by ``EngineArgs.cascade_attention`` and what else is asked for; ``None``: it is to be measured.

    BackendError: a saving is named where nothing can be shared.
    """
    others = {
        "enable_deterministic_inference=True": deterministic,
        "attention_backend='flashinfer'": attention == "flashinfer",
    }
    reason = next((name for name, given in others.items() if given), None)
    if reason is not None:
        if cascade not in ("auto", "never"):
            raise BackendError(f"cascade_attention={cascade!r}: {reason} shares nothing; leave one of them out")
        return never(reason)
    if cascade == "auto":
        return None
    return never("cascade_attention") if cascade == "never" else Sharing(((1, int(cascade)),), "cascade_attention")


@dataclass(frozen=True)
class Point:
    """A step whose rows are one group, timed both ways."""

    saved: int
    """Slots."""
    apart: float
    """Seconds where every row reads everything."""
    once: float
    """Seconds where they read once what they share."""


def least_saving(points: Sequence[Point]) -> int | None:
    """From where on to share, so that all of ``points`` together take the least time; ``None``: nowhere.

    One of them that is off does not move it far, and nothing is shared that saves less than what was measured.
    """
    found, gained, most = None, 0.0, 0.0
    for point in sorted(points, key=lambda point: -point.saved):
        gained += point.apart - point.once
        if gained > most:
            found, most = point.saved, gained
    return found
