"""Anthropic: the Messages API's own shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from paid_api import Failure, PaidApi, Talk, ask, steps_of, with_stream

from sglite.lang.backends.anthropic import Anthropic, most_tokens
from sglite.lang.backends.anthropic_messages import system_and_messages
from sglite.lang.backends.api import ApiError
from sglite.lang.backends.retrying import RetryPolicy
from sglite.lang.errors import BackendError, Unsupported
from sglite.lang.messages import ToolCall, ToolSpec

pytest.importorskip("anthropic")
USAGE = {"input_tokens": 4, "output_tokens": 6, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 1}
BASE = {"model": "claude-x", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 128}


@pytest.fixture
def api() -> Iterator[PaidApi]:
    server = PaidApi()
    server.answer = lambda path, body: message("ok")
    yield server
    server.close()


def claude(api: PaidApi, model: str = "claude-x", **options: Any) -> Anthropic:
    options.setdefault("retry", RetryPolicy(max_tries=1))
    return Anthropic(model, base_url=api.url, api_key="key", **options)


def message(text: str, *blocks: dict[str, Any], reason: str = "end_turn", stop: str | None = None) -> dict[str, Any]:
    content = [{"type": "text", "text": text}, *blocks]
    head = {"id": "m1", "type": "message", "role": "assistant", "model": "claude-x"}
    return {**head, "content": content, "stop_reason": reason, "stop_sequence": stop, "usage": USAGE}


def events(*blocks: tuple[dict[str, Any], list[dict[str, Any]]], reason: str = "end_turn") -> list[dict[str, Any]]:
    """A stream of blocks, each as it starts and its deltas."""
    start = {**message("", reason=reason), "content": [], "usage": {"input_tokens": 4, "output_tokens": 1}}
    told: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    for index, (block, deltas) in enumerate(blocks):
        told.append({"type": "content_block_start", "index": index, "content_block": block})
        told += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        told.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [*told, {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 6}}, {"type": "message_stop"}]


def text_block(*parts: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return {"type": "text", "text": ""}, [{"type": "text_delta", "text": part} for part in parts]


def test_a_request_has_the_messages_and_the_limit_and_nothing_else(api: PaidApi) -> None:
    (output,) = ask(claude(api))
    assert api.seen == [("/v1/messages", BASE)]
    assert output.text == "ok" and output.meta["finish_reason"] == {"type": "stop"}
    assert (output.meta["prompt_tokens"], output.meta["cached_tokens"], output.meta["completion_tokens"]) == (15, 10, 6)


def test_what_is_set_is_sent(api: PaidApi) -> None:
    api.answer = lambda path, body: message("ok", reason="stop_sequence", stop="b")
    (output,) = ask(claude(api), temperature=0.2, top_k=5, stop=("a", "b"), max_new_tokens=9)
    sent = {"max_tokens": 9, "stop_sequences": ["a", "b"], "temperature": 0.2, "top_k": 5}
    assert api.bodies == [{**BASE, **sent}] and output.meta["finish_reason"] == {"type": "stop", "matched": "b"}


@pytest.mark.parametrize("name", ["frequency_penalty", "seed", "min_p", "regex", "return_logprob"])
def test_what_the_api_cannot_do_is_refused_by_name(api: PaidApi, name: str) -> None:
    value = {"regex": "a", "return_logprob": True}.get(name, 1)
    with pytest.raises(Unsupported, match=rf"claude-x\) takes no {name} "):
        ask(claude(api), **{name: value})
    assert api.seen == []


def test_the_rest_of_the_context_is_the_models_maximum_and_long_answers_are_streamed(api: PaidApi) -> None:
    api.answer = lambda path, body: events(text_block("a", "b"))
    steps = steps_of(claude(api, "claude-haiku-4-5"), max_new_tokens=-1)
    assert [outputs[0].text for outputs in steps] == ["ab"]  # the program did not ask for a stream
    assert (api.bodies[0]["max_tokens"], api.bodies[0]["stream"]) == (64_000, True)
    ask(claude(api, max_output_tokens=20_000), max_new_tokens=-1)
    assert api.bodies[1]["max_tokens"] == 20_000


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ("claude-3-haiku-20240307", 4_096),
        ("claude-3-5-sonnet-20241022", 8_192),
        ("claude-3-7-sonnet-latest", 64_000),
        ("claude-sonnet-4-20250514", 64_000),
        ("claude-opus-4-20250514", 32_000),
        ("claude-opus-4-1", 32_000),
        ("claude-opus-4-1-20250805", 32_000),
        ("claude-opus-4-5", 64_000),
        ("claude-haiku-4-5-20251001", 64_000),
        ("claude-opus-4-6", 128_000),
        ("claude-sonnet-5-5", 128_000),
        ("anthropic.claude-3-5-haiku-20241022-v1:0", 8_192),
        ("claude-next", 32_000),
    ],
)
def test_maxima_of_known_models(model: str, most: int) -> None:
    assert most_tokens(model) == most


def test_system_turns_are_sent_apart_and_the_history_stays_whole(api: PaidApi) -> None:
    told = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    talk = Talk(list(told))
    for _ in range(2):
        ask(claude(api), talk)
    assert talk.messages == told
    assert [(body["system"], body["messages"]) for body in api.bodies] == [("be brief", told[1:])] * 2


def test_calls_and_results_of_tools_become_blocks() -> None:
    def call(id: str, arguments: str) -> dict[str, Any]:
        return {"id": id, "type": "function", "function": {"name": "add", "arguments": arguments}}

    system, rest = system_and_messages(
        [
            {"role": "system", "content": "a"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "wait", "tool_calls": [call("1", '{"x": 1}'), call("2", "{oops")]},
            {"role": "tool", "tool_call_id": "1", "name": "add", "content": "2"},
            {"role": "tool", "tool_call_id": "2", "name": "add", "content": "bad"},
            {"role": "system", "content": "b"},
            {"role": "assistant", "content": "", "tool_calls": [call("3", "")]},
            {"role": "tool", "tool_call_id": "3", "name": "add", "content": "0"},
        ]
    )
    assert system == "a\n\nb" and [m["role"] for m in rest] == ["user", "assistant", "user", "assistant", "user"]
    use = {"type": "tool_use", "name": "add"}
    assert rest[1]["content"] == [
        {"type": "text", "text": "wait"},
        {**use, "id": "1", "input": {"x": 1}},
        {**use, "id": "2", "input": {"arguments": "{oops"}},
    ]
    assert [[block["tool_use_id"] for block in rest[i]["content"]] for i in (2, 4)] == [["1", "2"], ["3"]]
    assert rest[3]["content"] == [{**use, "id": "3", "input": {}}]


def test_tools_are_offered_and_calls_read(api: PaidApi) -> None:
    tool = ToolSpec("add", "adds", {"type": "object"})
    use = {"type": "tool_use", "id": "t", "name": "add", "input": {"x": "é"}}
    api.answer = lambda path, body: message("let me see", use, reason="tool_use")
    (output,) = ask(claude(api), tools=(tool,), tool_choice="required")
    assert output.tool_calls == (ToolCall("t", "add", '{"x": "é"}'),) and output.text == "let me see"
    assert output.meta["finish_reason"] == {"type": "tool_calls"} and api.bodies[0]["tool_choice"] == {"type": "any"}
    assert api.bodies[0]["tools"] == [{"name": "add", "description": "adds", "input_schema": {"type": "object"}}]


def test_streams_are_cumulative_text_with_thinking_and_calls_beside(api: PaidApi) -> None:
    api.answer = lambda path, body: events(
        ({"type": "thinking", "thinking": "", "signature": ""}, [{"type": "thinking_delta", "thinking": "hm"}]),
        text_block("one", " two"),
        (
            {"type": "tool_use", "id": "t", "name": "add", "input": {}},
            [{"type": "input_json_delta", "partial_json": part} for part in ('{"x"', ": 1}")],
        ),
        reason="tool_use",
    )
    backend = claude(api, thinking={"type": "enabled", "budget_tokens": 1024})
    steps = steps_of(backend, stream=True)
    assert [outputs[0].text for outputs in steps] == ["one", "one two", "one two"]
    (output,) = steps[-1]
    assert output.tool_calls == (ToolCall("t", "add", '{"x": 1}'),) and output.meta["reasoning_content"] == "hm"
    assert backend.token_usage.completion_tokens == 6 and api.bodies[0]["thinking"]["budget_tokens"] == 1024


def test_schemas_go_into_the_output_config_and_values_come_back_out(api: PaidApi) -> None:
    api.in_turn(message('{"a": 1}'), message('{"answer": "7"}'))
    assert ask(claude(api), json_schema='{"type": "object"}')[0].text == '{"a": 1}'
    assert api.bodies[0]["output_config"]["format"] == {"type": "json_schema", "schema": {"type": "object"}}
    assert ask(claude(api), regex="[0-9]", schema_of=int)[0].text == "7"


def test_several_outputs_are_several_requests(api: PaidApi) -> None:
    backend = claude(api)
    outputs = ask(backend, n=3)
    assert [o.text for o in outputs] == ["ok"] * 3 and api.bodies == [BASE] * 3
    assert backend.token_usage.requests == 3


def test_select_decides(api: PaidApi) -> None:
    api.answer = lambda path, body: message(json.dumps({"choice": "b"}))

    async def use(stream: Any) -> Any:
        return await stream.score("v", ["a", "b"], unconditional=False, conversation=Talk())

    scores = with_stream(claude(api), use)
    assert scores.normalized_prompt_logprobs[1] == 0.0 > scores.normalized_prompt_logprobs[0]
    assert "temperature" not in api.bodies[0] and "output_config" in api.bodies[0]


def test_refusals_and_errors_have_the_providers_words(api: PaidApi) -> None:
    api.in_turn(message("I", reason="refusal"), Failure(529, "Overloaded"))
    with pytest.raises(BackendError, match="refused to answer"):
        ask(claude(api))
    with pytest.raises(ApiError, match="Anthropic API, claude-x: HTTP 529: Overloaded") as caught:
        ask(claude(api))
    assert caught.value.status == 529
    api.in_turn(Failure(529), message("ok"))
    assert ask(claude(api, retry=RetryPolicy(first_s=0.001)))[0].text == "ok"
