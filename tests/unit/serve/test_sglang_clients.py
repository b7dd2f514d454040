"""What SGLang's own clients look for in answers and errors, beside what OpenAI's shapes have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from served import Served

from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields
from sglite.runtime.serve.openai.effort import read_effort
from sglite.runtime.serve.streaming import LINES, OPENAI

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PROMPT = "<|im_start|>user\nWhat is the weather in Paris?<|im_end|>\n<|im_start|>assistant\n"
CLOSING = "</think>"


def chat(server: Served, status: int = 200, **fields: Any) -> Any:
    return server.post(CHAT, {"messages": MESSAGES, "temperature": 0, "max_tokens": 12, **fields}, status)


def deltas(server: Served, **fields: Any) -> list[Any]:
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 24, "stream": True, **fields}
    with server.http.stream("POST", CHAT, json=body) as response:
        assert response.status_code == 200, response.read()
        found = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
    return [json.loads(line) for line in found]


def generate(server: Served, status: int = 200, **fields: Any) -> Any:
    return server.post("/generate", {"sampling_params": {"temperature": 0, "max_new_tokens": 8}, **fields}, status)


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "name"),
    [
        (CHAT, {"messages": MESSAGES, "temperature": -1}, 400, "BadRequestError"),
        (CHAT, {"messages": MESSAGES, "model": "ghost"}, 404, "NotFoundError"),
        ("/generate", {"text": 5}, 400, "BadRequestError"),
        ("/v1/nowhere", {}, 404, "NotFoundError"),
    ],
)
def test_an_error_is_said_in_sglangs_flat_shape_too(
    server: Served, path: str, body: dict[str, Any], status: int, name: str
) -> None:
    found = server.post(path, body, status)
    assert set(found) == {"object", "message", "type", "param", "code", "error"}
    assert (found["object"], found["type"], found["code"]) == ("error", name, status)
    assert (found["message"], found["param"]) == (found["error"]["message"], found["error"]["param"])


def test_within_a_stream_an_error_is_as_its_clients_read_it() -> None:
    refused = Refused(503, "gone", code="engine_dead")
    assert set(json.loads(OPENAI.failed(refused)[6:])) == {"error"}
    assert json.loads(LINES.failed(refused)) == {"error": "gone"}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (
            CHAT,
            {"messages": [{"role": "user", "content": "hello " * 3000}]},
            "is longer than the model's context length",
        ),
        ("/generate", {"text": "a" * 100_000}, "is longer than the model's context length"),
        (CHAT, {"messages": MESSAGES, "max_tokens": 4000}, "max_completion_tokens is too large"),
        ("/v1/responses", {"input": "a", "max_output_tokens": 4000}, "max_output_tokens is too large"),
        ("/generate", {"text": "a", "return_logprob": True, "token_ids_logprob": [-1]}, "out-of-vocabulary"),
        (
            "/generate",
            {"text": "a", "return_logprob": True, "token_ids_logprob": [[0], [1, 2]]},
            "flat list of integers",
        ),
        ("/generate", {"text": ["a", "b"], "rid": ["one", "one"]}, "Duplicate request ID"),
        (
            "/v1/score",
            {"query": "a", "items": ["b"], "label_token_ids": [999999]},
            "Token ID 999999 is out of vocabulary",
        ),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "Exactly one"),
        (
            CHAT,
            {"messages": MESSAGES, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "Tool 'x' not found in tools list",
        ),
        (
            CHAT,
            {
                "messages": MESSAGES,
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "unknown"}}}],
                "tool_choice": "required",
            },
            "invalid 'parameters' schema",
        ),
    ],
)
def test_errors_use_the_words_that_sglangs_clients_look_for(
    server: Served, path: str, body: dict[str, Any], words: str
) -> None:
    assert words in server.post(path, body, 400)["message"]


def test_a_limit_that_is_too_large_is_named_as_the_client_may_have_sent_it(server: Served) -> None:
    assert chat(server, 400, max_tokens=4000)["param"] == "max_tokens"
    found = server.post("/v1/responses", {"input": "a", "max_output_tokens": 4000}, 400)
    assert found["param"] == "max_output_tokens"


def test_what_is_no_name_of_a_response_is_a_400(server: Served) -> None:
    body = {"input": "a", "previous_response_id": "bad"}
    assert server.post("/v1/responses", body, 400)["error"]["code"] == "previous_response_not_found"
    server.post("/v1/responses", {**body, "previous_response_id": "resp_nothing"}, 404)


# --- /generate --------------------------------------------------------------------------------------------------


def test_a_thoughts_tokens_are_counted_up_to_its_end(server: Served) -> None:
    end = server.engine.tokenizer.encode(CLOSING)  # type: ignore[union-attr]
    body = {"text": PROMPT, "sampling_params": {"temperature": 0, "max_new_tokens": 40}, "require_reasoning": True}
    found = server.post("/generate", body)
    ids = found["output_ids"]
    at = next((i + len(end) for i in range(len(ids)) if ids[i : i + len(end)] == end), len(ids))
    assert found["meta_info"]["reasoning_tokens"] == at
    with server.http.stream("POST", "/generate", json={**body, "stream": True}) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    assert [event["meta_info"]["reasoning_tokens"] for event in events] == [
        min(at, len(event["output_ids"])) for event in events
    ]
    assert "reasoning_tokens" not in generate(server, text="a")["meta_info"]


def test_a_constraint_waits_for_the_end_of_a_required_thought(server: Served) -> None:
    sampling = {"temperature": 0, "max_new_tokens": 40, "regex": "yes|no", "logit_bias": {}}
    free = server.post("/generate", {"text": PROMPT + "<think>\n", "sampling_params": sampling})
    assert free["text"] in ("yes", "no")
    thought = server.post(
        "/generate", {"text": PROMPT + "<think>\n", "sampling_params": sampling, "require_reasoning": True}
    )
    assert not thought["text"].startswith(("yes", "no"))
    _, mark, tail = thought["text"].partition(CLOSING)
    assert not mark or tail in ("yes", "no", "")


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_are_said_as_ids_where_that_is_asked(server: Served, stream: bool) -> None:
    body = {"input_ids": [[41, 42], [43]], "return_prompt_token_ids": True, "sampling_params": {"max_new_tokens": 2}}
    if not stream:
        assert [one["prompt_token_ids"] for one in server.post("/generate", body)] == [[41, 42], [43]]
        return
    with server.http.stream("POST", "/generate", json={**body, "stream": True}) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    assert {event["index"]: event["prompt_token_ids"] for event in events} == {0: [41, 42], 1: [43]}


def test_the_model_may_be_named_and_must_be_the_served_one(server: Served) -> None:
    assert generate(server, text="a", model="default")["text"] == generate(server, text="a")["text"]
    assert generate(server, 404, text="a", model="ghost")["error"]["code"] == "model_not_found"


# --- chat and completions ---------------------------------------------------------------------------------------


def test_keys_that_sglang_always_has_are_always_there(server: Served) -> None:
    found = chat(server)
    assert found["choices"][0]["message"]["tool_calls"] is None
    assert found["usage"]["reasoning_tokens"] == found["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 2})["usage"]["reasoning_tokens"] == 0


def test_a_turn_that_ends_with_calls_was_stopped_by_nothing(server: Served) -> None:
    choice = chat(server, max_tokens=200, tools=[TOOL], tool_choice="required")["choices"][0]
    assert (choice["finish_reason"], choice["matched_stop"]) == ("tool_calls", None)
    assert choice["message"]["tool_calls"]


def test_what_the_weights_are_called_is_said_of_the_first_choice(server: Served) -> None:
    completion = server.post("/v1/completions", {"prompt": "Hello", "max_tokens": 3, "ignore_eos": True})
    for whole in (completion, chat(server, n=2, max_tokens=3, ignore_eos=True)):
        span = {"version": "default", "start": 0, "end": 3}
        assert whole["metadata"] == {"weight_version": "default", "weight_versions": [span]}


def test_chat_says_its_prompt_as_ids_with_each_choice(server: Served) -> None:
    ids = server.post("/tokenize", {"messages": MESSAGES})["tokens"]
    for name in ("return_prompt_token_ids", "return_token_ids"):
        found = chat(server, n=2, **{name: True})
        assert [choice["prompt_token_ids"] for choice in found["choices"]] == [ids, ids]
    assert "prompt_token_ids" not in chat(server)["choices"][0]
    refused = chat(server, 400, return_prompt_token_ids=True, stream=True)
    assert refused["param"] == "return_prompt_token_ids"


def test_where_cached_tokens_were_is_said_where_there_are_any(server: Served) -> None:
    server.post("/flush_cache", {})
    body = {"prompt": "Nobody has asked this before", "max_tokens": 2, "return_cached_tokens_details": True}
    assert "sglext" not in server.post("/v1/completions", body)
    found = server.post("/v1/completions", body)
    cached = found["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    assert found["sglext"] == {"cached_tokens_details": {"device": cached, "host": 0}}
    with server.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    assert [event for event in events if "sglext" in event] == events[-1:] and events[-1]["choices"] == []
    chat(server)
    assert chat(server, return_cached_tokens_details=True)["sglext"]["cached_tokens_details"]["device"] > 0


def test_a_delta_with_log_probabilities_has_text_even_if_it_is_empty(server: Served) -> None:
    for chunk in deltas(server, logprobs=True, top_logprobs=2, max_tokens=40, return_token_ids=True):
        (choice,) = chunk["choices"]
        delta = choice["delta"]
        told = [delta.get("content"), delta.get("reasoning_content"), choice["finish_reason"]]
        assert any(isinstance(one, str) for one in told), chunk


def test_steps_that_show_nothing_may_tell_the_usage(server: Served) -> None:
    def quiet(steps: str | None, **options: Any) -> list[int]:
        """Output tokens by chunks that show nothing else; of a thought that is shown in one piece."""
        asked = {"continuous_usage_stats": True, **options, **({} if steps is None else {"step_usage_chunks": steps})}
        chunks = deltas(server, reasoning_effort="low", stream_reasoning=False, stream_options=asked)
        return [
            chunk["usage"]["completion_tokens"]
            for chunk in chunks
            for choice in chunk["choices"]
            if not any(choice["delta"].values()) and "role" not in choice["delta"] and not choice["finish_reason"]
        ]

    assert quiet(None) == quiet("off") == quiet("all", continuous_usage_stats=False) == []
    for steps in ("first_token", "all"):
        counts = quiet(steps)
        assert counts and counts == sorted(counts) and counts[-1] < 24
    asked = {"stream_options": {"step_usage_chunks": "sometimes"}, "stream": True}
    assert chat(server, 400, **asked)["param"] == "stream_options.step_usage_chunks"


def test_after_the_first_news_no_step_tells_the_usage_alone(server: Served) -> None:
    body = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 48}
    options = {"continuous_usage_stats": True, "step_usage_chunks": "first_token"}
    chunks = deltas(server, **body, stream_options=options)
    shows = [any(chunk["choices"][0]["delta"].get(name) for name in ("content", "tool_calls")) for chunk in chunks]
    assert all(shows[shows.index(True) : -1])


@pytest.mark.parametrize(("asked", "rows"), [(False, 0), (True, 2), (None, 0)])
def test_a_completion_may_be_asked_for_log_probabilities_as_a_chat_is(server: Served, asked: Any, rows: int) -> None:
    found = server.post("/v1/completions", {"prompt": "a", "max_tokens": 2, "ignore_eos": True, "logprobs": asked})
    said = found["choices"][0]["logprobs"]
    assert (said is None) == (rows == 0)
    if said is not None:  # the likeliest token and the one that is there, which may be the same
        assert [1 <= len(top) <= 2 for top in said["top_logprobs"]] == [True, True]


def turns(arguments: str = "{}", result: Any = "sunny") -> list[dict[str, Any]]:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": result},
    ]


@pytest.mark.parametrize("arguments", ['"Paris"', '["Paris"]', "7"])
def test_arguments_of_earlier_calls_are_objects(server: Served, arguments: str) -> None:
    error = chat(server, 400, messages=turns(arguments))
    assert "tool_calls[0].function.arguments must be a JSON object" in error["message"]


def test_a_result_that_is_a_list_of_values_is_sent_as_json(server: Served) -> None:
    def ids(result: Any) -> list[int]:
        return server.post("/tokenize", {"messages": turns(result=result)})["tokens"]

    assert ids([{"name": "f", "output": "é"}]) == ids('[{"name": "f", "output": "é"}]')
    assert ids([{"type": "text", "text": "a"}, "b"]) != ids('[{"type": "text", "text": "a"}, "b"]')


def test_the_tokens_of_messages_are_those_that_a_chat_with_the_same_choice_would_send(server: Served) -> None:
    def count(**fields: Any) -> list[int]:
        return list(server.post("/v1/tokenize", {"messages": MESSAGES, **fields})["tokens"])

    assert count(tools=[TOOL], tool_choice="none") == count() != count(tools=[TOOL])
    assert count(reasoning_effort="none") == count(chat_template_kwargs={"enable_thinking": False, "thinking": False})


def test_roles_are_read_in_any_case_and_thoughts_go_where_templates_look_for_them(server: Served) -> None:
    def ids(*messages: dict[str, Any]) -> list[int]:
        return list(server.post("/tokenize", {"messages": [*MESSAGES, *messages, *MESSAGES]})["tokens"])

    assert ids({"role": "SYSTEM", "content": "x"}) == ids({"role": "system", "content": "x"})
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Yes."}]
    plain = {"role": "assistant", "content": [parts[1]], "reasoning_content": "Hm."}
    assert ids({"role": "assistant", "content": parts}) == ids(plain)
    assert ids({"role": "assistant", "content": None}) == ids({"role": "assistant", "content": ""})
    body = {"messages": [{"role": "user", "content": parts}]}
    assert "content[0]" in server.post("/tokenize", body, 400)["param"]


@pytest.mark.parametrize(
    ("body", "kwargs"),
    [
        ({}, {}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False, "thinking": False, "reasoning_effort": "none"}),
        ({"reasoning_effort": "max"}, {"enable_thinking": True, "thinking": True, "reasoning_effort": "max"}),
        ({"reasoning_effort": 0.5}, {"enable_thinking": True, "thinking": True, "reasoning_effort": 0.5}),
        ({"reasoning": {"effort": "low"}}, {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}),
        ({"reasoning": {"enabled": True}}, {"enable_thinking": True, "thinking": True}),
        ({"reasoning": {"enabled": False}}, {"enable_thinking": False, "thinking": False}),
    ],
)
def test_an_effort_is_what_templates_call_it_and_turns_thinking_on_or_off(
    body: dict[str, Any], kwargs: dict[str, Any]
) -> None:
    assert read_effort(Fields(body)) == (kwargs, [])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"reasoning_effort": "hard"}, "reasoning_effort"),
        ({"reasoning_effort": 1.5}, "reasoning_effort"),
        ({"reasoning_effort": True}, "reasoning_effort"),
        ({"reasoning": {"effort": 7}}, "reasoning.effort"),
        ({"reasoning": {"enabled": "yes"}}, "reasoning.enabled"),
        ({"reasoning": "low"}, "reasoning"),
    ],
)
def test_an_effort_that_is_none_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        read_effort(Fields(body))
    assert refused.value.param == param


def test_what_reasoning_says_without_effect_is_named(server: Served) -> None:
    body = {"messages": MESSAGES, "max_tokens": 2, "reasoning": {"effort": "low", "exclude": True}}
    response = server.http.post(CHAT, json=body)
    assert response.status_code == 200 and response.headers["x-sglite-ignored"] == "reasoning.exclude"


# --- Anthropic --------------------------------------------------------------------------------------------------


def test_a_result_may_name_its_call_by_id(server: Served) -> None:
    def count(name: str) -> int:
        call = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}}
        result = {"type": "tool_result", name: "c1", "content": "8"}
        body = {
            "messages": [
                *MESSAGES,
                {"role": "assistant", "content": [call]},
                {"role": "user", "content": [result]},
            ],
            "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
        }
        return int(server.post("/v1/messages/count_tokens", {"model": "default", **body})["input_tokens"])

    assert count("id") == count("tool_use_id")
