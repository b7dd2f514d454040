"""Programs and the session they run in. Names and arguments are SGLang's, whose programs run as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from sglite.lang.function import Function
from sglite.lang.program_function import Program
from sglite.lang.session import SESSION


@overload
def function(func: Callable[..., Any], num_api_spec_tokens: int | None = None) -> Function: ...
@overload
def function(func: None = None, num_api_spec_tokens: int | None = None) -> Callable[[Callable[..., Any]], Function]: ...
def function(
    func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None
) -> Function | Callable[[Callable[..., Any]], Function]:
    """Makes a program of a function whose first parameter is ``s``; as ``@function`` or ``@function(...)``."""
    if func is not None:
        return Function(func, num_api_spec_tokens)
    return lambda f: Function(f, num_api_spec_tokens)


def program(func: Callable[..., Any]) -> Program:
    """Makes a typed program of a function whose first parameter is its state; calling it gives the function's value.

    Of an ``async def``, the call is awaited: ``ana = await extract("Ana, 31")``; elsewhere ``extract.run_value(...)``.
    """
    return Program(func)


def set_default_backend(backend: Any) -> None:
    """What programs run on when ``run`` is not told: an Engine, a RuntimeEndpoint...; None for nothing."""
    SESSION.default_backend = backend


def flush_cache(backend: Any = None) -> bool:
    """Makes the back end forget cached prefixes; False if it did not, or if there is no back end."""
    if backend is None and SESSION.default_backend is None:
        return False
    return SESSION.backend(backend).flush_cache()


def get_server_info(backend: Any = None) -> dict[str, Any] | None:
    """What the back end says about itself; None if there is no back end."""
    if backend is None and SESSION.default_backend is None:
        return None
    return SESSION.backend(backend).get_server_info()
