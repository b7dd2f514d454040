"""Agents of the clients that people use, three turns long, with two tools of which one fails, all streamed.

The model is told what to say (see ``told_model``), so what each agent must do is known: look up two cities, one of
which is on no map, convert the other's temperature, answer. Each script of ``agents`` runs in an interpreter of its
own, which ``SGLITE_CLIENTS_PYTHON`` names (several, parted by ``:``, for several versions of a client); the default is
the one that runs the tests. Where it lacks the client, the test is skipped and says which.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import settles, start
from told_model import ANSWER, THOUGHT, told_engine

import sglite as sgl

AGENTS = Path(__file__).parent / "agents"
PYTHONS = [name for name in os.environ.get("SGLITE_CLIENTS_PYTHON", "").split(":") if name] or [sys.executable]
CALLS: list[Any] = [
    ["temperature", {"city": "Atlantis"}, "error"],
    ["temperature", {"city": "Oslo"}, 12.5],
    ["convert", {"celsius": 12.5, "unit": "fahrenheit"}, 54.5],
]
PERSON: list[Any] = [["validate", {"name": "ada"}, "error"], ["validate", {"name": "Ada"}, "Ada"]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with told_engine() as engine:
        server, url, thread = start(engine, served_model_name=("sglite-demo",))
        yield url
        assert settles(lambda: httpx.get(f"{url}/server_info").json()["num_open_requests"] == 0)
        server.should_exit = True
        thread.join(10)


def run(python: str, package: str, script: str, url: str, *words: str) -> dict[str, Any]:
    """The report of an agent."""
    there = subprocess.run([python, "-c", f"import {package}"], capture_output=True, timeout=100)
    if there.returncode:
        pytest.skip(f"{package} is not installed in {python}")
    env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_API_KEY": "none", "NO_PROXY": "*"}
    command = [python, str(AGENTS / f"{script}.py"), url, *words]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=110, env=env)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def named(cases: list[tuple[Any, ...]]) -> list[Any]:
    return [pytest.param(*case, id="-".join([case[1], *case[2]])) for case in cases]


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: Path(path).parent.parent.name)
@pytest.mark.parametrize(
    ("package", "script", "words"),
    named([
        ("openai", "openai_chat", ()),
        ("openai", "openai_chat_helper", ()),
        ("openai", "openai_responses", ()),
        ("openai", "openai_responses", ("items",)),
        ("litellm", "litellm_chat", ()),
        ("langchain_openai", "langchain_chat", ()),
        ("langchain_openai", "langchain_chat", ("responses",)),
        ("pydantic_ai", "pydantic_ai_agent", ("chat",)),
        ("pydantic_ai", "pydantic_ai_agent", ("chat", "typed")),
        ("pydantic_ai", "pydantic_ai_agent", ("responses",)),
        ("pydantic_ai", "pydantic_ai_agent", ("responses", "typed")),
        ("agents", "openai_agents_run", ("chat",)),
        ("agents", "openai_agents_run", ("chat", "typed")),
        ("agents", "openai_agents_run", ("responses",)),
        ("agents", "openai_agents_run", ("responses", "typed")),
        ("ollama", "ollama_chat", ()),
        ("anthropic", "anthropic_messages", ()),
    ]),
)  # fmt: skip
def test_an_agent_does_what_the_model_says(
    python: str, package: str, script: str, words: tuple[str, ...], url: str
) -> None:
    found = run(python, package, script, url, *words)
    assert found["calls"] == CALLS
    assert found["text"] == ANSWER
    assert len(found["pieces"]) > 1, "the answer is streamed"
    assert found.get("thought", THOUGHT).strip() == THOUGHT


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: Path(path).parent.parent.name)
@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON", "JSON_SCHEMA", "MD_JSON", "RESPONSES_TOOLS"])
def test_a_value_that_a_validator_refuses_is_asked_for_again(python: str, mode: str, url: str) -> None:
    found = run(python, "instructor", "instructor_person", url, mode)
    assert found["calls"][:2] == PERSON
    assert json.loads(found["text"]) == {"name": "Ada", "age": 36}


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: Path(path).parent.parent.name)
def test_a_model_that_knows_no_tools_can_be_made_to_call_them(python: str) -> None:
    with sgl.Engine(dtype="float32", max_total_tokens=16_384, num_threads=1, show_progress=False) as engine:
        server, url, thread = start(engine, served_model_name=("sglite-demo",))
        found = run(python, "openai", "openai_forced", url)
        server.should_exit = True
        thread.join(10)
    assert [name for name, _, _ in found["calls"]][:2] == ["temperature", "convert"]
    assert found["calls"][0][2] == "error" and isinstance(found["calls"][1][2], float)
