"""The pages about the server say what the code does: every route with its access, every field, every limit."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

import sglite as sgl
from sglite.runtime.sample.params import MAX_BIASES, MAX_N, MAX_STOP_CHARS, MAX_STOP_IDS, MAX_STOPS
from sglite.runtime.serve import body, native, sessions, tokens
from sglite.runtime.serve.app import all_routes
from sglite.runtime.serve.openai import completions, messages, sampling
from sglite.runtime.serve.openai.chat_ask import read_chat
from sglite.runtime.serve.openai.completions import read_completion
from sglite.runtime.serve.options import ServeOptions
from sglite.runtime.serve.programs import Programs
from sglite.runtime.serve.responses_api import store
from sglite.runtime.serve.responses_api.ask import read_ask
from sglite.runtime.serve.responses_api.routes import Responses
from sglite.runtime.serve.security import MAX_HEADER_BYTES
from sglite.runtime.serve.serving import Route, Serving

DOCS = Path(__file__).parents[3] / "docs"
SERVER = (DOCS / "server.md").read_text(encoding="utf-8")
FIELDS = (DOCS / "openai-api.md").read_text(encoding="utf-8")
ACCESS = {"open": "open", "normal": "key", "careful": "careful", "admin": "admin"}


@pytest.fixture(scope="module")
def serving(engine: sgl.Engine) -> Serving:
    return Serving.of(engine, ServeOptions())


@pytest.fixture(scope="module")
def routes(serving: Serving) -> list[Route]:
    programs = Programs(serving.engine, serving.in_flight)
    found = all_routes(serving, programs, Responses(serving))
    programs.close()
    return found


def documented() -> dict[str, str]:
    """Path -> access, from the table of routes."""
    table = SERVER.partition("## Routes")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in table.split("\n") if line.startswith("| `")]
    return {path: row[2].strip() for row in rows for path in re.findall(r"`([^`]+)`", row[1])}


def test_every_route_is_in_the_table_with_its_access(routes: list[Route]) -> None:
    told = documented()
    wanted = {
        "/playground/..." if route.path.startswith("/playground/") else route.path: ACCESS[route.access.value]
        for route in routes
    }
    assert {path: access for path, access in wanted.items() if told.get(path) != access} == {}
    assert told.keys() - wanted.keys() == set(), "documented, and not there"


class Noting(dict[str, Any]):
    """A body that notes which names it is asked for."""

    def __init__(self, given: dict[str, Any], asked: set[str]) -> None:
        super().__init__(given)
        self._asked = asked

    def get(self, name: str, default: Any = None) -> Any:
        self._asked.add(name)
        return super().get(name, default)


def read_names(serving: Serving) -> dict[str, set[str]]:
    """Names of the fields that each of OpenAI's routes asks for."""
    found: dict[str, set[str]] = {}

    def asking(route: str, **given: Any) -> Noting:
        asked = found.setdefault(route, set())
        return Noting({"structured_outputs": Noting({"regex": "a"}, asked), **given}, asked)

    read_chat(serving, asking("chat", messages=[{"role": "user", "content": "Hi"}]))
    asyncio.run(read_completion(serving, asking("completions", prompt="Hi")))
    read_ask(serving, store.Store(), asking("responses", input="Hi"))
    return found


def test_every_field_that_is_read_is_on_the_page(serving: Serving) -> None:
    names = read_names(serving)
    shown = {part for name in re.findall(r"`([\w.]+)`", FIELDS) for part in (name, *name.split("."))}
    others = {"disable_fallback", "disable_any_whitespace", "disable_additional_properties", "whitespace_pattern"}
    assert all(len(found) > 50 for found in names.values())
    assert {route: sorted(found - shown - others) for route, found in names.items() if found - shown - others} == {}


def test_the_limits_are_those_of_the_code() -> None:
    table = SERVER.partition("## Limits")[2].partition("*Back-pressure.*")[0]
    rows = dict(
        row.strip("| ").split(" | ", 1) for row in table.split("\n") if row.startswith("| ") and " | " in row[2:]
    )
    assert f"{body.MAX_BODY >> 20} MiB" in rows["body"] and f"{MAX_HEADER_BYTES >> 10} KiB" in rows["path and headers"]
    assert f"nested {body.MAX_DEPTH} deep" in rows["JSON"] and rows["`n`"] == str(MAX_N)
    assert {native.MAX_BATCH, completions.MAX_BATCH, tokens.MAX_PROMPTS} == {number(rows["prompts of one request"])}
    assert number(rows["`top_logprobs`"]) == sampling.MAX_TOP_LOGPROBS == completions.MAX_TOP_LOGPROBS
    assert number(rows["tools"]) == messages.MAX_TOOLS and number(rows["`logit_bias`"]) == MAX_BIASES
    stops = f"{MAX_STOPS} of {MAX_STOP_CHARS:,} characters each; {MAX_STOP_IDS:,} stop ids"
    assert rows["stop strings, patterns"] == stops
    assert rows["responses kept"].startswith(f"{store.MAX_RESPONSES:,} and {store.MAX_BYTES >> 20} MiB")
    kept = (
        f"{sessions.MAX_SESSIONS:,}, of {sessions.MAX_REQUESTS:,} requests each; {sessions.MAX_TOKENS // 10**6} million"
    )
    assert rows["sessions"].startswith(kept)


def number(text: str) -> int:
    found = re.search(r"[0-9][0-9,]*", text)
    assert found is not None
    return int(found[0].replace(",", ""))
