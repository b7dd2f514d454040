"""``sglite bench``: the figures are those of the server, the load is what was asked for, and seeds repeat it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglite.bench import data
from sglite.bench.load import Answer, Job, Pace, run
from sglite.bench.summary import quantile, summary, table
from sglite.bench.wire import NATIVE, _Native, _timed
from sglite.cli import main


def bench(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, Any]:
    assert main(["bench", *argv, "--json"]) == code
    return dict(json.loads(capsys.readouterr().out)["results"])


def totals(url: str) -> dict[str, float]:
    return dict(httpx.get(f"{url}/server_info").json()["totals"])


@pytest.mark.parametrize("route", ["generate", "chat", "completions"])
def test_serve_counts_what_the_server_counts(route: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = totals(url)
    argv = ["serve", "--url", url, "--route", route, "--num-requests", "6", "--concurrency", "3"]
    found = bench(capsys, *argv, "--input-tokens", "20", "--output-tokens", "5")["serve"]
    after = totals(url)
    assert found["completed"] == 6 and found["errors"] == {} and found["completion_tokens"] == 30
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "forward_passes"):
        assert found[name] == after[name] - before[name] == found["server"][name], name
    assert route != "generate" or found["prompt_tokens"] == 120
    assert 0 < found["ttft_ms"]["p50"] <= found["e2e_ms"]["p50"] <= found["e2e_ms"]["p99"] and found["itl_ms"]


def test_prefix_finds_what_begins_alike_in_the_cache(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "prefix",
        "--url",
        url,
        "--num-requests",
        "8",
        "--concurrency",
        "2",
        "--groups",
        "2",
        "--prefix-tokens",
        "64",
    ]
    found = bench(capsys, *argv, "--input-tokens", "16", "--output-tokens", "2", "--flush-cache")["prefix"]
    assert found["prompt_tokens"] == 8 * 80 and found["ideal_cached_share"] == round(6 * 64 / 640, 4)
    assert found["cached_share"] == pytest.approx(found["ideal_cached_share"], abs=0.01)


def test_json_is_valid_where_it_is_enforced(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(capsys, "json", "--url", url, "--num-requests", "3", "--output-tokens", "120", "--seed", "3")
    assert found["constrained"]["valid_share"] == 1 and found["constrained"]["forced_tokens"] > 0
    assert found["constrained"]["passes_per_token"] < found["free"]["passes_per_token"]
    assert found["free"]["completed"] == 3 and found["free"]["forced_tokens"] == 0


def test_forced_tools_fit_their_schemas(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["tools", "--url", url, "--num-requests", "4", "--num-tools", "2", "--output-tokens", "200"]
    found = bench(capsys, *argv)["tools"]
    assert found["completed"] == 4 and found["valid_share"] == 1 and found["calls"] >= 4


def test_the_table_has_a_column_a_run(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--url", url, "--num-requests", "2", "--output-tokens", "2", "--seed", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].split() == ["serve"]
        and lines[-1] == "seed 7"
        and any(line.startswith("ttft_ms p90") for line in lines)
    )
    assert table({"a": {"x": 1}, "b": {"x": 2.5, "y": None}}).splitlines()[1].split() == ["x", "1", "2.5"]


def test_what_is_refused_is_counted_by_status(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["serve", "--url", url, "--num-requests", "3", "--input-tokens", "5000", "--output-tokens", "1"]
    found = bench(capsys, *argv, code=1)["serve"]
    assert found["completed"] == 0 and found["errors"] == {"400": 3} and "2048" in found["first_error"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serv"], "say what to measure: serve, prefix, json, tools; got 'serv'"),
        (["serve", "--num-requests", "0"], "--num-requests must be at least 1"),
        (["serve", "--request-rate", "0"], "--request-rate must be positive"),
        (["serve", "--spread", "2"], "--spread must be between 0 and 1"),
        (["serve", "--url", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
        (["serve", "--route", "odd"], "'odd'"),
    ],
)
def test_mistakes_of_a_measurement_are_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sglite bench: ") and said in line


def measure(pace: Pace, count: int, seconds: float) -> tuple[list[Answer], int]:
    """Jobs that take ``seconds`` each, and how many ran at a time."""
    running = most = 0

    async def send(answer: Answer, now: Callable[[], float]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(seconds)
        running -= 1
        answer.first = answer.last = now()
        answer.status = "ok"

    answers, _ = asyncio.run(run([Job("/", {}) for _ in range(count)], send, pace))
    return answers, most


def test_a_closed_loop_keeps_so_many_at_a_time() -> None:
    assert measure(Pace(3), 10, 0.005)[1] == 3


def test_an_open_loop_waits_for_nobody_and_counts_from_when_a_request_was_due() -> None:
    answers, most = measure(Pace(None, rate=1000.0, seed=1), 20, 0.1)
    assert most > 10 and all(answer.first is not None and answer.first - answer.due >= 0.1 for answer in answers)
    dues = [answer.due for answer in answers]
    assert dues == [answer.due for answer in measure(Pace(None, 1000.0, 1), 20, 0.0)[0]] == sorted(dues)
    held, most = measure(Pace(1, rate=1000.0, seed=1), 5, 0.05)
    assert most == 1 and held[-1].last is not None and held[-1].last - held[-1].due > 0.15


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(1, 100))
def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    found = quantile(values, percent)
    assert found in values and sum(value <= found for value in values) * 100 >= percent * len(values)
    assert all(sum(value <= low for value in values) * 100 < percent * len(values) for low in values if low < found)


def test_an_event_of_several_tokens_is_several_short_gaps() -> None:
    """The time between tokens is shared out among those that came together."""
    answer = Answer(Job(NATIVE, {}), 0.0)
    reader = _Native(answer)
    for at, count in ((1.0, 2), (2.0, 3), (2.5, 3), (4.0, 7)):
        _timed(answer, reader.read({"text": "", "meta_info": {"completion_tokens": count}}), at)
    assert answer.gaps == [(1.0, 1), (2.0, 4)] and (answer.first, answer.last) == (1.0, 4.0)
    answer.status = "ok"
    assert summary([answer], 4.0, {}, {})["itl_ms"] == {"p50": 500.0, "p90": 1000.0, "p99": 1000.0}


def test_an_empty_run_has_no_percentiles() -> None:
    failed = Answer(Job("/", {}), 0.0, status="503", error="busy")
    found = summary([failed, failed], 1.0, {}, {})
    assert quantile([], 50) is None and found["ttft_ms"] == {} and found["errors"] == {"503": 2}


@given(st.integers(0, 2**32))
def test_made_schemas_are_json_schema_and_the_check_agrees_with_a_reference(seed: int) -> None:
    rng = random.Random(seed)
    wanted = data.schema(rng)
    jsonschema.Draft202012Validator.check_schema(wanted)
    for value in (_sample(rng, wanted), _spoilt(rng, _sample(rng, wanted)), None, [], 1.0, True):
        assert data.valid(value, wanted) == jsonschema.Draft202012Validator(wanted).is_valid(value), value
    assert data.schema(random.Random(seed)) == data.schema(random.Random(seed))
    names = [tool["function"]["name"] for tool in data.tools(rng, 10)]
    assert len(set(names)) == 10


def _sample(rng: random.Random, wanted: dict[str, Any]) -> Any:
    if "enum" in wanted:
        return rng.choice(wanted["enum"])
    if wanted["type"] == "object":
        return {name: _sample(rng, inner) for name, inner in wanted["properties"].items()}
    if wanted["type"] == "array":
        return [_sample(rng, wanted["items"]) for _ in range(rng.randint(wanted["minItems"], wanted["maxItems"]))]
    if wanted["type"] == "string":
        return "x" * rng.randint(0, wanted["maxLength"])
    return rng.random() < 0.5 if wanted["type"] == "boolean" else rng.randint(0, wanted["maximum"])


def _spoilt(rng: random.Random, value: dict[str, Any]) -> dict[str, Any]:
    name = rng.choice(list(value))
    other = rng.choice([None, -1, 10**6, 3.0, True, "x" * 40, [], {}])
    return {key: (other if key == name else kept) for key, kept in value.items()}
