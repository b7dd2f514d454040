"""A progress bar for batches, on stderr, for those who ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int, label: str, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Yields what to call, from any thread, whenever one of ``total`` things is done."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)
