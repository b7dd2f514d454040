"""The core on its thread: whoever asks gets an end, whatever fails, and nobody who waits is forgotten."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engines import Bench, ToyCompiler, toy_reference

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.engine.client import EngineThread
from sglite.runtime.engine.core import EngineCore
from sglite.runtime.protocol import GenerateRequest, RequestOutput
from sglite.runtime.sample.params import SamplingParams

PROMPT = [i * 3 % 5 for i in range(20)]
SOON = 10.0


class Client:
    """Collects the outputs of one request."""

    def __init__(self) -> None:
        self.outputs: list[RequestOutput] = []
        self.over = threading.Event()

    def __call__(self, output: RequestOutput) -> None:
        assert not self.over.is_set(), "something came after the end"
        self.outputs.append(output)
        if output.finish_reason is not None:
            self.over.set()

    @property
    def tokens(self) -> list[int]:
        return [token for output in self.outputs for token in output.new_token_ids]

    @property
    def reason(self) -> Any:
        assert self.over.wait(SOON), "no end came"
        return self.outputs[-1].finish_reason


class Threaded:
    """An engine thread over a bench's core."""

    def __init__(self, **options: Any) -> None:
        self.bench: Bench

        def make(wake: Callable[[], None]) -> EngineCore:
            self.bench = Bench(threads=True, wake=wake, **options)
            return self.bench.core

        self.thread = EngineThread(make)

    def ask(self, name: str, n: int = 8, prompt: list[int] = PROMPT, **fields: Any) -> Client:
        client = Client()
        params = SamplingParams(max_new_tokens=n, ignore_eos=True)
        self.thread.submit(GenerateRequest(request_id=name, token_ids=prompt, sampling=params, **fields), client)
        return client


@pytest.fixture(params=[False, True], ids=["sync", "overlap"])
def engine(request: pytest.FixtureRequest) -> Iterator[Threaded]:
    engine = Threaded(overlap=request.param, compiler=ToyCompiler(slow=True), num_pages=256)
    yield engine
    engine.thread.close()


def test_requests_of_many_threads_are_all_answered(engine: Threaded) -> None:
    clients: dict[int, Client] = {}

    def work(start: int) -> None:
        for i in range(start, start + 10):
            clients[i] = engine.ask(f"r{i}", prompt=[i % 5, *PROMPT])

    threads = [threading.Thread(target=work, args=(10 * i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, client in clients.items():
        assert client.reason.type == "length" and client.tokens == toy_reference([i % 5, *PROMPT], 8)


def test_an_engine_at_rest_takes_no_time_and_wakes_up(engine: Threaded) -> None:
    first = engine.ask("first")
    assert first.reason.type == "length"
    steps = engine.thread.call(lambda core: core.num_steps).result(SOON)
    assert engine.thread.call(lambda core: core.is_idle).result(SOON)
    assert engine.ask("second").reason.type == "length"
    assert engine.thread.call(lambda core: core.num_steps).result(SOON) > steps


def test_a_compiled_constraint_wakes_the_thread(engine: Threaded) -> None:
    client = engine.ask("r", constraint=ConstraintSpec.regex("* + +"))
    engine.thread.call(lambda core: None).result(SOON)
    compiler = engine.bench.core._compiler
    assert isinstance(compiler, ToyCompiler) and not client.over.is_set()
    compiler.release()
    assert client.reason.type == "stop" and client.tokens == toy_reference(PROMPT, 8, constraint="* + +")


def test_a_time_limit_ends_a_request_whose_constraint_never_compiles(engine: Threaded) -> None:
    """Nothing else happens meanwhile: no step, no message."""
    client = engine.ask("r", constraint=ConstraintSpec.regex("*"), timeout_s=0.05)
    assert client.over.wait(2.0), "the thread sleeps through the time limit"
    assert client.reason.code == "timeout"


def test_abort_ends_a_request_and_a_second_one_is_nothing(engine: Threaded) -> None:
    client = engine.ask("r", n=800)
    engine.thread.abort("r")
    engine.thread.abort("r")
    engine.thread.abort("nobody")
    assert client.reason.code == "cancelled"
    assert engine.ask("next").reason.type == "length"


def test_a_name_in_use_is_refused_and_its_owner_served(engine: Threaded) -> None:
    first, second = engine.ask("same", n=200), engine.ask("same")
    assert second.reason.code == "invalid_request" and "'same'" in second.reason.message
    assert first.reason.type == "length" and first.tokens == toy_reference(PROMPT, 200)
    assert engine.ask("same").reason.type == "length", "free again"


def test_what_a_call_raises_is_the_callers(engine: Threaded) -> None:
    def fail(core: EngineCore) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        engine.thread.call(fail).result(SOON)
    assert engine.ask("r").reason.type == "length"


def test_a_step_loop_that_breaks_ends_everybody_and_refuses_the_rest(engine: Threaded) -> None:
    """A bug of ours, not a failed step: open requests and later ones hear of it, and closing still works."""
    running = engine.ask("running", n=800)
    waiting = engine.ask("waiting", constraint=ConstraintSpec.regex("*"))

    def break_it(core: EngineCore) -> None:
        def broken() -> None:
            raise ZeroDivisionError("a bug")

        core.scheduler.schedule = broken  # type: ignore[method-assign, assignment]

    engine.thread.call(break_it).result(SOON)
    for client in (running, waiting, engine.ask("late")):
        assert client.reason.code == "engine_dead" and "ZeroDivisionError: a bug" in client.reason.message


def test_closing_ends_what_is_open_and_refuses_what_comes(engine: Threaded) -> None:
    clients = [engine.ask(f"r{i}", n=800) for i in range(10)]
    engine.thread.close()
    engine.thread.close()
    assert all(client.reason.type == "abort" for client in clients)
    with pytest.raises(RuntimeError, match="shut down"):
        engine.ask("late")
