"""The observer: requests that end in every way and order, told of from several threads, and what telling costs."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import pytest

from sglite.runtime.engine.generation import Generation
from sglite.runtime.engine.presenter import Presenter
from sglite.runtime.observe.exchange import MAX_NAME, MAX_TRACKED, Exchange, current_exchange
from sglite.runtime.observe.observer import Observer
from sglite.runtime.observe.timeline import LIMIT, details
from sglite.runtime.protocol import Accounting, FinishReason, RequestOutput
from sglite.runtime.sample.params import SamplingParams


class Clock:
    """A clock that is set by hand."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


class Told:
    """A follower that remembers."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def complete(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)

    def close(self) -> None: ...


def output(rid: str, new: int, finish: str | None = None, code: str | None = None, **counts: Any) -> RequestOutput:
    reason = None if finish is None else FinishReason(type=finish, code=code)  # type: ignore[arg-type]
    accounting = Accounting(**{"prompt_tokens": 10, "computed_prompt_tokens": 10, "forward_passes": 1, **counts})
    return RequestOutput(request_id=rid, new_token_ids=[7] * new, finish_reason=reason, accounting=accounting)


def counted(observer: Observer) -> dict[str, int]:
    return {name: count for name, count in observer.tally.counts.items() if count}


def test_each_number_is_counted_once_whenever_it_comes() -> None:
    observer = Observer()
    saw = observer.begin("a", ["a"])
    saw(output("a", 1, cached_tokens=4, computed_prompt_tokens=6))
    saw(output("a", 3, cached_tokens=4, computed_prompt_tokens=6, forward_passes=3, forced_tokens=2))
    saw(output("a", 0, "stop", cached_tokens=4, computed_prompt_tokens=6, forward_passes=3, forced_tokens=2))
    assert counted(observer) == {
        "prompt_tokens": 10, "cached_tokens": 4, "computed_tokens": 6, "generation_tokens": 4, "forced_tokens": 2,
        "forward_passes": 3, "num_requests": 1,
    }  # fmt: skip
    assert sum(observer.tally.first_token.counts) == 1
    assert sum(observer.tally.between_tokens.counts) == 3


@pytest.mark.parametrize(
    ("finish", "code", "where"),
    [("abort", "cancelled", "num_aborted_requests"), ("error", "nan", "num_failed_requests")],
)
def test_what_an_aborted_or_failed_request_cost_is_counted(finish: str, code: str, where: str) -> None:
    observer = Observer()
    saw = observer.begin("a", ["a"])
    saw(output("a", 5))
    saw(output("a", 2, finish, code))
    found = counted(observer)
    assert found["generation_tokens"] == 7 and found["prompt_tokens"] == 10 and found[where] == 1
    assert sum(observer.tally.request.counts) == 0


def test_a_refused_request_costs_nothing() -> None:
    observer = Observer()
    observer.begin("a", ["a"])(output("a", 0, "error", "invalid_request", forward_passes=0, prompt_tokens=10**6))
    assert counted(observer) == {"num_requests": 1, "num_refused_requests": 1}


def test_times_are_those_of_the_clock() -> None:
    clock = Clock()
    observer = Observer(clock=clock)
    exchange = observer.received("/generate", "POST", {})
    clock.now += 1
    exchange.body_at = clock()
    token = current_exchange.set(exchange)
    saw = observer.begin("a", ["a"])
    current_exchange.reset(token)
    clock.now += 0.25
    saw(output("a", 1, queue_ms=50.0, e2e_ms=200.0))
    clock.now += 0.5
    saw(output("a", 2, "length", queue_ms=50.0, e2e_ms=700.0))
    observer.answered(exchange, 200)
    assert (observer.tally.first_token.sum, observer.tally.between_tokens.sum) == (0.25, 0.5)
    assert (observer.tally.request.sum, observer.tally.queue.sum) == (0.75, 0.05)
    (shown,) = details(exchange, clock())["generations"]
    assert [shown[f"{name}_ms"] for name in ("submitted", "admitted", "first_run", "first_token", "ended")] == [
        1000, 1050, 1100, 1250, 1750,
    ]  # fmt: skip


def test_a_node_of_a_program_does_not_wait_for_those_before_it() -> None:
    clock = Clock()
    observer = Observer(clock=clock)
    saw = observer.begin("a", ["a"], program="p")
    clock.now += 9
    saw(output("a", 1, "stop", e2e_ms=500.0))
    assert observer.tally.first_token.sum == observer.tally.request.sum == 0.5


def test_followers_hear_of_each_exchange_once_in_whatever_order_it_ends() -> None:
    told = Told()
    observer = Observer([told])
    for order in itertools.permutations(["a", "b", "http"]):
        exchange = observer.received("/generate", "POST", {})
        saw = observer.begin("ab", ["a", "b"], exchange=exchange)
        for what in order:
            assert exchange not in told.exchanges
            if what == "http":
                observer.answered(exchange, 200)
            else:
                saw(output(what, 1, "stop"))
        assert told.exchanges.count(exchange) == 1
    assert observer.tally.http_open == 0


def test_what_goes_wrong_reaches_nobody() -> None:
    class Broken(Told):
        def complete(self, exchange: Exchange) -> None:
            raise RuntimeError("a broken follower")

    observer = Observer([Broken()])
    saw = observer.begin("a", ["a"])
    saw(output("of nobody", 1))
    saw(output("a", 1, "stop"))
    assert counted(observer)["num_requests"] == 1


def test_outputs_that_came_before_it_is_observed_are_counted_too() -> None:
    for before in range(4):
        made = Generation([Presenter("a", SamplingParams(), None, None)], lambda rid: None)
        outputs = [output("a", 2), output("a", 3), output("a", 1, "length")]
        for one in outputs[:before]:
            made.push(one)
        observer = Observer()
        made.observe(observer.begin("a", made.request_ids))
        for one in outputs[before:]:
            made.push(one)
        assert counted(observer)["generation_tokens"] == 6 and counted(observer)["num_requests"] == 1


def test_threads_take_turns_and_readers_see_whole_events() -> None:
    """Whoever holds the lock sees nothing change; nothing is lost afterwards."""
    observer = Observer()
    saws = [observer.begin(str(i), [str(i)]) for i in range(4)]

    def tell(i: int) -> None:
        for _ in range(500):
            saws[i](output(str(i), 1))
        saws[i](output(str(i), 0, "stop"))

    threads = [threading.Thread(target=tell, args=(i,)) for i in range(4)]
    with observer.lock:
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        assert counted(observer) == {}
    for thread in threads:
        thread.join()
    assert counted(observer)["generation_tokens"] == 2000 and counted(observer)["prompt_tokens"] == 40


def test_what_is_remembered_is_bounded() -> None:
    observer = Observer()
    big = observer.received("/generate", "POST", {})
    for i in range(2 * MAX_TRACKED):
        observer.begin(f"b{i}", [f"b{i}"], exchange=big)
    assert len(big.tracked) == MAX_TRACKED and details(big, 0)["not_listed"] == MAX_TRACKED
    assert observer.timeline.find("b0") is big and observer.timeline.find(f"b{2 * MAX_TRACKED - 1}") is None
    for i in range(2 * LIMIT):
        exchange = observer.received("/generate", "POST", {"x-request-id": f"h{i}"})
        observer.begin("r" * 10_000 + str(i), [str(i)], exchange=exchange)
    timeline = observer.timeline
    assert timeline.find("h0") is None and timeline.find(f"h{2 * LIMIT - 1}") is exchange
    assert len(timeline.recent(10 * LIMIT)) == LIMIT == len(timeline._names)
    assert len(timeline._by_name) <= 2 * LIMIT and max(map(len, timeline._by_name)) <= MAX_NAME


def test_what_begins_more_when_it_has_been_forgotten_counts_with_all_that_it_lists() -> None:
    observer = Observer()
    long = observer.received("/program", "POST", {})

    def others() -> None:
        for i in range(LIMIT):
            observer.begin(str(i), [str(i)], exchange=observer.received("/generate", "POST", {}))

    observer.begin("many", [f"m{i}" for i in range(MAX_TRACKED - 1)], exchange=long)
    others()
    assert observer.timeline.find("many") is None
    observer.begin("more", ["more"], exchange=long)
    assert observer.timeline.find("more") is long and len(long.tracked) == MAX_TRACKED
    assert sum(len(one.tracked) for one in observer.timeline.recent(2 * LIMIT)) == LIMIT
    others()
    assert len(observer.timeline.recent(2 * LIMIT)) == LIMIT


def test_the_latest_of_a_name_is_found_and_stays_when_an_older_one_is_forgotten() -> None:
    observer = Observer()
    first, second = (observer.received("/generate", "POST", {"x-request-id": "same"}) for _ in range(2))
    observer.begin("a", ["a"], exchange=first)
    observer.begin("b", ["b"], exchange=second)
    assert observer.timeline.find("same") is second
    observer.timeline._forget(first)
    assert observer.timeline.find("same") is second and observer.timeline.find("a") is None


def test_an_event_costs_less_than_thirty_microseconds() -> None:
    observer = Observer()
    ready = [(str(i), output(str(i), 1), output(str(i), 1, "stop")) for i in range(500)]
    best = float("inf")
    for _ in range(5):
        started = time.process_time()
        for name, progress, end in ready:
            exchange = observer.received("/generate", "POST", {})
            saw = observer.begin(name, [name], exchange=exchange)
            saw(progress)
            saw(progress)
            saw(end)
            observer.answered(exchange, 200)
        best = min(best, time.process_time() - started)
    assert best / (6 * len(ready)) < 30e-6
