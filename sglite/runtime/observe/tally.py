"""Numbers that only grow, histograms, and what happened lately: all that is counted on the way of a request.

Plain integers, so that counting costs less than a microsecond; ``metrics.py`` turns them into what Prometheus reads.
Not thread-safe: the observer holds a lock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

FIRST_TOKEN_BOUNDS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400,
)  # fmt: skip
BETWEEN_TOKENS_BOUNDS = (
    0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4,
    0.6, 0.8, 1, 2, 4, 6, 8,
)  # fmt: skip
REQUEST_BOUNDS = (*FIRST_TOKEN_BOUNDS, 600, 1200, 1800, 2400)
QUEUE_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 100, 200, 500, 1000)


class Histogram:
    """How many observations fell below each bound, and their sum. ``bounds`` ascend; above the last is unbounded."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """``times`` observations of ``value``; a bound belongs to the bucket below it."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, int]]:
        """(upper bound, observations up to it), the last one ``+Inf``."""
        found, total = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            found.append(("+Inf" if bound == float("inf") else repr(float(bound)), total))
        return found


class Recent:
    """Sums over the last ``seconds``, in cells of one second. ``kinds``: how many sums are kept."""

    def __init__(self, seconds: int, kinds: int = 1) -> None:
        self.seconds = seconds
        self._cells: list[tuple[int, list[float]]] = [(-1, [0.0] * kinds)] * seconds
        self._kinds = kinds

    def add(self, now: float, *values: float) -> None:
        """One value a kind."""
        second = int(now)
        at = second % self.seconds
        when, cell = self._cells[at]
        if when != second:
            cell = [0.0] * self._kinds
            self._cells[at] = (second, cell)
        for kind, value in enumerate(values):
            cell[kind] += value

    def sums(self, now: float) -> list[float]:
        """One sum a kind."""
        oldest = int(now) - self.seconds
        kept = [cell for when, cell in self._cells if oldest < when <= now]
        return [sum(cell[kind] for cell in kept) for kind in range(self._kinds)]


class Tally:
    """Everything counted so far."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """By the name of the metric, without prefix and ``_total``."""
        self.http: Counter[tuple[str, str]] = Counter()
        """Answered HTTP requests by route and status."""
        self.refused: Counter[str] = Counter()
        """Refused ones by reason."""
        self.http_open = 0
        self.first_token = Histogram(FIRST_TOKEN_BOUNDS)
        self.between_tokens = Histogram(BETWEEN_TOKENS_BOUNDS)
        self.request = Histogram(REQUEST_BOUNDS)
        self.queue = Histogram(QUEUE_BOUNDS)
        self.generated = Recent(10)
        """Generated tokens, of the last seconds."""
        self.prompts = Recent(60, kinds=2)
        """Cached and all prompt tokens, of the last minute."""

    def throughput(self, now: float) -> float:
        """Output tokens per second, lately."""
        return self.generated.sums(now)[0] / self.generated.seconds
