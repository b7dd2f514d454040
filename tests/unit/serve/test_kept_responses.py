"""Responses that are kept: what they are counted by is what they take, and they come back as they were."""

from __future__ import annotations

import asyncio
import tracemalloc

from sglite.runtime.serve.responses_api.store import Kept, Store

_BYTES = 60_000


def response(name: str, **fields: object) -> dict[str, object]:
    return {"id": name, "status": "completed", "output": [], **fields}


def test_memory_is_what_is_counted() -> None:
    store = Store(most_bytes=_BYTES)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for index in range(40):
        store.put(Kept(response(f"r{index}"), [[] for _ in range(2_000)]))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(store) > 5
    assert grown < 1.2 * _BYTES


def test_what_has_ended_comes_back_as_it_was() -> None:
    store = Store()
    items = [{"role": "user", "content": "Grüße 😀"}, {"type": "message", "content": [{"text": ""}], "n": 1.5}]
    store.put(Kept(response("r", metadata={"a": None}), items))
    found = store.get("r")
    assert found is not None
    assert (found.response, found.items) == (response("r", metadata={"a": None}), items)


def test_one_that_is_being_made_is_seen_growing_and_not_forgotten() -> None:
    async def run() -> None:
        store, task = Store(most=2), asyncio.ensure_future(asyncio.sleep(60))
        kept = Kept(response("live", status="in_progress"), [], task)
        store.put(kept)
        kept.response["output"] = ["more"]
        for index in range(5):
            store.put(Kept(response(f"r{index}"), []))
        found = store.get("live")
        assert found is kept and found.response["output"] == ["more"]
        store.close()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(run())
