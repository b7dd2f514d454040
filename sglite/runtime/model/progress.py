"""How far loading is: a bar with its speed on a terminal, else a line for each tenth of what takes over a moment."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Advance = Callable[[int], None]
"""Says that so many bytes more were read."""
_MOMENT_SECONDS = 2.0
"""What is loaded in less needs no lines."""


@contextmanager
def progress(title: str, total: int, shown: bool | None = None, out: TextIO | None = None) -> Iterator[Advance]:
    """Shows on ``out`` (default: standard error) how much of ``total`` bytes is done. ``shown``: always or never; None:
    a bar on a terminal, lines elsewhere, those only when it takes more than two seconds."""
    out = sys.stderr if out is None else out
    if shown is False or total <= 0:
        yield lambda count: None
    elif out.isatty():
        with _bar(title, total, out) as advance:
            yield advance
    else:
        yield _Lines(title, total, out, 0.0 if shown else _MOMENT_SECONDS).advance


class _Lines:
    """Prints a line each time another tenth is done."""

    def __init__(self, title: str, total: int, out: TextIO, silent_s: float) -> None:
        self._title, self._total, self._out, self._silent_s = title, total, out, silent_s
        self._done, self._said = 0, 0
        self._start = time.perf_counter()

    def advance(self, count: int) -> None:
        """See ``Advance``."""
        self._done += count
        tenth = 10 * self._done // self._total
        seconds = time.perf_counter() - self._start
        if tenth == self._said or seconds < self._silent_s:
            return
        self._said = tenth
        speed = self._done / 1e9 / max(seconds, 1e-9)
        size = f"{self._done / 1e9:.1f} of {self._total / 1e9:.1f} GB"
        print(f"{self._title}: {10 * tenth} %, {size}, {speed:.2f} GB/s", file=self._out, flush=True)


@contextmanager
def _bar(title: str, total: int, out: TextIO) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=out)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
