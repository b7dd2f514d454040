"""What the back ends for paid APIs have in common: one client per event loop, a bound on requests in flight, retries
for passing failures, errors with the provider's own words, and a count of what was used.

The providers' clients are asynchronous and belong to one event loop: each loop gets its own, made when first used, and
so does a forked process, whose loop is new. Nothing here reaches the network before a program asks for something.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from sglite.lang.backends.base import Backend
from sglite.lang.backends.retrying import RetryPolicy, with_retries
from sglite.lang.errors import BackendError
from sglite.lang.formats import PLAIN, ChatFormat, named_format

T = TypeVar("T")
DEFAULT_LIMIT = 128
"""Tokens of a gen that nobody limits, as everywhere in the language."""


class ApiError(BackendError):
    """An API refused a request or could not be reached. ``status``: of the HTTP response, None without one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class TokenUsage:
    """What the APIs reported over the life of a back end. ``requests``: answered ones; ``retries``: tries that failed
    and were made again. Streams of providers that do not report usage count as 0 tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    requests: int = 0
    retries: int = 0

    def add(self, meta: dict[str, Any]) -> None:
        """One more answered request, whose ``meta_info`` is ``meta``."""
        self.requests += 1
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"):
            setattr(self, name, getattr(self, name) + int(meta.get(name) or 0))

    def reset(self) -> None:
        """Counts from 0 again."""
        self.__init__()  # type: ignore[misc]


class _Connected(NamedTuple):
    """A client, the loop it belongs to, and the free places for requests of that loop."""

    loop: asyncio.AbstractEventLoop
    client: Any
    places: asyncio.Semaphore


class ApiBackend(Backend):
    """See the module.

    ``retry``: when failed requests are made again (or ``max_retries``: how often). ``max_concurrency``: requests in
    flight; more wait here. ``chat_template``: how ``text()`` spells turns (a name from ``formats``); for reading only
    where requests carry messages.
    """

    provider = "API"

    def __init__(self, model_name: str, retry: RetryPolicy, max_concurrency: int, chat_template: str | None) -> None:
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency={max_concurrency}: at least one request must be allowed")
        self.model_name = model_name
        self.token_usage = TokenUsage()
        self._retry = retry
        self._max_concurrency = max_concurrency
        self._format: ChatFormat = PLAIN if chat_template is None else named_format(chat_template)
        self._connected: _Connected | None = None

    @abstractmethod
    def _new_client(self) -> Any:
        """A client with its own retries off."""

    async def _refresh(self, client: Any) -> None:
        """Renews what a client needs before a try: a token that expires, say."""

    def get_model_name(self) -> str:
        """The name requests carry."""
        return self.model_name

    def chat_format(self) -> ChatFormat:
        """Plain turns, or those of ``chat_template``."""
        return self._format

    async def prefill(self, text: str) -> None:
        """Nothing: these APIs cannot be told to compute a prompt; their own caches fill by themselves."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_name!r})"

    # --- requests ---

    async def send(self, call: Callable[[Any], Awaitable[T]]) -> T:
        """The answer to ``call(client)``; ApiError when it fails for good."""
        async with self._client() as client:
            return await self._tried(client, call)

    async def stream(self, call: Callable[[Any], Awaitable[AsyncIterator[T]]]) -> AsyncGenerator[T, None]:
        """The events of a streamed ``call(client)``. It is made again only as long as no event has come."""
        async with self._client() as client:
            opened, events, event = await self._tried(client, lambda c: _with_first(call(c)))
            try:
                while event:
                    yield event[0]
                    event = await self._following(events)
            finally:
                await _close(opened)

    async def _following(self, events: AsyncIterator[T]) -> tuple[T, ...]:
        try:
            return await _next(events)
        except Exception as error:
            raise self._error(error) from error

    async def _tried(self, client: Any, call: Callable[[Any], Awaitable[T]]) -> T:
        tries = 0

        async def once() -> T:
            nonlocal tries
            tries += 1
            await self._refresh(client)
            return await call(client)

        def again(error: Exception) -> None:
            self.token_usage.retries += 1

        try:
            return await with_retries(once, self._retry, is_transient, on_retry=again)
        except Exception as error:
            raise self._error(error, tries) from error

    def _error(self, error: Exception, tries: int = 1) -> BackendError:
        if isinstance(error, BackendError):
            return error
        status = getattr(error, "status_code", None)
        what = f"HTTP {status}" if status else type(error).__name__
        times = f" ({tries} tries)" if tries > 1 else ""
        return ApiError(f"{self.provider}, {self.model_name}: {what}{times}: {_message(error)}", status)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        """The running loop's client, when there is room for one more request."""
        loop = asyncio.get_running_loop()
        if self._connected is None or self._connected.loop is not loop:
            self._connected = _Connected(loop, self._new_client(), asyncio.Semaphore(self._max_concurrency))
        async with self._connected.places:
            yield self._connected.client


def client_package(name: str, extra: str, package: str | None = None) -> Any:
    """The module ``name`` of an optional package; ImportError with the line that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"this back end needs the package {package or name!r} ({error}); pip install 'sglite[{extra}]'"
        ) from error


def is_transient(error: Exception) -> bool:
    """Whether a failed request may succeed later: a time-out, a lost connection, 408, 409, 429 or 5xx.

    Goes by what the official clients' errors share: ``status_code`` and ``response``, or ``APIConnectionError``. A
    used-up quota and ``x-should-retry: false`` are final.
    """
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    if headers.get("x-should-retry") == "false" or getattr(error, "code", None) == "insufficient_quota":
        return False
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and status >= 400:
        return status in (408, 409, 429) or status >= 500
    return any(kind.__name__ == "APIConnectionError" for kind in type(error).__mro__)


def _message(error: Exception) -> str:
    """What the provider said, wherever its error keeps it."""
    body = getattr(error, "body", None)
    for part in (body.get("error") if isinstance(body, dict) else None, body):
        if isinstance(part, dict) and isinstance(part.get("message"), str):
            return str(part["message"])
    cause = f" ({error.__cause__})" if error.__cause__ is not None and str(error.__cause__) else ""
    return f"{error}{cause}"


async def _with_first(
    opening: Awaitable[AsyncIterator[T]],
) -> tuple[AsyncIterator[T], AsyncIterator[T], tuple[T, ...]]:
    """A stream's response, its events, and the first of them."""
    opened = await opening
    events = opened.__aiter__()
    return opened, events, await _next(events)


async def _next(events: AsyncIterator[T]) -> tuple[T, ...]:
    """The next event as a tuple of one, or none at the end."""
    try:
        return (await events.__anext__(),)
    except StopAsyncIteration:
        return ()


async def _close(opened: Any) -> None:
    """Ends a stream's response: the provider then stops generating."""
    close = getattr(opened, "close", None) or getattr(opened, "aclose", None)
    if close is not None:
        closing = close()
        if inspect.isawaitable(closing):
            await closing
