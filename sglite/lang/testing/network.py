"""``no_network()``: while it is active, nothing of this process reaches another machine.

It replaces the methods of ``socket.socket`` that name a peer, and the look-ups of names. Blocking clients, asyncio and
what is built on them (httpx, aiohttp, openai, anthropic) go through these. Not covered: other processes, and libraries
with sockets of their own outside of Python (grpc, uvloop, Windows' proactor loop).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from types import TracebackType
from typing import Any

_NO_PEER = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
_CONNECTS = {"connect": 0, "connect_ex": 0, "sendto": -1, "sendmsg": 3}
"""Methods of a socket, and where in their arguments the address is."""
_LOOKUPS = ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr")


class NetworkBlocked(RuntimeError):
    """Something tried to reach the network inside ``no_network()``.

    No OSError, so that nothing takes it for a passing failure and tries again. What stands between may wrap it: anyio,
    on which ``httpx.AsyncClient`` is built, does so in an ExceptionGroup where the host is given by number.
    """


class NoNetwork(AbstractContextManager["NoNetwork"]):
    """See ``no_network``. ``attempts``: what was blocked, also when the one who tried kept quiet about it."""

    def __init__(self, *, loopback: bool) -> None:
        self.attempts: list[str] = []
        self._loopback = loopback
        self._restore = ExitStack()

    def __enter__(self) -> NoNetwork:
        for name, position in _CONNECTS.items():
            if hasattr(socket.socket, name):
                original = getattr(socket.socket, name)
                self._replace(socket.socket, name, self._guarded(original, name, position))
        for name in _LOOKUPS:
            self._replace(socket, name, partial(self._look_up, getattr(socket, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore.close()

    def _replace(self, holder: Any, name: str, replacement: Any) -> None:
        if name in vars(holder):
            self._restore.callback(setattr, holder, name, vars(holder)[name])
        else:
            self._restore.callback(delattr, holder, name)
        setattr(holder, name, replacement)

    def _guarded(self, original: Callable[..., Any], name: str, position: int) -> Callable[..., Any]:
        def method(sock: socket.socket, *args: Any, **kwargs: Any) -> Any:
            if len(args) > (position if position >= 0 else 1):
                self._check(sock.family, args[position])
            return original(sock, *args, **kwargs)

        method.__name__ = name
        return method

    def _check(self, family: int, address: Any) -> None:
        if address is None or family == getattr(socket, "AF_UNIX", None):
            return
        named = family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple)
        if not (named and self._loopback and is_loopback(address[0])):
            self._block(f"a connection to {_spelled(address)}")

    def _look_up(self, original: Callable[..., Any], host: Any = None, *args: Any, **kwargs: Any) -> Any:
        name = host.decode("ascii", "replace") if isinstance(host, (bytes, bytearray)) else host
        if name and not _is_address(name) and name.lower() not in (*_NO_PEER, socket.gethostname().lower()):
            self._block(f"looking up the address of {name!r}")
        return original(host, *args, **kwargs)

    def _block(self, what: str) -> None:
        self.attempts.append(what)
        hint = "answer with a Mock or a Replay, or leave no_network() for this"
        raise NetworkBlocked(f"{what} was blocked by no_network(); {hint}")


def no_network(*, loopback: bool = True) -> NoNetwork:
    """A context in which connecting to another machine, or looking up its address, raises NetworkBlocked.

    ``loopback``: whether servers on this machine may be reached; Unix sockets always may. For the whole process and
    all its threads, until the context ends; contexts may nest. For every test of a directory:

        @pytest.fixture(autouse=True)
        def offline():
            with sglite.testing.no_network():
                yield
    """
    return NoNetwork(loopback=loopback)


def is_loopback(host: Any) -> bool:
    """Whether a host is this machine, by address or by name."""
    name = host.decode("ascii", "replace") if isinstance(host, (bytes, bytearray)) else host
    if not isinstance(name, str):
        return False
    if name.lower() in _NO_PEER:
        return True
    if not _is_address(name):
        return False
    address = ipaddress.ip_address(name.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _spelled(address: Any) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        return f"{address[0]}:{address[1]}"
    return repr(address)
