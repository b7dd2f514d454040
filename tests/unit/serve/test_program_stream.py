"""Programs on a server that holds their sequences: the same values as elsewhere, in fewer and smaller requests."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from served import IDLE, Served, settles

import sglite as sgl
from sglite.lang.backends import endpoint_link
from sglite.lang.backends.base import GenCall
from sglite.lang.backends.endpoint_program import ProgramStream
from sglite.lang.ir import Sampling
from sglite.lang.session import SESSION

BACKENDS = ("program", "text", "engine")


def backend_of(server: Served, kind: str) -> Any:
    if kind == "engine":
        return server.engine
    return sgl.RuntimeEndpoint(server.url, program=kind == "program")


@sgl.function
def chain(s: Any, n: int, **options: Any) -> None:
    s += "A list of people:\n"
    for index in range(n):
        s += f"{index}. " + sgl.gen(f"g{index}", max_tokens=8, stop="\n", **options) + "\n"


@sgl.function
def mixed(s: Any) -> str:
    s += sgl.system("You are brief.") + sgl.user("Name a colour.")
    s += sgl.assistant(sgl.gen("first", max_tokens=6))
    group = s.fork(3)
    for index, branch in enumerate(group):
        branch += f"Branch {index}: " + sgl.gen("b", max_tokens=5)
    s += sgl.user("Is it red?")
    s += sgl.assistant_begin() + sgl.select("pick", ["yes", "no", "maybe not"]) + sgl.assistant_end()
    s += sgl.gen("n", dtype=int, max_tokens=4)
    s += sgl.user(group[0]["b"] + group[2]["b"]) + sgl.assistant(sgl.gen("last", max_tokens=6))
    return "|".join([s["first"], *(branch["b"] for branch in group), s["pick"], s["n"], s["last"], s.text()])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.9, "seed": 11}], ids=["greedy", "seeded"])
def test_a_program_gives_the_same_wherever_its_sequences_are(
    server: Served, options: dict[str, Any], stream: bool
) -> None:
    values = {}
    for kind in BACKENDS:
        seed = {"seed": 3} if "seed" in options else {}
        state = mixed.run(backend=backend_of(server, kind), temperature=options["temperature"], stream=stream, **seed)
        state.sync()
        assert state.error() is None
        values[kind] = state.ret_value
    assert values["program"] == values["engine"]
    assert values["text"] == values["engine"]


def test_a_chain_is_one_request_whose_prompt_tokens_are_computed_once(server: Served) -> None:
    counted = {}
    for kind in ("program", "text"):
        server.post("/flush_cache", {})
        before = {path: server.posts(path) for path in ("/program", "/generate")}
        state = chain.run(n=6, temperature=0.0, backend=backend_of(server, kind))
        metas = [state.get_meta_info(f"g{index}") for index in range(6)]
        state.run.finished.result(10)
        posts = {path: server.posts(path) - number for path, number in before.items()}
        counted[kind] = posts, [state[f"g{index}"] for index in range(6)], metas
    posts, values, metas = counted["program"]
    assert posts["/generate"] == 0 and posts["/program"] <= 2  # what the body appended in time travels together
    assert counted["text"][0] == {"/program": 0, "/generate": 6} and counted["text"][1] == values
    for meta in metas:
        assert meta["prompt_tokens"] == meta["cached_tokens"] + meta["computed_prompt_tokens"]
    longest = metas[-1]["prompt_tokens"]
    outputs = sum(meta["completion_tokens"] for meta in metas[:-1])
    assert longest - outputs <= sum(meta["computed_prompt_tokens"] for meta in metas) <= longest


def test_a_fork_and_the_branches_first_requests_travel_together(server: Served) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "A prefix that is long enough to be worth computing only once, by one request and not by five. "
        group = s.fork(5)
        group += sgl.gen("v", max_tokens=3)

    server.post("/flush_cache", {})
    before = server.posts()
    state = f.run(backend=backend_of(server, "program"), temperature=0.0)
    state.run.finished.result(10)
    assert server.posts() - before <= 3  # what the body, in its thread, appended in time


def test_text_is_sent_once_and_no_tokens_are(server: Served, monkeypatch: Any) -> None:
    sent: list[dict[str, Any]] = []
    original = endpoint_link.Http.post_lines

    def spy(self: Any, path: str, body: dict[str, Any], **more: Any) -> Any:
        sent.extend(body["nodes"])
        return original(self, path, body, **more)

    monkeypatch.setattr(endpoint_link.Http, "post_lines", spy)
    state = chain.run(n=4, backend=backend_of(server, "program"), temperature=0.0)
    state.run.finished.result(10)
    texts = [node["text"] for node in sent if node["op"] == "extend"]
    assert "".join(texts) == "A list of people:\n0. " + "".join(f"\n{i}. " for i in (1, 2, 3))
    assert not any("token" in json.dumps(node.get("text", "")) for node in sent)
    assert sum(node["op"] == "generate" for node in sent) == 4


@sgl.function
def checked(s: Any) -> str:
    seen: list[str] = []

    def check(value: str) -> bool:
        seen.append(value)
        return len(seen) > 2

    s += "Say: " + sgl.gen("v", max_tokens=4, check=check, retries=4) + "."
    s += sgl.gen("w", max_tokens=4, temperature=0.0)
    return str(s.text())


def test_a_retry_starts_from_the_cached_prefix_and_its_text_is_what_stays(server: Served) -> None:
    state = checked.run(backend=backend_of(server, "program"), temperature=0.0, seed=1)
    state.run.finished.result(10)
    assert state.error() is None
    expected = server.engine.generate(f"Say: {state['v']}.", {"temperature": 0.0, "max_new_tokens": 4})["text"]
    assert state["w"] == expected and state.get_meta_info("v")["computed_prompt_tokens"] <= 1


def test_a_refusal_names_what_was_wrong_and_nothing_hangs(server: Served) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "x" + sgl.gen("a", max_tokens=3, top_p=7.0) + "y" + sgl.gen("b", max_tokens=3)

    state = f.run(backend=backend_of(server, "program"))
    assert "top_p" in str(state.error()) and "'a'" in str(state.error())
    with pytest.raises(sgl.VariableError, match="top_p"):
        state["b"]


def test_cancelling_a_program_frees_what_it_had(server: Served) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "x" + sgl.gen("a", max_tokens=1500, ignore_eos=True) + "y" + sgl.gen("b", max_tokens=1500)
        started.set()
        s.sync()

    started = threading.Event()
    backend = backend_of(server, "program")
    state = f.run(backend=backend, stream=True)
    started.wait(5)
    assert settles(lambda: server.info()["num_running"] == 1)
    state.cancel()
    assert settles(lambda: server.load() == IDLE, 3.0)


def test_a_server_without_the_extension_gets_plain_requests_and_true_insists_on_it(native: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "p" + sgl.gen("v")

    assert f.run(backend=sgl.RuntimeEndpoint(native))["v"] == "ok"
    with pytest.raises(sgl.BackendError, match="program=True"):
        sgl.RuntimeEndpoint(native, program=True)


@pytest.fixture
def native() -> Iterator[str]:
    """A server of another make."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.answer({"model_path": "m"})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer({"text": "ok", "meta_info": {}})

        def answer(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()


# --- the stream itself --------------------------------------------------------------------------------------------


def on_loop(coroutine: Any) -> Any:
    return SESSION.loop.spawn(coroutine).result(30)


def call(n: int = 4, **sampling: Any) -> GenCall:
    return GenCall(name=None, sampling=Sampling(max_new_tokens=n, temperature=0.0, **sampling))


async def whole(stream: Any, what: GenCall) -> str:
    return [outputs async for outputs in stream.generate(what)][-1][0].text


def stream_of(server: Served) -> ProgramStream:
    stream = sgl.RuntimeEndpoint(server.url).open(f"p{time.monotonic_ns()}")
    assert isinstance(stream, ProgramStream)
    return stream


def test_what_comes_otherwise_than_foretold_is_taken_back(server: Served) -> None:
    async def run() -> list[str]:
        stream = stream_of(server)
        stream.append("One")
        stream.prepare(" two", call())
        stream.prepare(" three", call())
        texts = [await whole(stream, call())]
        stream.append(" other")  # not what was foretold
        texts.append(await whole(stream, call()))
        stream.append(" end")
        texts.append(await whole(stream, call(5)))
        await stream.aclose()
        return texts

    found = on_loop(run())
    text = "One"
    for output, literal, n in zip(found, (" other", " end", ""), (4, 4, 5), strict=True):
        assert output == server.engine.generate(text, {"temperature": 0.0, "max_new_tokens": n})["text"]
        text += output + literal


def test_what_was_foretold_is_handed_over(server: Served) -> None:
    async def run() -> tuple[list[str], int]:
        stream = stream_of(server)
        stream.append("One")
        before = server_posts()
        stream.prepare(" two", call())
        stream.prepare("", call(3))
        texts = [await whole(stream, call())]
        await asyncio.sleep(0.2)
        stream.append(" two")
        texts += [await whole(stream, call()), await whole(stream, call(3))]
        posts = server_posts() - before
        await stream.aclose()
        return texts, posts

    def server_posts() -> int:
        return server.posts()

    texts, posts = on_loop(run())
    assert posts == 1
    first = server.engine.generate("One", {"temperature": 0.0, "max_new_tokens": 4})["text"]
    assert texts[0] == first
    rest = server.engine.generate(f"One{first} two", {"temperature": 0.0, "max_new_tokens": 7})["text"]
    assert texts[1] + texts[2] == rest


def test_a_request_that_is_dropped_leaves_the_sequence_as_it_was(server: Served) -> None:
    async def run() -> tuple[str, str]:
        stream = stream_of(server)
        stream.append("One")
        steps = stream.generate(
            GenCall(name=None, sampling=Sampling(max_new_tokens=1500, ignore_eos=True), stream=True)
        )
        await anext(steps)
        await steps.aclose()
        first = await whole(stream, call())
        mark = stream.mark()
        stream.append(" more")
        await whole(stream, call())
        stream.rewind(mark)
        (branch,) = await stream.fork(1)
        second = await whole(branch, call())
        await branch.aclose()
        await stream.aclose()
        return first, second

    first, second = on_loop(run())
    assert first + second == server.engine.generate("One", {"temperature": 0.0, "max_new_tokens": 8})["text"]


def test_leases_are_renewed_while_a_program_waits(server: Served, monkeypatch: Any) -> None:
    async def run() -> str:
        backend = sgl.RuntimeEndpoint(server.url)
        assert backend._links is not None
        backend._links.lease_s = 1.0
        stream = backend.open("waits")
        stream.append("One")
        await whole(stream, call())
        stream.park(2.0)
        await asyncio.sleep(2.0)
        text = await whole(stream, call())
        await stream.aclose()
        return text

    assert on_loop(run())


def test_a_program_whose_lease_ran_out_is_told(server: Served, monkeypatch: Any) -> None:
    async def run() -> None:
        backend = sgl.RuntimeEndpoint(server.url)
        assert backend._links is not None
        backend._links.lease_s = 1.0
        monkeypatch.setattr(backend._links, "keep", lambda: None)
        stream = backend.open("sleeps")
        stream.append("One")
        await whole(stream, call())
        await asyncio.sleep(1.6)
        try:
            await whole(stream, call())
        finally:
            await stream.aclose()

    with pytest.raises(sgl.BackendError, match=r"HTTP 410: .*lease"):
        on_loop(run())


def test_render_asks_the_servers_template(server: Served) -> None:
    backend = sgl.RuntimeEndpoint(server.url)
    messages = [{"role": "user", "content": "hi"}]
    template = server.engine.chat_template
    assert template is not None
    assert backend.render(messages, ()) == template.render(messages, add_generation_prompt=True)
    with pytest.raises(ValueError, match="template failed"):
        backend.render([{"role": "user", "content": 3}], ())
