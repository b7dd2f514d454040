"""When weights change: nobody computes meanwhile, no output mixes two sets unasked, and nothing old is found again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest

from sglite.runtime.engine.client import NOTE_SECONDS, EngineThread
from sglite.runtime.engine.core import CoreConfig, EngineCore
from sglite.runtime.engine.generation import EngineError
from sglite.runtime.executor.base import ThreadExecutor
from sglite.runtime.executor.scripted import ScriptedWorker, reference
from sglite.runtime.protocol import GenerateRequest, ReadWeights, RequestOutput, UpdateWeights, WeightsResult
from sglite.runtime.sample.params import SamplingParams

PROMPT = [41, 42, 43, 44, 45, 46, 47, 48, 49]
SOON = 10.0


def script_of(version: int) -> Callable[[int], int]:
    return lambda fingerprint: (fingerprint // 7 + version) % 97


class Store:
    """Weights that are one number, the script's. ``gate``: loading waits for it."""

    def __init__(self, worker: ScriptedWorker) -> None:
        self.worker = worker
        self.loaded: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.check_gate = threading.Event()
        self.check_gate.set()
        self.loading = threading.Event()

    def check(self, source: str | bytes) -> None:
        assert self.check_gate.wait(SOON)
        if source in ("bad", ""):
            raise ValueError("model.norm.weight is missing")

    def load(self, source: str | bytes) -> None:
        self.loading.set()
        before = len(self.worker.steps)
        assert self.gate.wait(SOON)
        if source == "late":
            raise ValueError("written to while it was read")
        if source == "broken":
            raise OSError("half of it is gone")
        self.worker.script = script_of(int(source))
        self.loaded.append(int(source))
        assert len(self.worker.steps) == before, "something was computed meanwhile"

    def read(self, name: str, rows: int) -> list[Any]:
        return [float(self.loaded[-1])] * rows


class Rig:
    """A core on a thread, its weights, and what came of its requests."""

    def __init__(self, overlap: bool, states: dict[str, int] | None = None, step_seconds: float = 0.001) -> None:
        self.worker = ScriptedWorker(script_of(0), 64, 4, states, step_seconds)
        self.store = Store(self.worker)
        config = CoreConfig(
            num_pages=64, page_size=4, max_context=240, vocab_size=384, overlap=overlap, state_slots=states or {}
        )
        executor = ThreadExecutor(self.worker, self.store)
        self.cores: list[EngineCore] = []

        def make(wake: Callable[[], None]) -> EngineCore:
            self.cores.append(EngineCore(executor, config, wake=wake))
            return self.cores[0]

        self.client = EngineThread(make)
        self.ends: dict[str, list[RequestOutput]] = {}
        self.tokens: dict[str, list[int]] = {}

    def start(self, name: str, prompt: list[int] = PROMPT, n: int = 12, pin: str = "") -> threading.Event:
        """Begins a request; the event: it has ended."""
        over = threading.Event()
        self.ends[name], self.tokens[name] = [], []

        def note(output: RequestOutput) -> None:
            self.tokens[name] += output.new_token_ids
            if output.finish_reason is not None:
                self.ends[name].append(output)
                over.set()

        sampling = SamplingParams(max_new_tokens=n, ignore_eos=True)
        self.client.submit(GenerateRequest(request_id=name, token_ids=prompt, sampling=sampling, pin=pin), note)
        return over

    def run(self, name: str, prompt: list[int] = PROMPT, n: int = 12, pin: str = "") -> RequestOutput:
        assert self.start(name, prompt, n, pin).wait(SOON)
        return self.ends[name][0]

    def update(self, version: str, **options: Any) -> Future[WeightsResult]:
        return self.client.weights(UpdateWeights(folder=version, **options))

    def under_way(self, name: str) -> bool:
        """Waits until a request has some output and not yet its end."""
        for _ in range(5000):
            if self.tokens[name]:
                return not self.ends[name]
            threading.Event().wait(0.001)
        return False


@contextmanager
def rigged(overlap: bool, **options: Any) -> Iterator[Rig]:
    rig = Rig(overlap, **options)
    try:
        yield rig
    finally:
        rig.store.gate.set()
        rig.client.close()
    assert all(len(ends) == 1 for ends in rig.ends.values())
    core = rig.cores[0]
    core.scheduler.memory.pins.unpin("")
    core.cache.flush()
    assert core.cache.allocator.num_free == 64, "pages were lost"


@pytest.fixture(params=[False, True], ids=["sync", "overlap"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with rigged(request.param) as rig:
        yield rig


def expected(version: int, n: int = 12, prompt: list[int] = PROMPT) -> list[int]:
    return reference(script_of(version), prompt, n)


def test_open_requests_end_with_the_old_weights_and_later_ones_begin_with_the_new(rig: Rig) -> None:
    old = [rig.start(f"old {i}", n=40 + 5 * i) for i in range(3)]
    assert rig.under_way("old 2")
    update = rig.update("1")
    new = rig.start("new")
    assert update.result(SOON) == WeightsResult(success=True, num_paused_requests=1)
    assert all(over.is_set() for over in old) and new.wait(SOON)
    assert [rig.tokens[f"old {i}"] for i in range(3)] == [expected(0, 40 + 5 * i) for i in range(3)]
    assert rig.tokens["new"] == expected(1)
    assert rig.ends["new"][0].accounting.cached_tokens == 0


def test_nothing_that_was_computed_before_is_matched_after(rig: Rig) -> None:
    rig.run("warm", pin="kept")
    assert rig.run("hit").accounting.cached_tokens == len(PROMPT) - 1
    before = rig.cores[0].statistics()
    assert before["pins"] == 1
    for version, flush in ((1, True), (2, False)):
        assert rig.update(str(version), flush_cache=flush).result(SOON).success
        assert rig.client.statistics().result(SOON)["pages"]["free"] == 64
        assert rig.run(f"miss {version}").accounting.cached_tokens == 0
        assert rig.run(f"hit {version}").accounting.cached_tokens == len(PROMPT) - 1
        assert rig.tokens[f"hit {version}"] == expected(version)


def test_what_does_not_fit_disturbs_nobody(rig: Rig) -> None:
    rig.run("warm")
    over = rig.start("open", n=60)
    assert rig.under_way("open")
    refused = rig.update("bad", abort=True).result(SOON)
    assert refused == WeightsResult(success=False, message="model.norm.weight is missing")
    assert not over.is_set(), "it was waited for, or ended"
    assert over.wait(SOON) and rig.tokens["open"] == expected(0, 60)
    assert rig.run("hit").accounting.cached_tokens == len(PROMPT) - 1
    late = rig.update("late").result(SOON)
    assert not late.success and rig.run("still").accounting.cached_tokens == len(PROMPT) - 1
    assert rig.store.loaded == [] and rig.tokens["still"] == expected(0)


def test_open_requests_may_be_ended_for_it(rig: Rig) -> None:
    rig.start("open", n=200)
    assert rig.under_way("open")
    assert rig.update("1", abort=True).result(SOON).success
    reason = rig.ends["open"][0].finish_reason
    assert reason is not None and reason.type == "abort" and "weights" in (reason.message or "")
    rig.run("new")
    assert rig.tokens["new"] == expected(1)


def test_nothing_is_computed_and_everything_answers_while_weights_are_written(rig: Rig) -> None:
    rig.store.gate.clear()
    update = rig.update("1")
    assert rig.store.loading.wait(SOON)
    over = [rig.start(f"r{i}") for i in range(4)]
    rig.client.abort("r0")
    assert over[0].wait(SOON), "an abort waited for the weights"
    assert rig.client.statistics().result(SOON)["num_waiting"] == 3
    assert rig.client.health().age_s < 5 and not update.done()
    assert rig.worker.steps == []
    rig.store.gate.set()
    assert update.result(SOON).num_paused_requests == 3
    assert all(one.wait(SOON) for one in over) and rig.tokens["r3"] == expected(1)


def test_updates_are_carried_out_one_after_the_other(rig: Rig) -> None:
    rig.start("open", n=30)
    assert rig.under_way("open")
    updates = [rig.update(str(version)) for version in (1, 2, 3)]
    between = rig.start("between")
    last = rig.update("4")
    assert [update.result(SOON).success for update in (*updates, last)] == [True] * 4
    assert between.wait(SOON)
    assert rig.store.loaded == [1, 2, 3, 4]
    assert rig.tokens["between"] == expected(4) and rig.tokens["open"] == expected(0, 30)


def test_too_many_updates_are_refused(rig: Rig) -> None:
    rig.store.gate.clear()
    updates = [rig.update("1") for _ in range(70)]
    assert all("64 updates" in update.result(SOON).message for update in updates[64:])
    rig.store.gate.set()
    assert [update.result(SOON).success for update in updates] == [True] * 64 + [False] * 6


def test_paused_requests_keep_their_keys_or_give_them_back(rig: Rig) -> None:
    """What is asked for while generation is paused is done at once, between two tokens of an output."""
    over = rig.start("open", n=100)
    assert rig.under_way("open")
    rig.client.pause("in_place").result(SOON)
    kept = len(rig.tokens["open"])
    refused = rig.update("1").result(SOON)
    assert not refused.success and "flush_cache=false" in refused.message
    assert rig.update("1", flush_cache=False).result(SOON).num_paused_requests == 1
    computed = rig.client.statistics().result(SOON)["step_tokens"]
    rig.client.resume().result(SOON)
    assert over.wait(SOON)
    done = PROMPT + rig.tokens["open"][:kept]
    assert rig.tokens["open"][:kept] == expected(0, kept)
    assert rig.tokens["open"][kept + 1 :] == reference(script_of(1), [*done, rig.tokens["open"][kept]], 99 - kept)
    assert rig.client.statistics().result(SOON)["step_tokens"] - computed <= 101 - kept
    assert rig.run("new").accounting.cached_tokens == 0
    assert rig.tokens["new"] == expected(1)
    freed = rig.client.call(lambda core: core.cache.evict(len(PROMPT) // 4)).result(SOON)
    assert freed > 20, "the oldest go first: what the paused request had"
    assert rig.run("hit").accounting.cached_tokens == len(PROMPT) - 1, "the new ones went with the old"


def test_going_on_waits_until_weights_are_written(rig: Rig) -> None:
    over = rig.start("open", n=30)
    assert rig.under_way("open")
    rig.client.pause("retract").result(SOON)
    rig.store.gate.clear()
    rig.store.loading.clear()
    update = rig.update("1")
    assert rig.store.loading.wait(SOON)
    before = rig.client.statistics().result(SOON)["num_steps"]
    rig.client.resume().result(SOON)
    assert not over.wait(0.1) and not update.done()
    assert rig.client.statistics().result(SOON)["num_steps"] == before, "planned over a cache that is about to go"
    rig.store.gate.set()
    assert update.result(SOON).success and over.wait(SOON)


def test_an_engine_that_rests_hears_of_the_check(rig: Rig) -> None:
    rig.store.check_gate.clear()
    update = rig.update("1")
    assert not threading.Event().wait(2.5 * NOTE_SECONDS), "long enough to have nothing more to look after"
    rig.store.check_gate.set()
    assert update.result(SOON).success


def test_retracted_requests_compute_everything_anew(rig: Rig) -> None:
    over = rig.start("open", n=100)
    assert rig.under_way("open")
    rig.client.pause("retract").result(SOON)
    kept = len(rig.tokens["open"])
    assert rig.update("1").result(SOON) == WeightsResult(success=True, num_paused_requests=1)
    before = len(rig.worker.steps)
    rig.client.resume().result(SOON)
    assert over.wait(SOON)
    done = PROMPT + rig.tokens["open"][:kept]
    first = next(step for step in rig.worker.steps[before:] if step.rows)
    assert first.rows[0].start == 0 and len(first.rows[0].token_ids) >= len(PROMPT) + kept
    assert rig.tokens["open"][kept:] == reference(script_of(1), done, 100 - kept)


def test_recurrent_state_of_old_weights_is_not_resumed() -> None:
    with rigged(False, states={"state": 12}) as rig:
        rig.run("warm")
        assert rig.update("1").result(SOON).success
        assert rig.run("new").accounting.cached_tokens == 0
        assert rig.tokens["new"] == expected(1)
        slots = rig.cores[0].cache.states["state"]
        assert slots.counts().cached <= 2


def test_half_written_weights_end_the_engine(rig: Rig) -> None:
    update = rig.update("broken")
    waiting = rig.start("waiting")
    with pytest.raises((EngineError, OSError), match="half of it is gone"):
        update.result(SOON)
    assert waiting.wait(SOON)
    assert rig.client.health().state == "dead" and "half of it is gone" in rig.client.health().reason
    assert rig.start("later").wait(SOON)
    with pytest.raises(EngineError, match="half of it is gone"):
        rig.update("1").result(SOON)
    assert rig.worker.steps == [] and rig.store.loaded == []


def test_the_end_of_the_engine_is_the_end_of_what_was_ordered(rig: Rig) -> None:
    rig.start("open", n=200)
    assert rig.under_way("open")
    updates = [rig.update("1"), rig.update("2")]
    rig.client.close()
    for update in updates:
        with pytest.raises(RuntimeError, match="shut down"):
            update.result(SOON)
    with pytest.raises(RuntimeError, match="shut down"):
        rig.update("3")
    assert rig.store.loaded == []


def test_reading_waits_for_nobody(rig: Rig) -> None:
    assert rig.update("5").result(SOON).success
    rig.start("open", n=100)
    assert rig.under_way("open")
    found = rig.client.weights(ReadWeights(name="x", rows=2)).result(SOON)
    assert found == WeightsResult(success=True, values=[5.0, 5.0]) and not rig.ends["open"]


def test_what_has_no_weights_says_so() -> None:
    worker = ScriptedWorker(script_of(0), 8, 4)
    executor = ThreadExecutor(worker)
    for asked in (executor.check_weights("x"), executor.load_weights(b"x"), executor.read_weights("x", 1)):
        with pytest.raises(ValueError, match="has no weights"):
            asked.result(SOON)
    executor.shutdown()
