"""Coroutines as values: what an async function of a branch will return, to append or to await."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from sglite.lang.cells import Cell, arrival
from sglite.lang.errors import Failure
from sglite.lang.values import Value


def value_of_task(value_of: Callable[[Cell], Value[Any]], coroutine: Coroutine[Any, Any, Any]) -> Value[Any]:
    """Starts ``coroutine`` in the running loop; the value that it will return."""
    cell = Cell(getattr(coroutine, "__name__", "task"))
    task = asyncio.ensure_future(coroutine)

    async def settle() -> None:
        try:
            result = await task
            if isinstance(result, Value):
                await arrival(result.cell.done)
                result, raw = result.cell.get(), result.cell.raw
            else:
                raw = result if isinstance(result, str) else None
            cell.resolve(result, None, raw)
        except (Exception, asyncio.CancelledError) as error:
            cell.fail(Failure(f"{cell.name}()", cell.name, error, ""))

    value = value_of(cell)
    value.keep = asyncio.ensure_future(settle())
    return value
