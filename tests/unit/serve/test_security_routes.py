"""Nobody gets through without the key, whatever the spelling; pages of other sites and odd headers are kept out."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from served import start

from sglite.runtime.serve.app import all_routes, create_app
from sglite.runtime.serve.auth import Keys
from sglite.runtime.serve.options import ServeOptions
from sglite.runtime.serve.programs import Programs
from sglite.runtime.serve.responses_api.routes import Responses
from sglite.runtime.serve.security import Guard, is_loopback
from sglite.runtime.serve.serving import Access, Route, Serving

KEY = "sk-ключ"
BAD_KEYS: list[dict[str, bytes]] = [
    {},
    {"Authorization": b"Bearer wrong"},
    {"Authorization": b"Bearer"},
    {"Authorization": b"Basic c2st"},
    {"Authorization": KEY.encode()},
    {"Authorization": b"Bearer \xff\xfe"},
    {"Authorization": "Bearer sk-клюЧ".encode()},
    {"Authorization": b"Bearer " + b"a" * 20_000},
    {"x-api-key": b"wrong"},
    {"x-api-key": b""},
    {"cookie": b"api_key=" + KEY.encode()},
]
GOOD = {"Authorization": f"Bearer {KEY}".encode()}


def served(engine: Any, **options: Any) -> Iterator[str]:
    server, url, thread = start(engine, **options)
    yield url
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def keyed(engine: Any) -> Iterator[str]:
    yield from served(engine, api_key=KEY)


@pytest.fixture(scope="module")
def keyless(engine: Any) -> Iterator[str]:
    yield from served(engine)


@pytest.fixture(scope="module")
def crossed(engine: Any) -> Iterator[str]:
    yield from served(engine, api_key=KEY, cors_origins=("https://app.example", "https://two.example/"))


@pytest.fixture(scope="module")
def routes(engine: Any) -> list[Route]:
    serving = Serving.of(engine, ServeOptions())
    return all_routes(serving, Programs(engine, serving.in_flight), Responses(serving))


def path_of(route: Route) -> str:
    return "/".join("x" if part.startswith("{") else part for part in route.path.split("/"))


def asked(app: Any, method: str, path: str, headers: dict[str, bytes]) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer, without a socket between: for what is asked thousands of times."""
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        said.append(message)

    given = [(name.lower().encode(), value) for name, value in headers.items()]
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"localhost"), *given], "http_version": "1.1", "scheme": "http",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in said[0]["headers"]}
    return said[0]["status"], found, b"".join(message.get("body", b"") for message in said[1:])


def test_every_route_is_closed_to_every_wrong_key(engine: Any, routes: list[Route]) -> None:
    app = create_app(engine, ServeOptions(api_key=KEY))
    extra = [Route(path, ("GET",), routes[0].handler) for path in ("/docs", "/openapi.json", "/nowhere", "/v1/nope")]
    closed = [route for route in [*routes, *extra] if route.access is not Access.OPEN]
    for route in closed:
        for method in route.methods:
            for headers in BAD_KEYS:
                status, said, body = asked(app, method, path_of(route), headers)
                assert status == 401 and said["www-authenticate"] == "Bearer", (route.path, headers)
                assert "API key" in json.dumps(json.loads(body)) and KEY.encode() not in body


@pytest.mark.parametrize("headers", BAD_KEYS)
def test_a_wrong_key_is_a_401_on_the_wire_too(keyed: str, headers: dict[str, bytes]) -> None:
    with httpx.Client(base_url=keyed, headers=headers) as http:
        for method, path in (("GET", "/v1/models"), ("POST", "/generate"), ("GET", "/docs"), ("PUT", "/nowhere")):
            assert http.request(method, path).status_code == 401


def test_what_is_open_is_a_short_list(routes: list[Route]) -> None:
    found = {route.path for route in routes if route.access is Access.OPEN}
    assert {"/health", "/ping", "/ready"} <= found
    allowed = {"/", "/health", "/ready", "/ping", "/v1/health", "/metrics"}
    assert {path for path in found if not path.startswith("/playground")} <= allowed


def test_an_error_has_the_shape_that_the_routes_clients_know(keyed: str) -> None:
    said = {path: httpx.post(keyed + path).json() for path in ("/v1/chat/completions", "/v1/messages", "/api/chat")}
    error = said["/v1/chat/completions"]["error"]
    assert error["type"] == "authentication_error" and {"message", "param", "code"} <= error.keys()
    assert said["/v1/messages"]["type"] == "error" and said["/v1/messages"]["error"]["type"] == "authentication_error"
    assert isinstance(said["/api/chat"]["error"], str)


def test_admin_routes_are_closed_without_an_admin_key_to_whoever_has_the_other(
    keyed: str, keyless: str, routes: list[Route]
) -> None:
    admin = [route for route in routes if route.access is Access.ADMIN]
    assert len(admin) >= 10
    for url, headers in ((keyed, GOOD), (keyless, {})):
        with httpx.Client(base_url=url, headers=headers) as http:
            for route in admin:
                for method in route.methods:
                    response = http.request(method, route.path, content=b"{}")
                    assert response.status_code == 403 and response.json()["error"]["code"] == "admin_closed"


@pytest.mark.parametrize(
    "path",
    [
        "/pause_generation%0A", "/pause_generation%0a", "//pause_generation", "/./pause_generation",
        "/v1/../pause_generation", "/pause_generation/", "/pause_generation%00", "/%70ause_generation",
        "/pause_generation;x", "/PAUSE_GENERATION", "/pause_generation?x=/health", "/health/../pause_generation",
        "/health%2f..%2fpause_generation", "/pause_generation%20",
    ],
)  # fmt: skip
def test_no_spelling_of_a_path_opens_another_route(keyed: str, path: str) -> None:
    """A path that the router takes for an admin route needs the admin's key, however it is written."""
    for headers, codes in ((GOOD, (b"403", b"404", b"307")), ({}, (b"401",))):
        lines = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in headers.items())
        with socket.create_connection(("127.0.0.1", int(keyed.rpartition(":")[2]))) as raw:
            raw.sendall(b"POST " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n")
            raw.sendall(lines + b"\r\n")
            status = raw.recv(100).split()[1]
        assert status in codes


def test_access_is_that_of_the_route_that_answers() -> None:
    async def nothing(request: Any) -> Any:
        return None

    routes = [
        Route("/a/{name}", ("GET",), nothing, Access.ADMIN),
        Route("/a/{name}", ("POST",), nothing, Access.NORMAL),
        Route("/open", ("GET",), nothing, Access.OPEN),
        Route("/deep/{rest:path}", ("GET",), nothing, Access.CAREFUL),
    ]
    keys = Keys(None, "k", None, routes)  # type: ignore[arg-type]
    assert keys._access("/a/b", "GET") is Access.ADMIN
    assert keys._access("/a/b", "POST") is Access.NORMAL
    assert keys._access("/a/b\n", "GET") is Access.ADMIN
    assert keys._access("/a/b", "PUT") is Access.ADMIN
    assert keys._access("/open", "GET") is Access.OPEN
    assert keys._access("/open/x", "GET") is Access.NORMAL
    assert keys._access("/deep/a/b", "GET") is Access.CAREFUL


@pytest.mark.parametrize("headers", [GOOD, {"x-api-key": KEY.encode()}, {"Authorization": b"bearer  " + KEY.encode()}])
def test_the_right_key_opens(keyed: str, headers: dict[str, bytes]) -> None:
    assert httpx.get(f"{keyed}/model_info", headers=headers).status_code == 200


# --- pages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host, status",
    [
        ("127.0.0.1:1", 200), ("localhost", 200), ("LocalHost.:80", 200), ("[::1]:80", 200), ("a.localhost:8", 200),
        ("10.0.0.7", 200), ("evil.example", 403), ("evil.example:80", 403), ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403), ("[evil.example]", 403), ("0x7f.1.evil", 403), ("user@localhost", 403),
    ],
)  # fmt: skip
def test_a_loopback_server_without_a_key_answers_to_this_machines_names(keyless: str, host: str, status: int) -> None:
    for path in ("/health", "/model_info", "/nowhere"):
        response = httpx.get(keyless + path, headers={"Host": host})
        assert response.status_code == (404 if (status, path) == (200, "/nowhere") else status), host
        if status == 403:
            assert response.json()["error"]["code"] == "foreign_host"


def test_with_a_key_the_name_does_not_matter(keyed: str) -> None:
    assert httpx.get(keyed + "/health", headers={"Host": "models.example"}).status_code == 200
    headers = {**GOOD, "Host": b"models.example", "Origin": b"https://evil.example"}
    assert httpx.get(keyed + "/model_info", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "file://", "http://127.0.0.1"]
)
def test_a_foreign_page_may_not_call_a_server_without_a_key(keyless: str, origin: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        response = httpx.request(method, keyless + "/flush_cache", headers={"Origin": origin})
        assert response.status_code == 403 and response.json()["error"]["code"] == "foreign_origin"
        assert "access-control-allow-origin" not in response.headers


def test_the_servers_own_page_may_call(keyless: str) -> None:
    assert httpx.get(keyless + "/model_info", headers={"Origin": keyless}).status_code == 200
    proxied = {"Host": "localhost:9", "X-Forwarded-Host": "models.example", "Origin": "https://models.example"}
    assert httpx.get(keyless + "/model_info", headers=proxied).status_code == 200


@pytest.mark.parametrize(
    "host, loopback", [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_which_addresses_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    guard = Guard(None, ServeOptions(host=host))  # type: ignore[arg-type]
    scope = {"type": "http", "path": "/", "query_string": b"", "headers": [(b"host", b"models.example")]}
    assert (guard._refusal(scope) is not None) is loopback


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


def test_cors_is_closed_by_default(keyed: str) -> None:
    headers = {**PREFLIGHT, "Origin": "https://app.example"}
    response = httpx.options(keyed + "/generate", headers=headers)
    assert response.status_code == 401 and "access-control-allow-origin" not in response.headers
    response = httpx.get(keyed + "/model_info", headers={**GOOD, "Origin": b"https://app.example"})
    assert response.status_code == 200 and "access-control-allow-origin" not in response.headers


def test_an_allowed_page_may_ask_without_and_call_with_the_key(crossed: str) -> None:
    for origin in ("https://app.example", "https://two.example"):
        response = httpx.options(crossed + "/generate", headers={**PREFLIGHT, "Origin": origin})
        assert response.status_code == 200 and response.headers["access-control-allow-origin"] == origin
        assert "authorization" in response.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in response.headers
        for headers, status in ((GOOD, 200), ({}, 401)):
            response = httpx.get(crossed + "/model_info", headers={**headers, "Origin": origin.encode()})
            assert response.status_code == status and response.headers["access-control-allow-origin"] == origin
            assert "X-Sglite-Ignored" in response.headers["access-control-expose-headers"]
    response = httpx.options(crossed + "/generate", headers={**PREFLIGHT, "Origin": "https://evil.example"})
    assert response.status_code == 400 and "access-control-allow-origin" not in response.headers


def test_a_wildcard_goes_with_no_credentials(engine: Any) -> None:
    for url in served(engine, cors_origins=("*",)):
        response = httpx.options(url + "/generate", headers={**PREFLIGHT, "Origin": "https://any.example"})
        assert response.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers
        assert httpx.get(url + "/model_info", headers={"Origin": "https://any.example"}).status_code == 200


# --- headers, paths, description ------------------------------------------------------------------------------


def test_headers_are_bounded(keyed: str) -> None:
    for headers in ({"Authorization": "Bearer " + "a" * 40_000}, {f"x-{i}": "y" * 100 for i in range(400)}):
        response = httpx.get(keyed + "/model_info", headers=headers)
        assert response.status_code == 431 and response.json()["error"]["code"] == "headers_too_large"
    assert httpx.get(keyed + "/model_info?" + "a" * 40_000).status_code == 431
    huge = httpx.get(keyed + "/model_info", headers={"Authorization": "Bearer " + "a" * 100_000})
    assert huge.status_code in (400, 431)


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd",
     "/playground/../../../etc/passwd", "/playground/%2e%2e/app.py", "/docs/..%5c..%5cetc", "/static/main.js%00"],
)  # fmt: skip
def test_no_path_reaches_a_file(keyless: str, path: str) -> None:
    with socket.create_connection(("127.0.0.1", int(keyless.rpartition(":")[2]))) as raw:
        raw.sendall(b"GET " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        said = b"".join(iter(lambda: raw.recv(65536), b""))
    assert said.split()[1] == b"404" and b"root:" not in said and b"import" not in said


def test_answers_say_what_a_browser_may_do_with_them(keyless: str) -> None:
    for path in ("/model_info", "/health", "/nowhere", "/docs"):
        assert httpx.get(keyless + path).headers["x-content-type-options"] == "nosniff"
    policy = httpx.get(keyless + "/docs").headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy and "default-src 'none'" in policy
    assert "content-security-policy" not in httpx.get(keyless + "/model_info").headers
    page = httpx.get(keyless + "/", headers={"Accept": "text/html"})
    assert "script-src 'self'" in page.headers["content-security-policy"]


def test_the_description_lists_every_route(keyless: str, routes: list[Route]) -> None:
    said = httpx.get(keyless + "/openapi.json").json()
    names = [operation["operationId"] for path in said["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    for route in routes:
        for method in set(route.methods) - {"HEAD"}:
            operation = said["paths"][route.path.replace(":path", "")][method.lower()]
            assert operation["x-access"] == route.access.value and "default" in operation["responses"]
            assert ("requestBody" in operation) == (method in ("POST", "PUT"))
            if route.body is not None and method in ("POST", "PUT"):
                assert operation["requestBody"]["content"]["application/json"]["schema"] == route.body
            declared = {one["name"] for one in operation.get("parameters", [])}
            assert declared == {part.strip("{}").partition(":")[0] for part in route.path.split("/") if "{" in part}
