"""The server's HTTP: what is none is refused, what is bounded stays so, and no request is taken for part of another."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from served import listening

from sglite.runtime.serve import connection

HOST = b"Host: localhost\r\n"
GET = b"GET /one HTTP/1.1\r\n" + HOST
POST = b"POST /body HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the path and what came, of unknown length; ``/split`` with a line end in a header, ``/early`` before
    anything came."""
    body, more = b"", scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    headers = [(b"x-bad", b"1\r\nx: 2")] if scope["path"] == "/split" else []
    names = b",".join(sorted({name for name, _ in scope["headers"]}))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in (scope["path"].encode(), b" %d " % len(body), b"", names):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"!"})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "HEAD_SECONDS", 0.4)
        with listening(app, http=connection.Connection, lifespan="off", ws="none") as port:
            yield port


def said(port: int, *sent: bytes, wait: float = 3.0) -> bytes:
    """What comes until the server closes; the last request asks it to."""
    with socket.create_connection(("127.0.0.1", port), wait) as peer:
        found = b""
        try:
            for part in sent:
                peer.sendall(part)
                time.sleep(0.02)
            while data := peer.recv(65_536):
                found += data
        except ConnectionError:  # it closes while there is something that it has not read
            pass
        return found


LAST = b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /one HTTP/1.1\r\n\r\n",
        GET + HOST + b"\r\n",
        GET + b"x : 1\r\n\r\n",
        GET + b"x: 1\r\n y\r\n\r\n",
        b"GET /one HTTP/1.1\nHost: localhost\n\n",
        b"GET /one HTTP/1.2\r\n" + HOST + b"\r\n",
        b"GET /one\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        POST + b"Transfer-Encoding: other\r\n\r\nabc",
        CHUNKED + b"zz\r\n",
    ],
)
def test_what_is_no_http_or_has_two_readings_is_refused_and_the_connection_ends(port: int, head: bytes) -> None:
    found = said(port, head + LAST)
    assert found.startswith(b"HTTP/1.1 400 ") and b"no valid HTTP request" in found
    assert found.count(b"HTTP/1.1") == 1 and b"/last" not in found


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ((GET + b"x: ", b"a" * 200_000), b"431"),
        ((b"GET /", b"a" * 200_000), b"431"),
        ((CHUNKED + b"1;", b"a" * 200_000), b"400"),
        ((CHUNKED + b"1\r\na\r\n0\r\nx: ", b"a" * 200_000), b"400"),
    ],
)
def test_heads_and_what_surrounds_a_body_are_bounded(port: int, sent: tuple[bytes, ...], status: bytes) -> None:
    assert said(port, *sent).startswith(b"HTTP/1.1 " + status)


def test_requests_at_once_are_answered_in_turn(port: int) -> None:
    posts = b"".join(POST + b"Content-Length: %d\r\n\r\n" % n + b"x" * n for n in range(50))
    found = said(port, b"\r\n" + posts + LAST)
    places = [found.find(b"/body\r\n%x\r\n %d " % (len(str(n)) + 2, n)) for n in range(50)]
    assert -1 not in places and places == sorted(places) and found.count(b"HTTP/1.1 200") == 51


def test_every_cut_of_a_request_is_the_same_request(port: int) -> None:
    whole = POST + b"X-A: 1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    expected = said(port, whole)
    assert b" 5 " in expected and b"connection,content-length,host,x-a" in expected
    for at in range(1, len(whole), 7):
        parts = said(port, whole[:at], whole[at:])
        assert parts.partition(b"\r\n\r\n")[2] == expected.partition(b"\r\n\r\n")[2]


def test_small_chunks_are_a_body_and_trailers_are_no_headers(port: int) -> None:
    found = said(port, CHUNKED + b"1\r\nx\r\n" * 20_000 + b"0\r\nx-api-key: 1\r\n\r\n" + LAST)
    assert b" 20000 " in found and b"x-api-key" not in found and found.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
def test_who_offers_another_protocol_is_answered_in_this_one(port: int, framing: bytes) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    found = said(port, GET + offer + b"\r\n" + POST + offer + framing + LAST)
    assert found.count(b"HTTP/1.1 200") == 3 and b" 5 " in found and b"/last" in found


def test_a_body_that_nobody_wants_any_more_is_read_past(port: int) -> None:
    size = 8 * 2**20
    early = b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % size
    found = said(port, early + b"x" * (size // 2), b"x" * (size - size // 2), LAST)
    assert found.count(b"HTTP/1.1 200") == 2 and b"/early" in found and b"/last" in found


def test_an_old_client_gets_no_chunks(port: int) -> None:
    head, _, body = said(port, b"GET /old HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert b"chunked" not in head and b"connection: close" in head and body == b"/old 0 !"


def test_a_client_that_asks_first_is_told_to_go_on(port: int) -> None:
    found = said(port, POST + b"Connection: close\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n", b"ab")
    assert found.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK") and b" 2 " in found


def test_a_header_of_ours_cannot_begin_another_answer(port: int) -> None:
    found = said(port, b"GET /split HTTP/1.1\r\n" + HOST + b"\r\n")
    assert found.startswith(b"HTTP/1.1 500 ") and b"x: 2" not in found


@pytest.mark.parametrize("first", [b"", LAST.replace(b"Connection: close\r\n", b"")])
def test_half_a_head_is_not_waited_for(port: int, first: bytes) -> None:
    began = time.monotonic()
    found = said(port, first + b"GET /never HT", b"TP/1.1\r\nx: ")
    assert found.count(b"HTTP/1.1") == bool(first) and 0.3 < time.monotonic() - began < 2
