"""What OpenAI's, Anthropic's and vLLM's clients may send beside the everyday, and what they then rely on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from served import Served, start

import sglite as sgl

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Tell me about ships."}]
NAMES = ("north", "south", "east")


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


TOOLS = [tool(name) for name in NAMES]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with sgl.Engine(dtype="float32", max_total_tokens=16384, num_threads=1, show_progress=False) as engine:
        running, url, thread = start(engine, served_model_name=("demo", "other"))
        with httpx.Client(base_url=url, timeout=60) as http:
            yield Served(url, engine, http)
        running.should_exit = True
        thread.join(10)


def calls(answer: Any) -> list[tuple[str, Any]]:
    made = [call["function"] for call in answer["choices"][0]["message"]["tool_calls"]]
    return [(one["name"], json.loads(one["arguments"])) for one in made]


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [tool(name) for name in names]}}


def test_of_the_tools_only_allowed_ones_are_called(server: Served) -> None:
    body = {"messages": MESSAGES, "tools": TOOLS, "temperature": 2.0, "max_tokens": 120}
    seen = set()
    for seed in range(8):
        found = server.post(CHAT, {**body, "seed": seed, "tool_choice": allowed("required", "south", "east")})
        seen |= {name for name, _ in calls(found)}
    assert seen <= {"south", "east"} and seen
    flat = [{"type": "function", "name": name} for name in NAMES]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "east"}]}
    response = server.post(
        "/v1/responses",
        {"input": "Go.", "tools": [{**one, "parameters": {}} for one in flat], "tool_choice": choice, "seed": 1},
    )
    assert {item["name"] for item in response["output"] if item["type"] == "function_call"} == {"east"}
    prompts = [
        server.post(CHAT, {**body, "max_tokens": 1, "tool_choice": choice})["usage"]["prompt_tokens"]
        for choice in ("auto", allowed("auto", "east"))
    ]
    assert prompts[0] == prompts[1], "what is allowed does not change the prompt, which stays in the cache"


@pytest.mark.parametrize(
    "choice",
    [
        allowed("required"),
        allowed("required", "west"),
        allowed("sometimes", "east"),
        {"type": "allowed_tools"},
        {"type": "allowed_tools", "allowed_tools": 5},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": ["east"]}},
    ],
    ids=str,
)
def test_a_wrong_choice_is_named(server: Served, choice: Any) -> None:
    error = server.post(CHAT, {"messages": MESSAGES, "tools": TOOLS, "tool_choice": choice}, 400)["error"]
    assert error["param"].startswith("tool_choice")


def test_a_function_without_parameters_gets_none(server: Served) -> None:
    for seed in range(4):
        body = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required", "seed": seed, "max_tokens": 120}
        assert all(given == {} for _, given in calls(server.post(CHAT, {**body, "temperature": 2.0})))


def test_stop_strings_do_not_break_calls_off(server: Served) -> None:
    body = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 120, "stop": ["}", "name", "<tool", "\n"]}
    answer = server.http.post(CHAT, json={**body, "tool_choice": "required"})
    found = answer.json()
    assert found["choices"][0]["finish_reason"] == "tool_calls" and all(given == {} for _, given in calls(found))
    assert answer.headers["X-Sglite-Ignored"] == "stop"


def test_calls_of_the_time_before_tools_are_read(server: Served) -> None:
    function = {"name": "north", "arguments": '{"far": true}'}
    before = {"role": "assistant", "content": None, "function_call": function}
    after = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }
    asked = [
        server.post(CHAT, {"messages": [*MESSAGES, one, {"role": role, "content": "12", **more}], "temperature": 0})
        for one, role, more in ((before, "function", {"name": "north"}), (after, "tool", {"tool_call_id": "c"}))
    ]
    assert asked[0]["choices"][0]["message"] == asked[1]["choices"][0]["message"]
    assert asked[0]["usage"]["prompt_tokens"] == asked[1]["usage"]["prompt_tokens"]


@pytest.mark.parametrize("name", ["bad_words", "repetition_detection"])
def test_what_vllm_offers_and_we_do_not_is_refused(server: Served, name: str) -> None:
    assert server.post(CHAT, {"messages": MESSAGES, name: 1}, 400)["error"]["param"] == name
    assert server.post("/v1/completions", {"prompt": "x", name: 1}, 400)["error"]["param"] == name


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_streamed_ids_add_up_and_the_prompts_come_first(server: Served, path: str) -> None:
    body: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 12, "ignore_eos": True, "n": 2}
    body |= {"return_token_ids": True, **({"messages": MESSAGES} if path == CHAT else {"prompt": "Ships"})}
    whole = server.post(path, body)
    with server.http.stream("POST", path, json={**body, "stream": True}) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    parts = [(chunk, choice) for chunk in chunks for choice in chunk["choices"]]
    for index, choice in enumerate(whole["choices"]):
        mine = [part for part in parts if part[1]["index"] == index]
        assert [i for _, part in mine for i in part.get("token_ids") or []] == choice["token_ids"]
        assert len(choice["token_ids"]) == 12
    where = [chunk if path == CHAT else choice for chunk, choice in parts]
    given = [one["prompt_token_ids"] for one in where if "prompt_token_ids" in one]
    expected = whole["prompt_token_ids"] if path == CHAT else whole["choices"][0]["prompt_token_ids"]
    assert given == [expected] * (1 if path == CHAT else 2) and expected


def test_the_items_of_a_response_come_in_pages(server: Served) -> None:
    said = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"word {i}"} for i in range(5)]
    made = server.post("/v1/responses", {"input": said, "max_output_tokens": 2})
    items = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none").responses.input_items
    texts = [f"word {i}" for i in range(5)]
    for order in ("asc", "desc"):
        found = [item.content for item in items.list(made["id"], limit=2, order=order)]  # type: ignore[arg-type]
        assert found == (texts if order == "asc" else texts[::-1])
    assert [item.content for item in items.list(made["id"])] == texts[::-1]
    for query in ("limit=0", "limit=x", "order=up", "after=nothing"):
        path = f"/v1/responses/{made['id']}/input_items?{query}"
        assert server.http.get(path).json()["error"]["param"] == query.partition("=")[0]
    assert server.http.get(f"/v1/responses/{made['id']}?stream=true").status_code == 400


def test_what_a_response_does_not_heed_is_said(server: Served) -> None:
    body = {
        "input": "x", "max_output_tokens": 1, "truncation": "auto", "text": {"verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
    }  # fmt: skip
    answer = server.http.post("/v1/responses", json=body)
    named = set(answer.headers["X-Sglite-Ignored"].split(", "))
    assert answer.status_code == 200 and named == {"truncation", "text.verbosity", "reasoning.summary"}
    for name, value in (("truncation", "middle"), ("metadata", "x")):
        assert server.post("/v1/responses", {**body, name: value}, 400)["error"]["param"] == name


def test_models_are_listed_in_the_shape_of_who_asks(server: Served) -> None:
    ours = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none").models.list().data
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    theirs = list(client.models.list())
    assert [one.id for one in ours] == [one.id for one in theirs] == ["demo", "other"]
    assert theirs[0].type == "model" and theirs[0].created_at.timestamp() == ours[0].created
    assert client.models.retrieve("other").display_name == "other"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("nobody")
