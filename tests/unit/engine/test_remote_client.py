"""An engine in a process of its own: the same as one on a thread, and whatever happens to it everybody hears of it."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_process import command, local_engine, remote_engine
from sequence_engines import COUNTERS, text_folder

from sglite import Engine
from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.config import ConfigError
from sglite.runtime.engine import remote
from sglite.runtime.engine.child import EngineProcess
from sglite.runtime.engine.client import EngineThread
from sglite.runtime.engine.generation import EngineError, RequestRefused
from sglite.runtime.engine.remote import RemoteClient
from sglite.runtime.engine.spawned import Spawned
from sglite.runtime.protocol import GenerateRequest, RequestOutput
from sglite.runtime.sample.params import SamplingParams

SOON = 10.0
PROMPT = [41, 42, 43, 44, 45, 46]
LONG = {"max_new_tokens": 400, "ignore_eos": True}
TESTS = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with remote_engine(folder) as engine:
        yield engine


@pytest.fixture
def slow(folder: Path) -> Iterator[Engine]:
    """Ten milliseconds a step; starts again when it dies."""
    with remote_engine(folder, "--step-seconds", "0.01", restart=True) as engine:
        yield engine


def client_of(engine: Engine) -> RemoteClient:
    assert isinstance(engine.client, RemoteClient)
    return engine.client


def settles(condition: Callable[[], bool], seconds: float = SOON) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Waiter:
    """Collects the outputs of one request and when they came."""

    def __init__(self) -> None:
        self.outputs: list[RequestOutput] = []
        self.ends: list[float] = []

    def __call__(self, output: RequestOutput) -> None:
        self.outputs.append(output)
        if output.finish_reason is not None:
            self.ends.append(time.monotonic())


def request(name: str, n: int = 400, prompt: list[int] = PROMPT) -> GenerateRequest:
    return GenerateRequest(
        request_id=name, token_ids=prompt, sampling=SamplingParams(max_new_tokens=n, ignore_eos=True)
    )


# --- the same as on a thread ------------------------------------------------------------------------------------------

CALLS: list[dict[str, Any]] = [
    {"sampling_params": {"max_new_tokens": 12}},
    {"sampling_params": {"max_new_tokens": 7, "n": 3, "seed": 5}},
    {"sampling_params": {"max_new_tokens": 0}, "return_logprob": True, "logprob_start_len": 0},
    {"sampling_params": {"max_new_tokens": 5, "ignore_eos": True}, "return_logprob": True, "top_logprobs_num": 2,
     "token_ids_logprob": [41, 50], "logprob_start_len": 1, "return_text_in_logprobs": True},
    {"sampling_params": {"regex": "[a-e]{3,9}", "max_new_tokens": 20}},
    {"sampling_params": {"json_schema": {"type": "object", "properties": {"a": {"enum": ["b", 1]}},
                                         "required": ["a"]}, "max_new_tokens": 40}},
    {"sampling_params": {"choice": ["yes", "no"], "on_limit": "close", "max_new_tokens": 4}},
    {"sampling_params": {"max_new_tokens": 30, "stop": ["j", "k"], "frequency_penalty": 0.5}},
    {"sampling_params": {"max_new_tokens": 30, "stop_regex": "[k-m]"}, "priority": 3, "cache_salt": "a"},
]  # fmt: skip


def told(engine: Engine, call: dict[str, Any], prompt: list[int]) -> Any:
    """What a call gives, without what time decides."""
    events = engine.generate(input_ids=prompt, rid="same", **call)
    events = events if isinstance(events, list) else [events]
    return [
        (
            event["text"],
            event["output_ids"],
            {k: v for k, v in event["meta_info"].items() if not k.endswith("_ms") and k != "e2e_latency"},
        )
        for event in events
    ]


def test_outputs_and_counters_are_those_of_an_engine_here(engine: Engine, folder: Path) -> None:
    with local_engine(folder) as here:
        engine.flush_cache()
        before = engine.get_server_info()["totals"]
        for number, call in enumerate(CALLS):
            prompt = [*PROMPT, 40 + number % 3]
            assert told(engine, call, prompt) == told(here, call, prompt)
        there, sums = engine.get_server_info()["totals"], here.get_server_info()["totals"]
        assert {k: there[k] - before[k] for k in COUNTERS} == {k: sums[k] for k in COUNTERS}


def test_programs_are_those_of_an_engine_here(engine: Engine, folder: Path) -> None:
    """Chains, forks, scores, a truncation and a close; a chain's next request is sent when the one before has ended."""

    def run(engine: Engine) -> list[Any]:
        engine.flush_cache()
        sequence = engine.open_sequence("equal", PROMPT)
        chain = [sequence.generate({"max_new_tokens": 5})]
        chain += [sequence.chain([50 + i, 41], {"max_new_tokens": 4, "regex": "[a-z]+"}) for i in range(3)]
        texts = [generation.result(SOON)["text"] for generation in chain]
        branches = sequence.fork(3)
        forked = [b.generate({"max_new_tokens": 3 + i}) for i, b in enumerate(branches)]
        texts += [generation.result(SOON)["text"] for generation in forked]
        scores = sequence.score([[50, 51], [50, 52]])
        rows = [generation.result(SOON)["meta_info"]["input_token_logprobs"] for generation in scores]
        sequence.truncate(len(PROMPT))
        texts.append(sequence.generate({"max_new_tokens": 5}).result(SOON)["text"])
        ids = sequence.token_ids
        pins = engine.get_server_info()["pins"]
        for one in (*branches, sequence):
            one.close()
        assert settles(lambda: engine.get_server_info()["pins"] == 0)
        return [texts, rows, ids, pins]

    with local_engine(folder) as here:
        assert run(engine) == run(here)
        assert engine.get_program_info("nobody") is None
        far, near = engine.get_program_info("equal"), here.get_program_info("equal")
        assert far is not None and near is not None
        # How much of two branches meets in one step depends on when they come; what is known is added up the same.
        assert (far["prompt_tokens"], far["completion_tokens"]) == (near["prompt_tokens"], near["completion_tokens"])


@pytest.mark.parametrize(
    "bad",
    [
        {"regex": "(("},
        {"json_schema": {"type": "object", "not": {}}},
        {"ebnf": 'root ::= missing "a"'},
        {"choice": ["a"], "min_new_tokens": 50},
        {"max_new_tokens": 5000},
    ],
)
def test_refusals_are_those_of_an_engine_here(engine: Engine, folder: Path, bad: dict[str, Any]) -> None:
    with local_engine(folder) as here:
        said = []
        for one in (engine, here):
            with pytest.raises(ValueError) as caught:
                one.generate(input_ids=PROMPT, sampling_params=bad)
            said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_thousand_at_once(engine: Engine) -> None:
    """Of eight threads, streamed and whole, some given up: each has one end, and what was left is none."""
    waiters = {f"many {i}": Waiter() for i in range(1000)}

    def work(part: int) -> None:
        for i in range(part, 1000, 8):
            name = f"many {i}"
            engine.client.submit(request(name, 5 + i % 9, [*PROMPT, 40 + i % 20, 40 + i // 20 % 20]), waiters[name])
            if i % 10 == 0:
                engine.abort(name)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert settles(lambda: all(w.ends for w in waiters.values()), 30)
    assert engine.num_open == 0
    for i, waiter in enumerate(waiters.values()):
        reason = waiter.outputs[-1].finish_reason
        assert len(waiter.ends) == 1 and reason is not None
        tokens = sum(len(output.new_token_ids) for output in waiter.outputs)
        assert (reason.type, tokens) == ("length", 5 + i % 9) or (i % 10 == 0 and reason.type == "abort")
    info = engine.get_server_info()
    assert (info["num_running"], info["num_waiting"], info["pages"]["held"]) == (0, 0, 0)


# --- operations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "mode"),
    [
        ("here", "abort"),
        ("here", "retract"),
        ("here", "in_place"),
        ("there", "retract"),
        pytest.param("there", "abort", marks=pytest.mark.slow),
        pytest.param("there", "in_place", marks=pytest.mark.slow),
    ],
)
def test_a_paused_engine_computes_nothing_and_goes_on(folder: Path, where: str, mode: str) -> None:
    make: Any = remote_engine if where == "there" else local_engine
    with make(folder, *(("--step-seconds", "0.005") if where == "there" else (0.005,))) as engine:
        running = engine.submit([*PROMPT], {"max_new_tokens": 60, "ignore_eos": True})
        assert settles(lambda: engine.get_server_info()["num_steps"] > 3)
        engine.pause(mode)
        steps = engine.get_server_info()["num_steps"]
        late = engine.submit([*PROMPT, 50], {"max_new_tokens": 3, "ignore_eos": True})
        timed = engine.submit([*PROMPT, 51], LONG, timeout_s=0.05)
        assert timed.result(SOON)["meta_info"]["finish_reason"]["code"] == "timeout"
        info = engine.get_server_info()
        assert info["paused"] and info["num_steps"] == steps
        assert settles(lambda: engine.load().statistics["paused"], 2)
        there = {"abort": (0, 1), "retract": (0, 2), "in_place": (1, 1)}[mode]
        assert (info["num_running"], info["num_waiting"]) == there
        assert info["pages"]["held"] == 0 or mode == "in_place"
        assert running.finished == (mode == "abort") and not late.finished
        engine.resume()
        assert len(late.result(SOON)["output_ids"]) == 3
        kind = running.result(SOON)["meta_info"]["finish_reason"]["type"]
        assert kind == ("abort" if mode == "abort" else "length")
    with pytest.raises(ValueError, match="mode must be one of"):
        engine.pause("now")


def test_a_name_in_use_is_refused_and_its_owner_served(engine: Engine) -> None:
    first, second = Waiter(), Waiter()
    engine.client.submit(request("same", 300), first)
    with pytest.raises(RequestRefused, match="'same' belongs to a request that is still open"):
        engine.client.submit(request("same"), second)
    assert settles(lambda: bool(first.ends)) and not second.outputs


def test_what_cannot_be_sent_is_refused_alone(engine: Engine) -> None:
    open_before = engine.num_open
    with pytest.raises(ValueError, match="cannot be sent to another process"):
        engine.submit([*PROMPT], {"max_new_tokens": 1}, rid="\ud800")
    assert engine.num_open == open_before
    engine.abort("\ud800")
    assert engine.generate(input_ids=PROMPT, sampling_params={"max_new_tokens": 1})


def test_a_handler_that_fails_is_nobody_elses_failure(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: RequestOutput) -> None:
        raise ZeroDivisionError("mine")

    waiter = Waiter()
    engine.client.submit_all([request("broken", 3), request("good", 3)], broken, waiter)
    assert settles(lambda: bool(waiter.ends))
    assert "request broken could not be handed on" in caplog.text and engine.health().state == "running"


def test_abort_all_tells_everybody_why(slow: Engine) -> None:
    generations = [slow.submit([*PROMPT, 40 + i], LONG) for i in range(5)]
    slow.abort_all("no more")
    reasons = [generation.result(SOON)["meta_info"]["finish_reason"] for generation in generations]
    assert {(reason["type"], reason["message"]) for reason in reasons} == {("abort", "no more")}


def test_garbage_instead_of_requests_ends_a_process_that_says_why() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        words = [*command(), "--fd", str(theirs.fileno())]
        process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
    ours.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert process.wait(SOON) == 4
    assert process.stderr is not None and b"does not begin a message of sglite's" in process.stderr.read()
    process.stderr.close()
    ours.close()


# --- how it is --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_health_and_load_are_known_without_asking(slow: Engine) -> None:
    assert settles(lambda: slow.load().statistics["num_running"] == 0 and slow.health().age_s < 1)
    generation = slow.submit([*PROMPT], LONG)
    assert settles(lambda: slow.load().statistics["num_running"] == 1, 2)
    pid = client_of(slow).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        assert settles(lambda: slow.health().age_s > 1.2, 3)
        start = time.perf_counter()
        health, load = slow.health(), slow.load()
        assert time.perf_counter() - start < 0.01
        assert health.state == "running" and load.age_s > 1.2, "the process is there; it does not answer"
    finally:
        os.kill(pid, signal.SIGCONT)
    assert settles(lambda: slow.health().age_s < 1, 3)
    assert len(generation.result(SOON)["output_ids"]) == 400


def test_a_thread_that_rests_is_healthy_and_one_that_computes_for_long_is_old(folder: Path) -> None:
    with local_engine(folder, step_seconds=0.4) as here:
        assert isinstance(here.client, EngineThread)
        assert (here.health().state, here.health().age_s, here.load().age_s) == ("running", 0.0, 0.0)
        generation = here.submit([*PROMPT], {"max_new_tokens": 2, "ignore_eos": True})
        assert settles(lambda: here.health().age_s > 0.2, 2)
        generation.result(SOON)
        assert settles(lambda: here.load().statistics["num_finished"] == 1 and here.health().age_s == 0, 2)
    assert here.health().state == "dead" and "shut down" in here.health().reason


# --- death ------------------------------------------------------------------------------------------------------------


def test_every_open_request_hears_of_a_death_once_and_soon(slow: Engine) -> None:
    """Killed at random moments under load; started again each time; a sequence goes on from its own ids."""
    rng = random.Random(1)
    sequence = slow.open_sequence("p", PROMPT)
    text = sequence.generate({"max_new_tokens": 4, "ignore_eos": True}).result(SOON)["output_ids"]
    for turn in range(2):
        waiters = [Waiter() for _ in range(20)]
        for i, waiter in enumerate(waiters):
            slow.client.submit(request(f"{turn}/{i}", 200, [*PROMPT, 40 + i]), waiter)
        chained = slow.open_sequence("q", PROMPT)
        chain = [chained.generate(LONG), chained.chain([50], LONG)]
        asked = slow.client.statistics()
        time.sleep(rng.random() * 0.1)
        killed = time.monotonic()
        os.kill(client_of(slow).pid, signal.SIGKILL)
        assert settles(lambda waiters=waiters: all(w.ends for w in waiters), 2)  # type: ignore[misc]
        for waiter in waiters:
            assert len(waiter.ends) == 1 and waiter.ends[0] - killed < 2
            reason = waiter.outputs[-1].finish_reason
            assert reason is not None and reason.code == "engine_dead" and reason.message is not None
            assert "was killed by SIGKILL; send the request again" in reason.message
        with pytest.raises(EngineError, match="was killed by SIGKILL"):
            chain[0].result(SOON)
        assert chain[1].result(SOON)["meta_info"]["finish_reason"]["type"] == "abort"
        if slow.health().state != "running":
            with pytest.raises(EngineError, match=r"being started again|was killed|has ended"):
                slow.submit([*PROMPT], LONG)
        with contextlib.suppress(EngineError):
            asked.result(SOON)
        assert settles(lambda turn=turn: slow.health().restarts == turn + 1, SOON)  # type: ignore[misc]
        assert slow.health().state == "running" and slow.num_open == 0
        chained.close()
    again = sequence.chain([50], {"max_new_tokens": 4, "ignore_eos": True}).result(SOON)
    assert again["meta_info"]["prompt_tokens"] == len(PROMPT) + len(text) + 1
    assert sequence.token_ids == [*PROMPT, *text, 50, *again["output_ids"]]


def test_without_being_told_to_it_stays_down(folder: Path) -> None:
    with remote_engine(folder) as engine:
        os.kill(client_of(engine).pid, signal.SIGKILL)
        assert settles(lambda: engine.health().state == "dead", 2)
        assert settles(lambda: "was killed by SIGKILL" in engine.health().reason, 2)
        for call in (lambda: engine.submit([*PROMPT], LONG), engine.get_server_info, engine.flush_cache):
            with pytest.raises(EngineError, match="was killed by SIGKILL") as caught:
                call()
            assert caught.value.code == "engine_dead"
        sequence = engine.open_sequence("p", PROMPT)
        sequence.park()
        engine.abort("x")
        engine.abort_all()
        sequence.close()
        assert engine.health().state == "dead" and engine.health().restarts == 0


@pytest.mark.slow
def test_a_crash_loop_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process dies of its first request: after ``RESTARTS`` of them there is no further one."""
    monkeypatch.setattr(remote, "RESTARTS", 2)
    with remote_engine(folder, "--dies", restart=True) as engine:
        for turn in range(3):
            assert settles(lambda turn=turn: engine.health().restarts == turn)  # type: ignore[misc]
            with pytest.raises(EngineError, match="ended with exit code 9"):
                engine.generate(input_ids=PROMPT)
        assert settles(lambda: engine.health().state == "dead")
        assert "died 3 times within 60 s and stays down" in engine.health().reason
        assert not is_alive(client_of(engine).pid)


def test_garbage_in_the_middle_ends_the_process_and_every_request_once(folder: Path) -> None:
    with remote_engine(folder) as engine:
        client_of(engine)._process.send(remote.Park("", None))  # refused, which is nobody's failure
        assert engine.generate(input_ids=PROMPT, sampling_params={"max_new_tokens": 1})
        waiter = Waiter()
        engine.client.submit(request("open"), waiter)
        client_of(engine)._process._channel._socket.send(b"\0" * 64)
        assert settles(lambda: len(waiter.ends) == 1, 2)
        assert "exit code 4" in engine.health().reason


@pytest.mark.slow
def test_a_step_loop_that_breaks_says_so_and_its_process_ends(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bug of ours, not of a request: all hear the cause, and the process does not stay behind half alive."""
    with remote_engine(folder, "--breaks") as engine:
        with pytest.raises(EngineError, match="the engine's step loop failed: ZeroDivisionError: a bug"):
            engine.generate(input_ids=PROMPT)
        assert settles(lambda: engine.health().state == "dead", 2)
        # how the process ended is known a moment after it is known that it has
        assert settles(lambda: "ended with exit code 3: the engine's step loop failed" in engine.health().reason, 2)
        assert settles(lambda: "exit code 3" in caplog.text, 2)


NONSENSE = """
import socket, sys, time
said = socket.socket(fileno=int(sys.argv[2]))
said.sendall(b'HTTP/1.1 200 OK')
time.sleep(600)  # it hears nothing and does not leave by itself
"""


def test_a_process_that_talks_nonsense_is_ended(folder: Path) -> None:
    spawn = functools.partial(EngineProcess, (sys.executable, "-c", NONSENSE))
    with pytest.raises(EngineError, match=r"was killed by SIGKILL; it was ended because .* does not begin a message"):
        Engine(str(folder), launch=functools.partial(Spawned, spawn=spawn))


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_model_that_cannot_be_loaded_is_refused_in_one_line(folder: Path, where: str) -> None:
    make: Any = remote_engine if where == "there" else local_engine
    with pytest.raises(ConfigError, match=r"mem_fraction_static=0\.5 and max_total_tokens both") as caught:
        make(folder, mem_fraction_static=0.5)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_process_killed_while_it_loads_is_an_error_in_one_line(folder: Path) -> None:
    made: list[EngineProcess] = []

    def spawn() -> EngineProcess:
        made.append(EngineProcess(command("--load-seconds", "30")))
        threading.Timer(0.7, made[0].kill).start()
        return made[0]

    with pytest.raises(EngineError, match="was killed by SIGKILL before it had loaded the model"):
        Engine(str(folder), launch=functools.partial(Spawned, spawn=spawn))


# --- the end ----------------------------------------------------------------------------------------------------------


def test_closing_ends_what_is_open_and_the_process(folder: Path) -> None:
    engine = remote_engine(folder, "--step-seconds", "0.01")
    pid = client_of(engine).pid
    generations = [engine.submit([*PROMPT, 40 + i], LONG) for i in range(5)]
    engine.shutdown()
    engine.shutdown()
    assert all(g.result(SOON)["meta_info"]["finish_reason"]["type"] == "abort" for g in generations)
    assert not is_alive(pid) and engine.health().reason == "the engine has been shut down"
    with pytest.raises(RuntimeError, match="shut down"):
        engine.submit([*PROMPT], LONG)


@pytest.mark.slow
def test_an_engine_that_nobody_holds_ends_its_process(folder: Path) -> None:
    engine = remote_engine(folder)
    pid = client_of(engine).pid
    del engine
    assert settles(lambda: not is_alive(pid), 5)


@pytest.mark.slow
def test_closing_does_not_wait_for_a_process_that_is_being_started_again(folder: Path) -> None:
    engine = remote_engine(folder, restart=True)
    client = client_of(engine)
    assert client._again is not None
    client._again = (functools.partial(EngineProcess, command("--load-seconds", "60")), client._again[1])
    first = client.pid
    os.kill(first, signal.SIGKILL)
    assert settles(lambda: client.pid != first and engine.health().state == "starting")
    start = time.monotonic()
    engine.shutdown()
    assert time.monotonic() - start < 5 and not is_alive(client.pid)


def test_signals_of_terminals_and_service_managers_are_the_clients_to_heed(slow: Engine) -> None:
    generation = slow.submit([*PROMPT], {"max_new_tokens": 30, "ignore_eos": True})
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(client_of(slow).pid, number)
    assert len(generation.result(SOON)["output_ids"]) == 30 and slow.health().restarts == 0


OWNER = """
import sys, time; sys.path.insert(0, {tests!r})
from pathlib import Path
from scripted_process import remote_engine
engine = remote_engine(Path({folder!r}), "--step-seconds", {step!r})
engine.submit([41, 42], {{"max_new_tokens": 400, "ignore_eos": True}})
print(engine.client.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("step", ["0.001", pytest.param("30", marks=pytest.mark.slow)])
def test_a_client_that_is_killed_leaves_nothing_behind(folder: Path, step: str) -> None:
    """Whatever the process is in the middle of."""
    code = OWNER.format(tests=str(TESTS), folder=str(folder), step=step)
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert is_alive(pid)
    owner.kill()
    owner.wait()
    assert settles(lambda: not is_alive(pid), 2)
    owner.stdout.close()


# --- the process that compiles ----------------------------------------------------------------------------------------

BOMB = {"patternProperties": {f"^(a|b){{{i}}}": {"const": i} for i in range(60)}}
"""Reading it takes a minute."""


def compile_processes(engine: Engine) -> list[int]:
    found = []
    for task in Path(f"/proc/{client_of(engine).pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread, or a process, that has ended meanwhile
            for child in (task / "children").read_text().split():
                if b"apart.process" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


def test_a_compile_that_is_killed_costs_its_own_request_at_most(slow: Engine) -> None:
    def text(pattern: str) -> Any:
        return slow.generate(input_ids=PROMPT, sampling_params={"regex": pattern, "max_new_tokens": 20})

    assert not compile_processes(slow), "nothing has been asked of one"
    want = text("[a-e]{3}")["text"]
    pid, killed = client_of(slow).pid, list[int]()

    def another() -> set[int]:
        return set(compile_processes(slow)) - set(killed)

    long, bomb = Waiter(), Waiter()
    client_of(slow).submit(request("long"), long)
    sampling, constraint = SamplingParams(max_new_tokens=4), ConstraintSpec.json_schema(BOMB)
    bad = GenerateRequest(request_id="bomb", token_ids=PROMPT, sampling=sampling, constraint=constraint)
    client_of(slow).submit(bad, bomb)
    for _ in range(2):
        assert settles(lambda: bool(another()))
        time.sleep(0.3)
        killed += another()
        os.kill(killed[-1], signal.SIGKILL)
    assert settles(lambda: bool(bomb.ends))
    reason = bomb.outputs[-1].finish_reason
    assert reason is not None and reason.code == "constraint_refused"
    assert "the process that compiles it was killed by SIGKILL, twice; simplify it" in reason.message
    assert text("[a-e]{3}")["text"] == want and text("[x-z]{4}")["meta_info"]["completion_tokens"] == 4
    assert settles(lambda: bool(long.ends)) and long.outputs[-1].finish_reason.type == "length"  # type: ignore[union-attr]
    assert client_of(slow).pid == pid and slow.get_server_info()["grammar"]["restarts"] == 2


def test_the_compile_process_ends_with_the_engine_s(folder: Path) -> None:
    with remote_engine(folder) as engine:
        engine.generate(input_ids=PROMPT, sampling_params={"regex": "[a-e]{3}"})
        (compiling,) = compile_processes(engine)
        os.kill(client_of(engine).pid, signal.SIGKILL)
        assert settles(lambda: not is_alive(compiling))
    with remote_engine(folder) as engine:
        engine.generate(input_ids=PROMPT, sampling_params={"regex": "[a-e]{3}"})
        (compiling,) = compile_processes(engine)
    assert settles(lambda: not is_alive(compiling))
