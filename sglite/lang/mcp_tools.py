"""Tools of MCP servers (Model Context Protocol, modelcontextprotocol.io), through the official package ``mcp``.

    with mcp_tools("http://localhost:8000/mcp") as tools:          # or: async with
        sgl.tool_loop(s, [*tools, my_own_tool])

A connection lives on an event loop of the language, so that its tools can be called from any program meanwhile.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from sglite.constrained.spec import parse_json
from sglite.lang.cells import arrival
from sglite.lang.messages import ToolSpec
from sglite.lang.session import SESSION
from sglite.lang.tools import AnyTool, OnToolError, checked_name

logger = logging.getLogger(__name__)

_MAX_TOOLS = 1000
"""A server that lists more is refused."""
_CONNECT_S = 30.0
"""How long a server may take until it has listed its tools."""
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")


class McpError(RuntimeError):
    """A tool of a server ended with an error; the message is the server's."""


class McpTool(AnyTool):
    """One tool of a server. The server itself checks arguments beyond their being an object."""

    in_thread = False

    def __init__(self, client: Any, listed: Any, prefix: str, timeout: float | None, on_error: OnToolError) -> None:
        super().__init__(timeout, on_error)
        name = checked_name(prefix + _NOT_IN_NAMES.sub("_", listed.name))
        schema = {"type": "object", "properties": {}, **listed.input_schema}
        self.spec = ToolSpec(name, listed.description or listed.title or "", schema)
        self._client = client
        self._listed = listed.name

    def arguments(self, text: str) -> dict[str, Any]:
        """See AnyTool."""
        value = parse_json(text.strip() or "{}", f"arguments of {self.name}: the text")
        if not isinstance(value, dict):
            raise ValueError(f"arguments of {self.name}: the text is not a JSON object; it begins {text[:60]!r}")
        return value

    async def invoke(self, arguments: dict[str, Any]) -> Any:
        """See AnyTool."""
        call = SESSION.body_loop.spawn(self._client.call_tool(self._listed, arguments))
        try:
            result = await arrival(call)
        finally:
            call.cancel()
        text = _text_of(result)
        if result.is_error:
            raise McpError(text or "the server gives no reason")
        return text

    def __repr__(self) -> str:
        return f"<MCP tool {self.name}>"


class mcp_tools:
    """The tools of ``server`` for the time of a ``with`` or ``async with`` block; a list of them.

    ``server``: what ``mcp.Client`` takes: the URL of a server, ``mcp.StdioServerParameters`` for a command, or a server
    in this process. ``prefix``: put before the tools' names. ``timeout``, ``on_error``: as for ``sgl.tool``.

    Raises ImportError without the package ``mcp``, and ConnectionError when the server's tools cannot be had.
    """

    def __init__(
        self,
        server: Any,
        *,
        prefix: str = "",
        timeout: float | None = 30.0,
        on_error: OnToolError = "tell_model",
    ) -> None:
        self._server = server
        self._prefix = prefix
        self._timeout = timeout
        self._on_error: OnToolError = on_error
        self._ready: Future[list[McpTool]] = Future()
        self._over: Future[None] | None = None
        self._leave: asyncio.Event | None = None

    def __enter__(self) -> list[McpTool]:
        self._begin()
        try:
            return SESSION.body_loop.wait(self._ready)
        except BaseException:
            self._end()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        SESSION.body_loop.wait(self._end())

    async def __aenter__(self) -> list[McpTool]:
        self._begin()
        try:
            return await arrival(self._ready)
        except BaseException:
            self._end()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await arrival(self._end())

    def _begin(self) -> None:
        if self._over is not None:
            raise RuntimeError("these MCP tools are or were in use already; call mcp_tools(...) again")
        self._over = SESSION.body_loop.spawn(self._connected())

    def _end(self) -> Future[None]:
        assert self._over is not None
        if self._leave is not None:
            SESSION.body_loop.call(self._leave.set)
        if not self._ready.done():
            self._over.cancel()
        return self._over

    async def _connected(self) -> None:
        """Lives as long as the connection: the client is entered and left by one task."""
        self._leave = asyncio.Event()
        try:
            client = _client_class()(self._server)
            async with client:
                self._ready.set_result(await asyncio.wait_for(self._listed(client), _CONNECT_S))
                await self._leave.wait()
        except BaseException as error:
            if self._ready.done():
                logger.warning("the connection to an MCP server ended with an error: %s", error)
            else:
                reason = _innermost(error)
                said = f"{type(reason).__name__}: {reason}"
                failure = ConnectionError(f"the tools of the MCP server {self._server!r} could not be had: {said}")
                failure.__cause__ = error
                self._ready.set_exception(reason if isinstance(reason, ImportError) else failure)

    async def _listed(self, client: Any) -> list[McpTool]:
        tools: list[McpTool] = []
        cursor: str | None = None
        while True:
            page = await client.list_tools(cursor=cursor)
            tools += [McpTool(client, one, self._prefix, self._timeout, self._on_error) for one in page.tools]
            if len(tools) > _MAX_TOOLS:
                raise ValueError(f"the MCP server lists more than {_MAX_TOOLS} tools; connect to one with fewer")
            cursor = page.next_cursor
            if cursor is None:
                return tools


def _client_class() -> Any:
    try:
        return importlib.import_module("mcp").Client
    except (ImportError, AttributeError) as error:
        raise ImportError("mcp_tools needs the package 'mcp', version 2 or later; pip install 'sglite[mcp]'") from error


def _innermost(error: BaseException) -> BaseException:
    """The first cause in groups of errors, which the client raises."""
    while inner := getattr(error, "exceptions", None):
        error = inner[0]
    return error


def _text_of(result: Any) -> str:
    """What a result says as text; what is no text is named."""
    parts = [part.text if part.type == "text" else f"({part.type}, which cannot be shown)" for part in result.content]
    return "\n".join(parts)
