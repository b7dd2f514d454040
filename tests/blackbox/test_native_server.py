"""A server of one's own: started, used by programs, and gone when whoever started it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

import sglite as sgl

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def settles(condition: Callable[[], Any], seconds: float = 15.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@sgl.function
def interview(s: Any, topic: str) -> None:
    s += sgl.user(f"Tell me about {topic}.") + sgl.assistant(sgl.gen("answer", max_tokens=8, temperature=0.0))
    group = s.fork(2)
    for index, branch in enumerate(group):
        branch += sgl.user(f"View {index}?") + sgl.assistant(sgl.gen("view", max_tokens=6, temperature=0.0))
    s += sgl.user(group[0]["view"]) + sgl.assistant(sgl.select("verdict", ["good", "bad"]))


@pytest.fixture(scope="module")
def runtime() -> Iterator[Any]:
    with sgl.Runtime(dtype="float32", max_total_tokens=8192, num_threads=1, api_key="a key") as runtime:
        yield runtime
    assert not alive(runtime.pid)
    runtime.shutdown()


def test_programs_run_on_it_as_on_an_engine(runtime: Any) -> None:
    with sgl.Engine(dtype="float32", max_total_tokens=8192, num_threads=1, show_progress=False) as engine:
        expected = [interview.run(topic, backend=engine).text() for topic in ("ships", "tea")]
    assert [interview.run(topic, backend=runtime).text() for topic in ("ships", "tea")] == expected
    info = runtime.get_server_info()
    assert info["program_version"] == 1 and info["http_requests"].get("/generate", 0) == 0
    assert settles(lambda: runtime.get_server_info()["programs"]["sessions"] == 0)


def test_it_answers_without_programs_too(runtime: Any) -> None:
    whole = runtime.generate("Hello", {"max_new_tokens": 5, "temperature": 0})

    async def follow() -> list[str]:
        stream = runtime.async_generate("Hello", {"max_new_tokens": 5, "temperature": 0})
        return [event["text"] async for event in stream]

    import asyncio

    assert asyncio.run(follow())[-1] == whole["text"]
    assert httpx.get(runtime.url + "/model_info").status_code == 401


def test_a_client_that_is_killed_leaks_nothing(runtime: Any) -> None:
    code = (
        "import sys, sglite as sgl\n"
        f"backend = sgl.RuntimeEndpoint({runtime.url!r}, api_key='a key')\n"
        "backend._links.lease_s = 1.0\n"
        "@sgl.function\n"
        "def f(s):\n"
        "    s += 'x' + sgl.gen('a', max_tokens=4)\n"
        "    group = s.fork(3)\n"
        "    group += sgl.gen('b', max_tokens=1800, ignore_eos=True)\n"
        "    s['a']; print('started', flush=True); s.sync(); group[0]['b']\n"
        "f.run(backend=backend).sync()\n"
    )
    before = runtime.get_server_info()
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=ENVIRONMENT)
    assert client.stdout is not None and client.stdout.readline() == b"started\n"
    assert settles(lambda: runtime.get_server_info()["num_running"] >= 3)
    client.kill()
    client.wait()
    client.stdout.close()

    def back() -> bool:
        info = runtime.get_server_info()
        same = all(info[name] == before[name] for name in ("num_running", "num_waiting", "open_sequences", "pins"))
        return same and info["pages"]["held"] == before["pages"]["held"] and info["programs"]["sessions"] == 0

    assert settles(back)


def test_the_server_ends_with_its_parent() -> None:
    code = (
        "import sglite as sgl, time\n"
        "runtime = sgl.Runtime(max_total_tokens=4096, num_threads=1)\n"
        "print(runtime.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=ENVIRONMENT)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert settles(lambda: not alive(pid))


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(sgl.BackendError, match=r"exit code 2 .*page_size must be a positive integer"):
        sgl.Runtime(page_size=0)
    with pytest.raises(sgl.BackendError, match="there is no flag --pages"):
        sgl.Runtime(pages=3)
