"""``@program``: the spelling for those who come from typed, asynchronous code. The call gives the function's value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sglite.lang.function import Function
from sglite.lang.values import Value


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
        for value in values_in(state.ret_value):
            await value
        error = await state.finished()
        if error is not None:
            raise error
        return settled(state.ret_value)

    def run_value(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program and gives its value; works in scripts and in notebooks. Errors of outputs are raised."""
        state = self.run(*args, **kwargs)
        for value in values_in(state.ret_value):
            value.value()
        error = state.error()
        if error is not None:
            raise error
        return settled(state.ret_value)


def values_in(result: Any) -> Iterator[Value[Any]]:
    """The values that a result is, or that lists, tuples and dicts of it hold."""
    if isinstance(result, Value):
        yield result
    elif isinstance(result, (list, tuple)):
        for item in result:
            yield from values_in(item)
    elif isinstance(result, dict):
        for item in result.values():
            yield from values_in(item)


def settled(result: Any) -> Any:
    """The result with what its values, which exist by now, stand for."""
    if isinstance(result, Value):
        return result.cell.get()
    if type(result) in (list, tuple):
        return type(result)(settled(item) for item in result)
    if type(result) is dict:
        return {key: settled(item) for key, item in result.items()}
    return result
