"""`thinking_token_budget`: exactly so many tokens between the marks, whoever has opened the thought."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from served import start
from told_model import told_engine

from sglite.runtime.engine.engine import Engine

CHAT = "/v1/chat/completions"
THOUGHT = "one two three four five six seven eight nine ten"
ANSWER = "The answer."
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def say(prompt: str) -> str:
    if prompt.endswith("<think>\n"):
        return f"{THOUGHT}\n</think>\n\n{ANSWER}"
    return f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}" if "ponder" in prompt else ANSWER


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with told_engine(say) as engine:
        yield engine


@pytest.fixture(scope="module")
def http(engine: Engine) -> Iterator[httpx.Client]:
    server, url, thread = start(engine)
    with httpx.Client(base_url=url, timeout=60) as http:
        yield http
    server.should_exit = True
    thread.join(10)


def body(text: str = "ponder", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 60, "return_token_ids": True, **fields}


def ask(http: httpx.Client, status: int = 200, **fields: Any) -> Any:
    response = http.post(CHAT, json=body(**fields))
    assert response.status_code == status, response.text
    return response.json()


def thought(engine: Engine, found: Any) -> int | None:
    """Tokens between the marks, of which the first may be in the prompt."""
    assert engine.tokenizer is not None
    [begin], [end] = engine.tokenizer.encode("<think>"), engine.tokenizer.encode("</think>")
    ids = found["prompt_token_ids"] + found["choices"][0]["token_ids"]
    return ids.index(end) - ids.index(begin) - 1 if begin in ids else None


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("more", [{}, {"response_format": {"type": "json_object"}}, {"tools": [TOOL]}], ids=str)
def test_a_thought_has_as_many_tokens_as_it_may(
    http: httpx.Client, engine: Engine, opened: bool, more: dict[str, Any]
) -> None:
    if opened:
        more = {**more, "chat_template_kwargs": {"enable_thinking": True}}
    free = thought(engine, ask(http, **more))
    assert free is not None and free > 10
    for budget in (1, 5, free, free + 1, -1):
        found = ask(http, thinking_token_budget=budget, **more)
        assert thought(engine, found) == (free if budget == -1 else min(budget, free))
        message = found["choices"][0]["message"]
        assert THOUGHT.startswith(message["reasoning_content"] or "")
        assert "response_format" not in more or json.loads(message["content"]) is not None
    assert thought(engine, ask(http, thinking_token_budget=0, **more)) == int(opened)  # the prompt's line break


def test_what_does_not_think_is_left_alone(http: httpx.Client, engine: Engine) -> None:
    for more in ({"text": "say"}, {"chat_template_kwargs": {"enable_thinking": False}}):
        without, bounded = ask(http, **more), ask(http, thinking_token_budget=1, **more)
        assert bounded["choices"] == without["choices"] and ANSWER in bounded["choices"][0]["message"]["content"]


def test_a_limit_still_cuts_the_text_off(http: httpx.Client) -> None:
    choice = ask(http, thinking_token_budget=40, max_tokens=9)["choices"][0]
    assert choice["finish_reason"] == "length" and len(choice["token_ids"]) == 9


def test_streams_and_responses(http: httpx.Client, engine: Engine) -> None:
    whole = ask(http, thinking_token_budget=5)["choices"][0]["message"]["reasoning_content"]
    told, ids = "", list[int]()
    with http.stream("POST", CHAT, json=body(thinking_token_budget=5, stream=True)) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                told += choice["delta"].get("reasoning_content") or ""
                ids += choice.get("token_ids") or []
    assert told == whole != "" and engine.tokenizer is not None
    assert ids.index(engine.tokenizer.encode("</think>")[0]) == 6
    asked = {"input": "ponder", "max_output_tokens": 60, "thinking_token_budget": 5}
    found = http.post("/v1/responses", json=asked).json()
    assert found["output"][0]["type"] == "reasoning" and found["output"][0]["content"][0]["text"] == whole


def test_messages(http: httpx.Client) -> None:
    """Anthropic's ``budget_tokens``."""
    whole = ask(http, thinking_token_budget=5)["choices"][0]["message"]["reasoning_content"]
    name = http.get("/v1/models").json()["data"][0]["id"]
    asked = {"model": name, "max_tokens": 60, "messages": [{"role": "user", "content": "ponder"}]}
    for thinking, shown in (({"type": "enabled", "budget_tokens": 5}, whole), ({"type": "enabled"}, THOUGHT)):
        response = http.post("/v1/messages", json={**asked, "thinking": thinking})
        first = response.json()["content"][0]
        assert first["type"] == "thinking" and first["thinking"].strip() == shown.strip()
        assert "X-Sglite-Ignored" not in response.headers
    idle = http.post("/v1/messages", json={**asked, "thinking": {"type": "disabled", "budget_tokens": 5}})
    assert idle.headers["X-Sglite-Ignored"] == "thinking.budget_tokens"


def test_what_cannot_be_is_refused(http: httpx.Client, engine: Engine) -> None:
    for value in (-2, 0.6, "5", True):
        assert ask(http, 400, thinking_token_budget=value)["error"]["param"] == "thinking_token_budget"
    completion = {"prompt": "a", "max_tokens": 2}
    refused = http.post("/v1/completions", json={**completion, "thinking_token_budget": 5})
    assert refused.status_code == 400 and "/v1/chat/completions" in refused.json()["error"]["message"]
    assert http.post("/v1/completions", json={**completion, "thinking_token_budget": -1}).status_code == 200
    server, url, thread = start(engine, reasoning_parser="none")
    with httpx.Client(base_url=url, timeout=60) as unknowing:
        error = ask(unknowing, 400, thinking_token_budget=5)["error"]
        assert error["param"] == "thinking_token_budget" and "--reasoning-parser" in error["message"]
        assert ask(unknowing)["choices"]
    server.should_exit = True
    thread.join(10)
