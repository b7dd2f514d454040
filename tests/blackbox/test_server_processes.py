"""A server of two processes from outside: what it says of itself, how it stops, what happens when a part is killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted_server import Started, children, is_alive, settles
from sequence_engines import text_folder

STEP = ("--step-seconds", "0.01")
LONG = 480


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Started]:
    """One that no test ends."""
    server = Started(folder, *STEP)
    yield server
    server.close()


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Started]]:
    """Starts servers that are ended with the test."""
    with contextlib.ExitStack() as stack:

        def start(*words: str, **options: Any) -> Started:
            server = Started(folder, *words, **options)
            stack.callback(server.close)
            return server

        yield start


class Call(threading.Thread):
    """A request under way. ``status`` and ``text``: the answer, or "" and what broke."""

    def __init__(self, server: Started, tokens: int = LONG, **fields: Any) -> None:
        super().__init__(daemon=True)
        self.server, self.tokens, self.fields = server, tokens, fields
        self.status, self.text, self.seconds = 0, "", 0.0
        self.start()

    def run(self) -> None:
        start = time.monotonic()
        try:
            response = self.server.generate(self.tokens, **self.fields)
            self.status, self.text = response.status_code, response.text
        except httpx.HTTPError as error:
            self.text = repr(error)
        self.seconds = time.monotonic() - start

    def events(self) -> list[Any]:
        """Of a stream."""
        lines = [line[6:] for line in self.text.split("\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


def running(server: Started) -> int:
    return int(server.http.get("/server_info").json()["num_running"])


# --- what it says of itself -------------------------------------------------------------------------------------------


def test_health_is_quick_whatever_the_engine_does(server: Started) -> None:
    """Also on a connection that is kept, where Nagle's algorithm would cost 40 ms, and while the engine is stopped."""
    pid, taken = server.engine_pid, []
    os.kill(pid, signal.SIGSTOP)
    try:
        for path in ("/health", "/v1/health", "/ping", "/ready") * 3:
            start = time.perf_counter()
            response = server.http.get(path)
            assert (response.status_code, response.json()) == (200, {"status": "ok"})
            taken.append(time.perf_counter() - start)
        assert statistics.median(taken) < 0.03
    finally:
        os.kill(pid, signal.SIGCONT)
    assert server.http.get("/health_generate").json() == {"status": "ok"}


def test_who_goes_away_frees_their_request_within_two_steps(server: Started) -> None:
    """Across the processes too: of a stream and of one that waits for the whole."""
    for stream in (True, False):
        steps = server.http.get("/server_info").json()["num_steps"]
        body = {"input_ids": [41, 42], "stream": stream, "sampling_params": {"max_new_tokens": LONG}}
        body["sampling_params"]["ignore_eos"] = True  # type: ignore[index]
        data = json.dumps(body).encode()
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
            head = f"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode() + data)
            assert settles(lambda: running(server) == 1)
        gone = server.http.get("/server_info").json()["num_steps"]
        assert settles(lambda: running(server) == 0, 1)
        info = server.http.get("/server_info").json()
        # The connection's end takes its way through two event loops; steps go on meanwhile, ten milliseconds each.
        assert info["num_steps"] - gone < 30 and info["num_steps"] - steps < LONG
        assert info["num_open_requests"] == 0 and info["pages"]["held"] == 0


def test_a_constraint_that_cannot_be_is_refused_before_the_stream_begins(server: Started) -> None:
    for stream in (True, False):
        body = {"input_ids": [41], "stream": stream, "sampling_params": {"regex": "(("}}
        response = server.http.post("/generate", json=body)
        assert response.status_code == 400 and "regex" in response.json()["error"]["message"]


def test_a_request_whose_head_does_not_come_is_dropped(server: Started) -> None:
    """Others are answered meanwhile; a long head is refused and not kept."""
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    with socket.create_connection(address) as connection:
        connection.settimeout(5)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 80_000)
        answer = connection.recv(65536).decode()
        assert answer.startswith("HTTP/1.1 431 ") and '"error":{"message":"the request\'s head has more than' in answer
    with socket.create_connection(address) as connection:
        connection.settimeout(5)
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = connection.recv(65536).decode()
        assert answer.startswith("HTTP/1.1 400 ") and '"this is no valid HTTP request"' in answer
    assert server.http.get("/health").status_code == 200


@pytest.mark.slow
def test_idle_sockets_hinder_nobody_and_are_closed(server: Started) -> None:
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    sockets = [socket.create_connection(address) for _ in range(300)]
    try:
        for i, one in enumerate(sockets):
            one.sendall(b"POST /generate HTTP/1.1\r\nHo"[: i % 29])
        start = time.monotonic()
        assert server.generate(3).status_code == 200 and time.monotonic() - start < 1
        time.sleep(3)
        sockets[7].sendall(b"st")
        for one in sockets:
            one.settimeout(max(0.1, start + 12 - time.monotonic()))
            assert one.recv(10) == b""
        assert time.monotonic() - start > 9
    finally:
        for one in sockets:
            one.close()


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_what_has_begun_is_finished_and_what_comes_is_sent_elsewhere(start: Callable[..., Started]) -> None:
    server = start(*STEP, drain_s=20)
    calls = [Call(server, 150, input_ids=[41, 40 + i], stream=i % 2 == 0) for i in range(6)]
    assert settles(lambda: running(server) == 6)
    pid = server.engine_pid
    server.signal(signal.SIGTERM)
    assert settles(lambda: server.http.get("/health").status_code == 503, 1)
    late = server.generate(1)
    assert late.status_code == 503 and late.headers["Retry-After"] == "1"
    assert late.json()["error"]["code"] == "draining"
    assert server.http.get("/ready").status_code == 503 and server.http.get("/metrics").status_code == 200
    for call in calls:
        call.join(20)
        assert call.status == 200, call.text
        last = call.events()[-2] if call.fields["stream"] else json.loads(call.text)
        assert last["meta_info"]["completion_tokens"] == 150
    assert server.process.wait(10) == 0 and not is_alive(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_second_signal_ends_everything_at_once(start: Callable[..., Started], number: int) -> None:
    server = start(*STEP)
    call = Call(server)
    assert settles(lambda: running(server) == 1)
    pid = server.engine_pid
    server.signal(number)
    assert settles(lambda: server.http.get("/health").status_code == 503, 1)
    server.signal(number)
    began = time.monotonic()
    assert server.process.wait(5) == 128 + number and time.monotonic() - began < 1
    assert settles(lambda: not is_alive(pid), 1)
    call.join(5)


@pytest.mark.slow
def test_what_takes_too_long_is_given_its_end(start: Callable[..., Started]) -> None:
    server = start(*STEP, drain_s=0.3)
    whole, stream = Call(server), Call(server, stream=True)
    assert settles(lambda: running(server) == 2)
    server.signal(signal.SIGTERM)
    began = time.monotonic()
    assert server.process.wait(10) == 0 and time.monotonic() - began < 4
    whole.join(5)
    stream.join(5)
    assert json.loads(whole.text)["meta_info"]["finish_reason"]["message"] == "the server is stopping"
    assert stream.events()[-2]["meta_info"]["finish_reason"]["type"] == "abort" and stream.events()[-1] == "[DONE]"


@pytest.mark.slow
def test_an_idle_server_stops_at_once(start: Callable[..., Started]) -> None:
    server = start()
    server.http.get("/health")  # a connection that is kept open
    server.signal(signal.SIGTERM)
    began = time.monotonic()
    assert server.process.wait(10) == 0 and time.monotonic() - began < 2


# --- being killed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 6))])
def test_a_killed_engine_is_told_of_and_started_again(start: Callable[..., Started], seed: int) -> None:
    rng = random.Random(seed)
    server = start(*STEP, restart_engine=True)
    calls = [Call(server, input_ids=[41, 40 + i], stream=i % 2 == 0) for i in range(12)]
    time.sleep(rng.random() * 0.6)
    pid = server.engine_pid
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    assert settles(lambda: server.http.get("/health").status_code == 503, 2)
    for call in calls:
        call.join(5)
    assert time.monotonic() - killed < 2
    for call in calls:
        if call.status == 200:
            events = [event for event in call.events() if isinstance(event, dict)]
            ends = [event for event in events if "error" in event or event["meta_info"]["finish_reason"] is not None]
            assert len(ends) == 1 and ends[0] is events[-1] and ends[0]["error"]["code"] == "engine_dead"
        else:
            assert call.status == 503 and json.loads(call.text)["error"]["code"] == "engine_dead", call.text
    assert settles(lambda: server.http.get("/health").status_code == 200, 10)
    assert server.generate(5).json()["meta_info"]["completion_tokens"] == 5
    assert server.engine_pid != pid


@pytest.mark.slow
def test_without_restarts_a_killed_engine_is_a_503_that_says_so(start: Callable[..., Started]) -> None:
    server = start(*STEP)
    os.kill(server.engine_pid, signal.SIGKILL)
    assert settles(lambda: server.http.get("/health").status_code == 503, 2)
    assert server.http.get("/health").json()["status"] == "dead"
    for response in (server.generate(1), server.http.get("/server_info"), server.http.get("/health_generate")):
        assert response.status_code == 503 and "SIGKILL" in response.json()["error"]["message"]
    server.signal(signal.SIGTERM)
    assert server.process.wait(10) == 0


@pytest.mark.slow
def test_a_killed_server_leaves_no_process(start: Callable[..., Started]) -> None:
    server = start(*STEP)
    Call(server)
    pids = children(server.process.pid)
    assert len(pids) == 1
    server.signal(signal.SIGKILL)
    assert settles(lambda: not any(map(is_alive, pids)), 2)


# --- starting ---------------------------------------------------------------------------------------------------------


def refusal(*words: str) -> str:
    """What ``sglite serve`` says when it ends at once: one line, exit code 2."""
    command = [sys.executable, "-m", "sglite", "serve", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1, ended.stderr
    return ended.stderr


def test_a_port_in_use_is_known_at_once(server: Started) -> None:
    port = server.url.rpartition(":")[2]
    assert f"cannot listen on 127.0.0.1 port {port}: address already in use" in refusal("--port", port)


@pytest.mark.slow
def test_what_the_engine_refuses_to_load_is_one_line(server: Started) -> None:
    said = refusal("--port", "0", "--context-length", "100000000")
    assert said.startswith("sglite serve: context_length=100000000 exceeds the ")
