"""Every route with every wrong key: refused before anything is looked at, in the shape of the route's API."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from faults.scale import figure
from faults.servers import Server
from faults.shapes import is_error
from faults.wire import Connection

ATTACK = "keys"
KEY, ADMIN = "the key itself", "the admin's key"
Headers = list[tuple[str, str]]


def wrong_keys() -> dict[str, Headers]:
    """What may come in place of a key."""
    basic = base64.b64encode(f"user:{KEY}".encode()).decode()
    return {
        "none": [], "wrong": [("Authorization", "Bearer wrong")], "basic": [("Authorization", f"Basic {basic}")],
        "empty": [("Authorization", "")], "empty bearer": [("Authorization", "Bearer ")],
        "bare": [("Authorization", KEY)],
        "non-ASCII": [("Authorization", "Bearer schlüssel-ключ")], "raw bytes": [("x-api-key", "\udcff\udcfe\udc80")],
        "100 kB": [("Authorization", "Bearer " + "k" * 100_000)],
        "30 kB": [("Authorization", "Bearer " + "k" * 30_000)],
        "prefix": [("Authorization", f"Bearer {KEY[:-1]}")], "longer": [("Authorization", f"Bearer {KEY}x")],
        "case": [("Authorization", f"Bearer {KEY.upper()}")], "nul": [("x-api-key", KEY + " x")],
        "two": [("Authorization", "Bearer a"), ("Authorization", "Bearer b")], "other header": [("api-key", KEY)],
        "cookie": [("Cookie", f"api_key={KEY}")], "token": [("Authorization", f"Token {KEY}")],
    }  # fmt: skip


def routes(server: Server, key: str | None) -> list[tuple[str, str, str]]:
    """(method, path, access) of every route, and of those that are not in the description."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    paths = server.http.get("/openapi.json", headers=headers).json()["paths"]
    found = [
        (
            method.upper(),
            path.replace("{name}", "x").replace("{digest}", "x").replace("{request_id}", "x"),
            route["x-access"],
        )
        for path, methods in paths.items()
        for method, route in methods.items()
    ]
    extra = ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/nowhere", "/v1/nowhere", "/v1//chat/completions")
    return found + [("GET", path, "normal") for path in extra]


async def ask(port: int, method: str, path: str, headers: Headers, query: str = "") -> Any:
    """One request with an empty object."""
    connection = Connection(port)
    body = {} if method in ("POST", "PUT") else None
    reply = await connection.call(method, path + query, body, headers=[("Content-Type", "application/json"), *headers])
    connection.close()
    return reply


def test_no_route_opens_to_a_wrong_key(folder: Path) -> None:
    server = Server(folder, "--api-key", KEY, "--admin-key", ADMIN, "--context-length", "256", watch=False)
    try:
        found = routes(server, KEY)
        closed = [(method, path) for method, path, access in found if access != "open"]

        async def attack() -> list[tuple[str, str, str, Any]]:
            answers = []
            for name, headers in wrong_keys().items():
                for method, path in closed:
                    answers.append((name, method, path, await ask(server.port, method, path, headers)))
            for method, path in closed:
                answers.append(
                    ("in the query", method, path, await ask(server.port, method, path, [], f"?api_key={quote(KEY)}"))
                )
            return answers

        answers = asyncio.run(attack())
        statuses = Counter(reply.status for _, _, _, reply in answers)
        figure(ATTACK, "routes, wrong keys, statuses", f"{len(closed)}, {len(wrong_keys()) + 1}, {dict(statuses)}")
        for name, method, path, reply in answers:
            allowed = (431, 400) if name == "100 kB" else (401, 400) if name == "raw bytes" else (401,)
            assert reply.status in allowed, (name, method, path, reply.status, reply.body[:200])
            if method != "HEAD" and reply.status == 401:
                assert is_error(path, reply.json()), (name, method, path, reply.body[:200])
        admin = [(method, path) for method, path, access in found if access == "admin"]
        with_key = [asyncio.run(ask(server.port, *one, [("x-api-key", KEY)])).status for one in admin]
        assert set(with_key) == {401} and len(admin) > 20
        good = asyncio.run(ask(server.port, "GET", "/v1/models", [("Authorization", f"bearer {KEY}")]))
        assert good.status == 200
        opened = [(method, path) for method, path, access in found if access == "open"]
        assert {asyncio.run(ask(server.port, *one, [])).status for one in opened} == {200}
        figure(ATTACK, "open routes", sorted({path for _, path in opened}))
    finally:
        server.close()


def test_admin_routes_are_closed_without_an_admin_key(folder: Path) -> None:
    for flags, key in (((), None), (("--api-key", KEY), KEY)):
        server = Server(folder, *flags, "--context-length", "256", watch=False)
        try:
            admin = [(method, path) for method, path, access in routes(server, key) if access == "admin"]
            given: Headers = [] if key is None else [("x-api-key", key)]
            for more in ([], [("Authorization", "Bearer None")], [("x-api-key", "")]):
                for method, path in admin:
                    reply = asyncio.run(ask(server.port, method, path, [*given, *more]))
                    assert reply.status == 403 and is_error(path, reply.json()), (
                        method,
                        path,
                        reply.status,
                        reply.body,
                    )
            figure(ATTACK, f"admin routes, {'a key' if key else 'no key'} and no admin key", f"{len(admin)} are 403")
        finally:
            server.close()
