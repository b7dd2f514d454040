"""no_network: nothing gets out, whichever client tries; afterwards everything is as it was."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import sglite as sgl
from sglite.lang.testing import NetworkBlocked, no_network
from sglite.lang.testing.network import is_loopback

FAR = "192.0.2.1"  # RFC 5737: an address for documentation, nobody's
PATCHED = [(socket.socket, name) for name in ("connect", "connect_ex", "sendto", "sendmsg")] + [
    (socket, name) for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr")
]


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of a server on this machine that answers every HTTP request."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.recv(65536)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def tries(host: str, port: int) -> dict[str, Any]:
    """Ways to reach a host, each a function that does it."""

    async def streams() -> None:
        _, writer = await asyncio.open_connection(host, port)
        writer.close()

    async def client() -> None:
        async with httpx.AsyncClient() as http:
            await http.get(f"http://{host}:{port}/")

    def datagram() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", (host, port))

    def message() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendmsg([b"x"], [], 0, (host, port))

    def connect_ex() -> None:
        with socket.socket() as sock:
            sock.settimeout(2)
            sock.connect_ex((host, port))

    return {
        "create_connection": lambda: socket.create_connection((host, port), 2).close(),
        "connect_ex": connect_ex,
        "sendto": datagram,
        "sendmsg": message,
        "urllib": lambda: urllib.request.urlopen(f"http://{host}:{port}/", timeout=2).read(),
        "httpx": lambda: httpx.get(f"http://{host}:{port}/", timeout=2),
        "asyncio": lambda: asyncio.run(streams()),
        "httpx.AsyncClient": lambda: asyncio.run(client()),
    }


@contextmanager
def blocked(what: str, loopback: bool = True) -> Iterator[None]:
    """Inside, ``what`` is blocked: NetworkBlocked itself comes out, or an error that was made of it."""
    with no_network(loopback=loopback) as guard, pytest.raises(Exception) as caught:
        yield
    assert guard.attempts == [what]
    todo: list[Any] = [caught.value]
    while todo and not isinstance(todo[0], NetworkBlocked):
        error = todo.pop(0)
        todo += [*getattr(error, "exceptions", ()), *filter(None, [error.__cause__])]
    assert todo, f"{caught.value!r} does not tell of NetworkBlocked"
    assert str(todo[0]).startswith(f"{what} was blocked by no_network(); ")


@pytest.mark.parametrize("way", tries("", 0))
def test_no_way_leads_to_another_machine(way: str) -> None:
    with blocked(f"a connection to {FAR}:80"):
        tries(FAR, 80)[way]()


@pytest.mark.parametrize("way", sorted(set(tries("", 0)) - {"connect_ex", "sendto", "sendmsg"}))
def test_no_name_is_looked_up(way: str) -> None:
    with blocked("looking up the address of 'far.example'"):
        tries("far.example", 80)[way]()


@pytest.mark.parametrize("way", tries("", 0))
def test_this_machine_may_be_reached_unless_told_otherwise(way: str, server: int) -> None:
    with no_network() as guard:
        tries("127.0.0.1", server)[way]()
    assert guard.attempts == []
    with blocked(f"a connection to 127.0.0.1:{server}", loopback=False):
        tries("127.0.0.1", server)[way]()


def test_the_clients_of_apis_cannot_get_out_and_say_why() -> None:
    openai = pytest.importorskip("openai")
    client = openai.AsyncOpenAI(api_key="none", base_url="https://api.far.example/v1", max_retries=0)

    async def ask() -> None:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])

    with blocked("looking up the address of 'api.far.example'"):
        asyncio.run(ask())


def test_a_program_on_a_server_elsewhere_is_stopped() -> None:
    with blocked(f"a connection to {FAR}:30000"):
        sgl.RuntimeEndpoint(f"http://{FAR}:30000")


def found() -> list[Any]:
    """What is called, and whether it is there itself or inherited."""
    return [(getattr(holder, name), name in vars(holder)) for holder, name in PATCHED]


ORIGINAL = found()


def test_afterwards_everything_is_as_it_was() -> None:
    with no_network():
        inside = found()
        with pytest.raises(ZeroDivisionError), no_network(loopback=False):
            raise ZeroDivisionError
        assert found() == inside
    assert found() == ORIGINAL and all(a[0] is not b[0] for a, b in zip(ORIGINAL, inside, strict=True))


def test_sockets_of_this_machine_and_its_own_name_stay_usable(tmp_path: Path) -> None:
    with no_network(loopback=False) as guard:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as peer:
            listener.bind(str(tmp_path / "s"))
            listener.listen()
            peer.connect(str(tmp_path / "s"))
        left, right = socket.socketpair()
        left.sendall(b"x")
        assert right.recv(1) == b"x"
        left.close(), right.close()
        socket.getaddrinfo(None, 80)
        socket.getaddrinfo("localhost", 80)
        socket.getaddrinfo(FAR, 80)
        assert asyncio.run(asyncio.sleep(0, "a new loop")) == "a new loop"
    assert guard.attempts == []


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("fe80::1%lo", False),
        ("localhost", True),
        (b"localhost", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
        ("", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        (None, False),
    ],
)
def test_loopback_is_told_from_the_rest(host: Any, expected: bool) -> None:
    assert is_loopback(host) is expected
