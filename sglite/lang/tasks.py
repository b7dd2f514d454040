"""Coroutines as values: what an async function of a branch will return, to append or to await.

A run waits for the tasks of its body, and cancels them when the body fails: none is left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from sglite.lang.cells import Cell, arrival
from sglite.lang.errors import Failure
from sglite.lang.values import Value


class Tasks:
    """The tasks of one run's body. For the event loop of that body."""

    def __init__(self) -> None:
        self._open: set[asyncio.Task[None]] = set()

    def value_of(self, value_of: Callable[[Cell], Value[Any]], coroutine: Coroutine[Any, Any, Any]) -> Value[Any]:
        """Starts ``coroutine`` in the running loop; the value that it will return."""
        cell = Cell(getattr(coroutine, "__name__", "task"))
        task = asyncio.get_running_loop().create_task(_settle(cell, coroutine))
        self._open.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._open.discard(task)
            if task.cancelled():  # perhaps before it had begun
                coroutine.close()
                cell.fail(_failure(cell, asyncio.CancelledError()))
            else:
                task.exception()  # it is the cell's

        task.add_done_callback(ended)
        return value_of(cell)

    async def over(self) -> None:
        """Returns when all have ended."""
        while self._open:
            await asyncio.wait(self._open)

    def cancel(self) -> None:
        """Cancels all; nobody waits for them any more."""
        for task in self._open:
            task.cancel()


async def _settle(cell: Cell, coroutine: Coroutine[Any, Any, Any]) -> None:
    try:
        result = await coroutine
        if isinstance(result, Value):
            await arrival(result.cell.done)
            result, raw = result.cell.get(), result.cell.raw
        else:
            raw = result if isinstance(result, str) else None
        cell.resolve(result, None, raw)
    except BaseException as error:
        cell.fail(_failure(cell, error))
        if not isinstance(error, Exception):
            raise


def _failure(cell: Cell, error: BaseException) -> Failure:
    return Failure(f"{cell.name}()", cell.name, error, "")
