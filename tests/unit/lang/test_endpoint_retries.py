"""A server that is busy, or closes a connection unanswered, is asked again a few times; one that refuses is not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.backends.endpoint_program import ProgramStream
from sglite.lang.backends.retrying import RetryPolicy

QUICK = RetryPolicy(max_tries=3, first_s=0.01, max_s=0.02, patience_s=2.0)


class Moody:
    """Answers with each of ``moods`` in turn, then well: a status, or "hang up", or "break off" inside the answer."""

    def __init__(self) -> None:
        self.moods: list[Any] = []
        self.bodies: list[dict[str, Any]] = []
        self.program_version: int | None = None
        moody = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.answer(200, {"model_path": "m", "program_version": moody.program_version})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                moody.bodies.append(body)
                mood = moody.moods.pop(0) if moody.moods else 200
                if mood == "hang up":
                    self.close_connection = True
                elif mood == "break off":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"text": "half')
                    self.close_connection = True
                elif mood != 200:
                    self.answer(mood, {"error": {"message": f"mood {mood}"}}, {"Retry-After": "0.05"})
                elif "nodes" in body:
                    done = [{"node": node["id"], "done": True, **output()} for node in body["nodes"] if "id" in node]
                    self.answer(200, [*done, {"end": True}])
                else:
                    self.answer(200, {"text": "ok", "meta_info": {}})

            def answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
                lines = value if isinstance(value, list) else [value]
                data = "".join(json.dumps(line) + "\n" for line in lines).encode()
                self.send_response(status)
                for name, text in (headers or {}).items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"


def output() -> dict[str, Any]:
    return {"outputs": [{"text": "ok", "meta_info": {"finish_reason": {"type": "stop"}}}]}


@pytest.fixture(params=["plain", "program"])
def moody(request: Any) -> Iterator[Moody]:
    server = Moody()
    server.program_version = 1 if request.param == "program" else None
    yield server
    server.httpd.shutdown()


@sgl.function
def once(s: Any) -> None:
    s += "p" + sgl.gen("v", max_tokens=3)


def run(moody: Moody) -> Any:
    state = once.run(backend=sgl.RuntimeEndpoint(moody.url, retries=QUICK))
    state.run.finished.result(10)
    return state


def generating(moody: Moody) -> list[dict[str, Any]]:
    """Requests for text."""
    return [b for b in moody.bodies if "text" in b or any(n["op"] == "generate" for n in b.get("nodes", []))]


@pytest.mark.parametrize("moods", [[429], [503, 503], ["hang up"], ["hang up", 429]])
def test_what_passes_is_waited_for(moody: Moody, moods: list[Any]) -> None:
    moody.moods = list(moods)
    assert run(moody)["v"] == "ok"
    bodies = generating(moody)
    assert len(bodies) == len(moods) + 1 and all(body == bodies[0] for body in bodies)


@pytest.mark.parametrize("moods, said", [([503] * 9, "HTTP 503: mood 503"), (["hang up"] * 9, "is the server running")])
def test_the_number_of_tries_is_bounded(moody: Moody, moods: list[Any], said: str) -> None:
    moody.moods = list(moods)
    assert said in str(run(moody).error())
    assert len(generating(moody)) == 3


@pytest.mark.parametrize("mood", [400, 401, 404, 410, 500])
def test_a_refusal_is_final(moody: Moody, mood: int) -> None:
    moody.moods = [mood]
    assert f"HTTP {mood}: mood {mood}" in str(run(moody).error())
    assert len(generating(moody)) == 1


def test_an_answer_that_breaks_off_is_not_asked_for_again(moody: Moody) -> None:
    moody.moods = ["break off"]
    assert run(moody).error() is not None
    assert len(generating(moody)) == 1


def test_the_extension_is_used_where_the_server_says_so(moody: Moody) -> None:
    stream = sgl.RuntimeEndpoint(moody.url).open("p")
    assert isinstance(stream, ProgramStream) == (moody.program_version == 1)
    assert not isinstance(sgl.RuntimeEndpoint(moody.url, program=False).open("p"), ProgramStream)
