"""An engine's process that is read on an event loop: the same outputs, on the loop, for as long as there is one."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_process import remote_engine
from sequence_engines import text_folder

from sglite import Engine
from sglite.runtime.engine.remote import RemoteClient
from sglite.runtime.protocol import GenerateRequest, RequestOutput
from sglite.runtime.sample.params import SamplingParams

SOON = 10.0
HANDED_OVER = 1.0
"""The thread lends the socket with the next message, and the engine says how it is twice a second."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with remote_engine(folder, restart=True) as engine:
        yield engine


def client_of(engine: Engine) -> RemoteClient:
    assert isinstance(engine.client, RemoteClient)
    return engine.client


class Waiter:
    """Collects a request's outputs, and the threads they came on."""

    def __init__(self, client: RemoteClient, name: str) -> None:
        self.ids: list[int] = []
        self.threads: set[int] = set()
        self.over = threading.Event()
        sampling = SamplingParams(max_new_tokens=20, ignore_eos=True)
        client.submit(GenerateRequest(request_id=name, token_ids=[41, 42, 43], sampling=sampling), self.take)

    def take(self, output: RequestOutput) -> None:
        self.ids += output.new_token_ids
        self.threads.add(threading.get_ident())
        if output.finish_reason is not None:
            self.over.set()

    async def end(self) -> set[int]:
        """Threads that brought the outputs, once all are there."""
        assert await asyncio.to_thread(self.over.wait, SOON)
        return self.threads


def test_outputs_come_on_the_loop_and_are_the_same(engine: Engine) -> None:
    client = client_of(engine)
    here = threading.get_ident()

    async def run() -> None:
        before = Waiter(client, "before")
        assert here not in await before.end()
        client.read_on(asyncio.get_running_loop())
        await asyncio.sleep(HANDED_OVER)
        during = Waiter(client, "during")
        assert await during.end() == {here}
        assert await asyncio.to_thread(lambda: client.statistics().result(SOON))
        client.read_on(None)
        after = Waiter(client, "after")
        assert here not in await after.end()
        assert before.ids == during.ids == after.ids and len(before.ids) == 20

    asyncio.run(run())


def test_a_process_that_dies_and_its_successor_are_heard_on_the_loop(engine: Engine) -> None:
    client = client_of(engine)

    async def run() -> None:
        client.read_on(asyncio.get_running_loop())
        await asyncio.sleep(HANDED_OVER)
        os.kill(client.pid, signal.SIGKILL)
        end = time.monotonic() + SOON
        while client.health().restarts == 0 and time.monotonic() < end:
            await asyncio.sleep(0.02)
        await asyncio.sleep(HANDED_OVER)
        assert await Waiter(client, "again").end() == {threading.get_ident()}
        client.read_on(None)

    asyncio.run(run())


def test_a_loop_that_ended_without_a_word_is_noticed(engine: Engine) -> None:
    client = client_of(engine)

    async def run() -> None:
        client.read_on(asyncio.get_running_loop())
        await asyncio.sleep(HANDED_OVER)

    asyncio.run(run())
    waiter = Waiter(client, "later")
    assert waiter.over.wait(SOON) and threading.get_ident() not in waiter.threads


def test_an_engine_is_shut_down_while_a_loop_reads(folder: Path) -> None:
    engine = remote_engine(folder)
    client = client_of(engine)

    async def run() -> None:
        client.read_on(asyncio.get_running_loop())
        await asyncio.sleep(HANDED_OVER)
        await asyncio.wait_for(asyncio.to_thread(engine.shutdown), SOON)

    asyncio.run(run())
    assert client.health().state == "dead"
