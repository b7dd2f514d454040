"""Tools of MCP servers, with a server in this process."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.mcp_tools import mcp_tools
from sglite.lang.session import SESSION
from sglite.lang.testing import Call, Invalid, Mock
from sglite.lang.tool_events import ToolError

server_module = pytest.importorskip("mcp.server")


@pytest.fixture
def server() -> Any:
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    server = server_module.MCPServer("calculator")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        if a < 0:
            raise ValueError("no negatives")
        return a + b

    return server


def test_a_servers_tools_are_called_from_plain_and_async_programs(server: Any) -> None:
    @sgl.function
    def plain(s: Any, tools: Any) -> Any:
        s.user("?")
        return sgl.tool_loop(s, tools)

    @sgl.program
    async def waiting(s: sgl.State, tools: Any) -> Any:
        s.user("?")
        return await sgl.tool_loop(s, tools)

    answers = [[Call("calc_add", a=2, b=3), Invalid(Call("calc_add", a="x"))], "ok"]
    with mcp_tools(server, prefix="calc_") as tools:
        (tool,) = tools
        assert (tool.spec.name, tool.spec.description) == ("calc_add", "Add two numbers.")
        assert set(tool.spec.parameters["properties"]) == {"a", "b"}
        with Mock(answers) as mock:
            state = plain.run(tools, backend=mock)
        told = [message["content"] for message in state.messages() if message["role"] == "tool"]
        assert told[0] == "5" and told[1].startswith("Error: McpError: ")

    async def main() -> Any:
        async with mcp_tools(server) as tools:
            return await waiting(tools, backend=Mock([Call("add", a=1, b=1), "2"]))

    assert asyncio.run(main()) == "2"


def test_errors_of_a_server_can_end_the_program(server: Any) -> None:
    @sgl.function
    def program(s: Any, tools: Any) -> Any:
        s.user("?")
        return sgl.tool_loop(s, tools)

    with (
        mcp_tools(server, on_error="raise") as tools,
        pytest.raises(ToolError, match="the tool 'add' failed: McpError: "),
    ):
        program.run(tools, backend=Mock([Call("add", a=-1, b=1)]))


def test_connections_are_told_apart_and_leave_nothing(server: Any) -> None:
    connection = mcp_tools(server)
    with connection as tools, pytest.raises(ValueError, match="not a JSON object"):
        tools[0].arguments("[1]")
    with pytest.raises(RuntimeError, match="in use already"), connection:
        pass
    with (
        pytest.raises(ConnectionError, match=r"'http://127\.0\.0\.1:9/mcp' could not be had"),
        mcp_tools("http://127.0.0.1:9/mcp"),
    ):
        pass

    async def left() -> list[str]:
        return [str(task.get_coro()) for task in asyncio.all_tasks() if "_connected" in str(task.get_coro())]

    assert SESSION.body_loop.wait(SESSION.body_loop.spawn(left())) == []
