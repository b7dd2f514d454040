"""News of generations on the event loop: none is lost, the first and the last are told at once, fast ones together."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest

from sglite.runtime.engine.generation import EngineError, Generation
from sglite.runtime.engine.presenter import Presenter
from sglite.runtime.protocol import FinishReason, RequestOutput
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.serve import merge
from sglite.runtime.serve.merge import Bell, Merged

END = FinishReason(type="length")


def generation(*names: str) -> Generation:
    return Generation([Presenter(name, SamplingParams(), None, None) for name in names], lambda rid: None)


def token(name: str, finish: FinishReason | None = None) -> RequestOutput:
    return RequestOutput(request_id=name, new_token_ids=[1], finish_reason=finish)


def test_tokens_from_threads_arrive_all_whatever_their_pace() -> None:
    async def read(made: list[Generation]) -> list[list[int]]:
        seen: list[list[int]] = [[] for _ in made]
        async for index, (progress,) in Merged(made, Bell()):
            seen[index].append(progress.num_tokens)
        return seen

    def write(one: Generation, rng: random.Random) -> None:
        for at in range(60):
            time.sleep(rng.choice((0, 0, 0.0005, 0.004)))
            one.push(token(one.request_ids[0], END if at == 59 else None))

    async def both() -> list[list[int]]:
        made = [generation(f"r{at}") for at in range(3)]
        threads = [threading.Thread(target=write, args=(one, random.Random(at))) for at, one in enumerate(made)]
        for thread in threads:
            thread.start()
        return await asyncio.wait_for(read(made), 20)

    for counts in asyncio.run(both()):
        assert counts == sorted(set(counts)) and counts[-1] == 60


def test_fast_tokens_share_events_and_the_end_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "PACE_SECONDS", 30.0)

    async def counts() -> list[int]:
        one, found = generation("r"), []
        news = Merged([one], Bell())
        for at in range(10):
            one.push(token("r", END if at == 9 else None))
            if at < 2 or at == 9:
                _, (progress,) = await asyncio.wait_for(anext(news), 5)
                found.append(progress.num_tokens)
            else:
                await asyncio.sleep(0.001)
        assert [_ async for _ in news] == []
        return found

    assert asyncio.run(counts()) == [1, 2, 10]


def test_what_waits_is_told_when_its_time_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "PACE_SECONDS", 0.05)

    async def third() -> tuple[int, float]:
        one = generation("r")
        news = Merged([one], Bell())
        for _ in range(2):
            one.push(token("r"))
            await anext(news)
        waiting, begin = asyncio.ensure_future(anext(news)), time.monotonic()
        await asyncio.sleep(0)
        for _ in range(5):
            one.push(token("r"))
        _, (progress,) = await asyncio.wait_for(waiting, 5)
        return progress.num_tokens, time.monotonic() - begin

    tokens, seconds = asyncio.run(third())
    assert tokens == 7 and seconds > 0.04


def test_a_failure_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "PACE_SECONDS", 30.0)

    async def fail() -> None:
        one = generation("r")
        news = Merged([one], Bell())
        for _ in range(2):
            one.push(token("r"))
            await anext(news)
        waiting = asyncio.ensure_future(anext(news))
        await asyncio.sleep(0)
        one.push(token("r"))
        await asyncio.sleep(0.001)
        one.end(FinishReason(type="error", code="nan", message="no numbers"))
        with pytest.raises(EngineError, match="no numbers"):
            await asyncio.wait_for(waiting, 5)

    asyncio.run(fail())


def test_what_comes_together_shares_a_wake_up() -> None:
    async def answer() -> tuple[list[int], int]:
        loop, found, rings = asyncio.get_running_loop(), [], 0
        ring = loop.call_soon_threadsafe
        bell = Bell()

        def counted(*args: object) -> object:
            nonlocal rings
            rings += 1
            return ring(*args)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign, assignment]

        def many() -> None:
            for at in range(50):
                bell.call(lambda at=at: found.append(at))  # type: ignore[misc]

        thread = threading.Thread(target=many)
        thread.start()
        thread.join()
        await asyncio.sleep(0.01)
        return found, rings

    assert asyncio.run(answer()) == (list(range(50)), 1)
