"""``@program``: the spelling for those who come from typed, asynchronous code. The call gives the function's value."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sglite.lang.bodies import end_cancelled
from sglite.lang.function import Function
from sglite.lang.values import settled, values_in


class Program(Function):
    """A function of a state, under any name, whose call gives what the function returns.

    Of an ``async def`` the call is a coroutine; of a plain function it is the value. ``run_value`` gives the value in
    either case. Values that do not exist yet, also in lists, tuples and dicts, are waited for. ``run``, ``arun``,
    ``run_batch`` and the rest give states, as for ``@function``.
    """

    first_name = None

    def __init__(self, func: Callable[..., Any], bound: dict[str, Any] | None = None) -> None:
        super().__init__(func, None, bound)

    def _again(self, bound: dict[str, Any]) -> Program:
        return Program(self.func, bound)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's value, or a coroutine for it; arguments as for ``run``."""
        if self.is_async:
            return self._avalue(args, kwargs)
        return self.run_value(*args, **kwargs)

    async def _avalue(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = await self.arun(*args, **kwargs)
        try:
            for value in values_in(state.ret_value):
                await value
            error = await state.finished()
        except asyncio.CancelledError:
            end_cancelled(state)
            raise
        if error is not None:
            raise error
        return settled(state.ret_value)

    def run_value(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program and gives its value; works in scripts and in notebooks. Errors of outputs are raised."""
        state = self.run(*args, **kwargs)
        try:
            for value in values_in(state.ret_value):
                value.value()
            error = state.error()
        except KeyboardInterrupt:
            end_cancelled(state)
            raise
        if error is not None:
            raise error
        return settled(state.ret_value)
