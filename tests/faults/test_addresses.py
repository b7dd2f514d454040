"""Addresses and paths in requests: none is connected to, none is read, whatever the spelling."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults.scale import figure
from faults.servers import Server
from faults.shapes import wrong_with
from faults.wire import Connection

ATTACK = "addresses"
SECRET = "what-nobody-may-read-5187"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Its admin routes are open too."""
    server = Server(folder, "--context-length", "512", "--admin-key", "k", watch=False)
    yield server
    server.close()


@contextmanager
def ears() -> Iterator[tuple[int, list[bytes]]]:
    """A port of every loopback address, and what has connected to it."""
    heard: list[bytes] = []
    with socket.create_server(("0.0.0.0", 0)) as four:
        port = four.getsockname()[1]
        with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=False) as six:

            def listen(listener: socket.socket) -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    heard.append(str(connection.getpeername()).encode())
                    connection.close()

            for listener in (four, six):
                threading.Thread(target=listen, args=(listener,), daemon=True).start()
            yield port, heard
            for listener in (four, six):
                listener.shutdown(socket.SHUT_RDWR)


def spellings(port: int, secret: Path) -> list[str]:
    """Ways to name this machine, its metadata service, or a file."""
    hosts = (
        "127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.1", "127.0.1", "2130706433", "0x7f000001",
        "0177.0.0.1", "0x7f.0.0.1", "0", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]",
        "127.0.0.1.nip.io", "①②⑦.⓪.⓪.①", "127。0。0。1", "user@127.0.0.1", "example.com@127.0.0.1",
    )  # fmt: skip
    found = [f"http://{host}:{port}/a.png" for host in hosts]
    found += [
        f"https://127.0.0.1:{port}/", f"HTTP://127.0.0.1:{port}/", f"http:/127.0.0.1:{port}/", f"http:127.0.0.1:{port}",
        f"//127.0.0.1:{port}/", f"http://127.0.0.1:{port}\\@example.com/", f"http://example.com\\@127.0.0.1:{port}/",
        f"http://example.com#@127.0.0.1:{port}/", f" http://127.0.0.1:{port}/", f"http://127.0.0.1:{port}/\r\nX: y",
        f"ftp://127.0.0.1:{port}/", f"gopher://127.0.0.1:{port}/_x", f"dict://127.0.0.1:{port}/", f"ws://127.0.0.1:{port}",
        "http://169.254.169.254/latest/meta-data/", f"url:http://127.0.0.1:{port}/", f"jar:http://127.0.0.1:{port}!/",
    ]  # fmt: skip
    found += [
        str(secret), f"file://{secret}", f"file:{secret}", f"FILE://{secret}", f"file://localhost{secret}",
        f"../../../../../../../..{secret}", f"{secret}\u0000.png", f"file:///proc/self/cwd/../../..{secret}",
        "file:///proc/self/environ", "/etc/passwd", f"data:text/plain,{secret}", f"local:{secret}",
    ]  # fmt: skip
    return found


def requests(address: str) -> list[tuple[str, Any]]:
    """Path and body for every place where an address could be meant."""
    return [*_media(address), *_others(address)]


def _media(address: str) -> list[tuple[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": address}}
    parts: list[dict[str, Any]] = [
        image, {"type": "image_url", "image_url": address}, {"type": "video_url", "video_url": {"url": address}},
        {"type": "audio_url", "audio_url": {"url": address}}, {"type": "input_audio", "input_audio": {"data": address}},
        {"type": "file", "file": {"file_id": address, "file_data": address}}, {"type": "image", "image": address},
    ]  # fmt: skip
    talks = [[{"role": "user", "content": [{"type": "text", "text": "x"}, part]}] for part in parts]
    found: list[tuple[str, Any]] = [("/v1/chat/completions", {"messages": talk, "max_tokens": 1}) for talk in talks]
    found += [(path, {"messages": talks[0]}) for path in ("/render", "/tokenize", "/v1/tokenize")]
    source = {"type": "url", "url": address}
    for kind in ("image", "document"):
        talk = [{"role": "user", "content": [{"type": kind, "source": source}]}]
        found.append(("/v1/messages", {"model": "default", "max_tokens": 1, "messages": talk}))
    for part in ({"type": "input_image", "image_url": address}, {"type": "input_file", "file_url": address}):
        found.append(("/v1/responses", {"input": [{"role": "user", "content": [part]}]}))
    return [
        *found,
        ("/api/chat", {"model": "default", "messages": [{"role": "user", "content": "x", "images": [address]}]}),
        ("/api/generate", {"model": "default", "prompt": "x", "images": [address]}),
        ("/generate", {"text": "x", "image_data": address}),
        ("/generate", {"text": "x", "video_data": [address], "audio_data": address}),
        ("/v1/embeddings", {"model": "default", "input": [{"image": address}]}),
        ("/v1/rerank", {"query": "x", "documents": [{"image": address}]}),
    ]


def _others(address: str) -> list[tuple[str, Any]]:
    plain = [{"role": "user", "content": "x"}]
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"$ref": address, "$schema": address}}}
    tool = {"type": "mcp", "server_url": address, "server_label": "x"}
    server = {"type": "url", "url": address, "name": "x"}
    return [
        ("/v1/responses", {"input": "x", "tools": [tool]}),
        ("/v1/messages", {"model": "default", "max_tokens": 1, "messages": plain, "mcp_servers": [server]}),
        ("/v1/chat/completions", {"messages": plain, "max_tokens": 1, "response_format": schema}),
        ("/v1/chat/completions", {"messages": plain, "max_tokens": 1, "chat_template": address}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 1, "model": address}),
        ("/generate", {"text": "x", "lora_path": address}),
        ("/generate", {"text": "x", "sampling_params": {"max_new_tokens": 1, "json_schema": {"$ref": address}}}),
        ("/api/pull", {"model": address}),
        ("/api/push", {"model": address}),
        ("/api/create", {"model": "x", "from": address}),
        ("/api/show", {"model": address}),
        ("/update_weights_from_disk", {"model_path": address}),
        ("/load_lora_adapter", {"lora_name": "x", "lora_path": address}),
        ("/start_profile", {"output_dir": address}),
    ]


async def attack(port: int, addresses: list[str]) -> tuple[int, list[str], list[str]]:
    """How many requests; what was wrong with answers; answers that show what nobody may read."""
    count, faults, shown = 0, [], []
    connection = Connection(port)
    keyed = (("Content-Type", "application/json"), ("Authorization", "Bearer k"))
    for address in addresses:
        for path, body in requests(address):
            reply = await connection.call("POST", path, body, headers=keyed)
            count += 1
            fault = wrong_with(path, reply)
            if fault is not None:
                faults.append(f"{path} {json.dumps(body)[:300]}: {fault}")
            if SECRET.encode() in reply.body or b"root:" in reply.body:
                shown.append(f"{path} {json.dumps(body)[:300]}")
    connection.close()
    return count, faults, shown


def test_no_address_is_followed(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "file"
    secret.write_text(SECRET)
    with ears() as (port, heard):
        with socket.create_connection(("127.0.0.1", port)):
            pass
        addresses = spellings(port, secret)
        count, faults, shown = asyncio.run(attack(server.port, addresses))
    figure(
        ATTACK,
        "spellings, requests, connections, files shown",
        f"{len(addresses)}, {count}, {len(heard) - 1}, {len(shown)}",
    )
    assert len(addresses) >= 40
    assert len(heard) == 1, heard  # the one that shows that the ears hear
    assert not shown, shown[:5]
    assert not faults, faults[:5]


def test_paths_lead_to_routes_only(server: Server) -> None:
    """What a path spells is a route or nothing."""
    tries = [
        "/../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/playground/../../etc/passwd",
        "/playground/..%2f..%2fapp.py", "/playground/%2e%2e/app.py", "/playground//etc/passwd",
        "/playground/%00", "/playground/..\\..\\app.py", "/static/main.js", "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/models/../../etc/passwd", "/v1/responses/../../etc/passwd", "/api/blobs/../../etc/passwd",
        "/v1/requests/..%2f..%2fetc%2fpasswd", "//etc/passwd", "/.env", "/.git/config", "/openapi.json/../.env",
    ]  # fmt: skip

    async def ask() -> list[tuple[str, int, bytes]]:
        found = []
        for path in tries:
            connection = Connection(server.port)
            reply = await connection.call("GET", path)
            connection.close()
            found.append((path, reply.status, reply.body))
        return found

    answers = asyncio.run(ask())
    figure(ATTACK, "paths", len(answers))
    for path, status, body in answers:
        assert status in (400, 404, 405) and b"root:" not in body and b"import" not in body, (path, status, body[:200])
