"""HTTP as the endpoint's streams use it: connections that are kept, requests that are tried again, errors in words.

Each connection is a client of its own: one client's pool looks at all its connections for every request, which with
hundreds of them takes longer than the request. A request is made again only while nothing of an answer has come: when
the server could not be reached, closed the connection unanswered, or asked to come back later (429, 503).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx

from sglite.lang.backends.retrying import RetryPolicy, with_retries
from sglite.lang.errors import BackendError

_CONNECT_SECONDS = 10.0
_ASK_SECONDS = 60.0
_LATER = (429, 503)
RETRIES = RetryPolicy(max_tries=4, first_s=0.2, max_s=5.0)


class _Connections(NamedTuple):
    """Keep-alive connections, which belong to one loop. ``slots`` bounds the requests in flight."""

    loop: asyncio.AbstractEventLoop
    slots: asyncio.Semaphore
    idle: list[httpx.AsyncClient]


class Http:
    """The server at ``base_url``. ``max_connections``: requests at a time; more wait here."""

    def __init__(
        self, base_url: str, headers: dict[str, str], verify: bool | str, max_connections: int, retries: RetryPolicy
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._headers = headers
        self._tls = httpx.create_ssl_context(verify) if self.base_url.startswith("https") else False
        self._max_connections = max_connections
        self._retries = retries
        self._connections: _Connections | None = None

    def ask(self, method: str, path: str, body: Any = None, seconds: float | None = _ASK_SECONDS) -> httpx.Response:
        """The answer to a request from the caller's own thread, whatever its status. ``seconds`` None: no limit."""
        try:
            with httpx.Client(headers=self._headers, verify=self._tls, timeout=seconds) as client:
                return client.request(method, self.base_url + path, json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def post(self, path: str, body: dict[str, Any], *, beside: bool = False) -> Any:
        """The answer to one request; BackendError with the server's words if it refuses.

        ``beside``: small and not to wait for those that take long.
        """
        async with self._answer(path, body, beside) as response:
            return json.loads(await response.aread())

    async def post_events(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The server-sent events of one streamed request; BackendError where it fails."""
        async with self._answer(path, body, False) as response:
            async for line in _lines(response):
                data = line.removeprefix(b"data:").strip()
                if line.startswith(b"data:") and data != b"[DONE]":
                    event: dict[str, Any] = json.loads(data)
                    if "error" in event:
                        raise BackendError(f"{self.base_url}: {message_of(event)}")
                    yield event

    @asynccontextmanager
    async def post_lines(
        self, path: str, body: dict[str, Any], *, beside: bool = False
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The answer to one request as JSON lines. Entered once the server has begun to answer."""
        async with self._answer(path, body, beside) as response:
            yield (json.loads(line) async for line in _lines(response) if line)

    @asynccontextmanager
    async def _answer(self, path: str, body: dict[str, Any], beside: bool) -> AsyncIterator[httpx.Response]:
        """The beginning of a good answer."""
        async with self._connection(beside) as client:

            async def begin() -> httpx.Response:
                response = await client.send(client.build_request("POST", path, json=body), stream=True)
                if response.is_error:
                    await response.aread()
                    response.raise_for_status()
                return response

            try:
                response = await with_retries(begin, self._retries, _is_passing)
                try:
                    yield response
                finally:
                    await response.aclose()
            except httpx.HTTPStatusError as error:
                raise BackendError(_refusal(error.response)) from error
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error

    @asynccontextmanager
    async def _connection(self, beside: bool) -> AsyncIterator[httpx.AsyncClient]:
        """A free connection of the running loop (a forked process has a new loop), or a new one."""
        loop = asyncio.get_running_loop()
        if self._connections is None or self._connections.loop is not loop:
            self._connections = _Connections(loop, asyncio.Semaphore(self._max_connections), [])
        slots, idle = self._connections.slots, self._connections.idle
        if not beside:
            await slots.acquire()
        client = idle.pop() if idle else self._new_connection()
        try:
            yield client
        finally:
            idle.append(client)
            if not beside:
                slots.release()

    def _new_connection(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.base_url,
            headers=self._headers,
            verify=self._tls,
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
        )

    def _unreachable(self, error: httpx.HTTPError) -> BackendError:
        return BackendError(f"{self.base_url}: {type(error).__name__}: {error}; is the server running there?")


def checked(response: httpx.Response) -> httpx.Response:
    """A good answer; BackendError with the server's words for any other."""
    if response.is_error:
        raise BackendError(_refusal(response))
    return response


def message_of(body: Any) -> str:
    """What went wrong, wherever a server's error body says it."""
    if isinstance(body, dict):
        for key in ("error", "message", "detail"):
            if body.get(key):
                return message_of(body[key])
    return body if isinstance(body, str) else json.dumps(body)


def _refusal(response: httpx.Response) -> str:
    try:
        said = message_of(response.json())
    except ValueError:
        said = response.text[:500] or response.reason_phrase
    return f"{response.url}: HTTP {response.status_code}: {said}"


def _is_passing(error: Exception) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _LATER
    return isinstance(error, (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError))


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a streamed answer. They end at \\n alone: text may hold other separators, unescaped."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest
