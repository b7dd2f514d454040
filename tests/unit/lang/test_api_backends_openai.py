"""OpenAI: which fields go out, how answers are read, what is refused, and that each loop has a client of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from paid_api import (
    USAGE,
    Failure,
    PaidApi,
    Talk,
    ask,
    call_of,
    chat_answer,
    chat_chunk,
    completion_answer,
    steps_of,
    text_of,
    with_stream,
)

from sglite.lang.backends.api import ApiError
from sglite.lang.backends.openai import OpenAI
from sglite.lang.backends.openai_requests import reasons, takes_completions
from sglite.lang.backends.retrying import RetryPolicy
from sglite.lang.errors import BackendError, Unsupported
from sglite.lang.ir import Media
from sglite.lang.messages import ToolCall, ToolSpec

pytest.importorskip("openai")
ONCE = RetryPolicy(max_tries=1)
BASE = {"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}]}
TOOL = ToolSpec("add", "adds", {"type": "object", "properties": {"a": {"type": "integer"}}})


@pytest.fixture
def api() -> Iterator[PaidApi]:
    server = PaidApi()
    yield server
    server.close()


def openai(api: PaidApi, model: str = "gpt-4", **options: Any) -> OpenAI:
    options.setdefault("retry", ONCE)
    return OpenAI(model, base_url=f"{api.url}/v1", api_key="key", **options)


# --- requests ---


def test_a_request_has_the_conversation_and_the_limit_and_nothing_else(api: PaidApi) -> None:
    assert ask(openai(api))[0].text == "ok"
    assert api.seen == [("/v1/chat/completions", {**BASE, "max_tokens": 128})]
    assert api.headers["authorization"] == "Bearer key"


@pytest.mark.parametrize(
    ("sampling", "sent"),
    [
        ({"temperature": 0.5, "max_new_tokens": 20}, {"temperature": 0.5, "max_tokens": 20}),
        ({"max_new_tokens": -1}, {}),
        ({"stop": ("a", "b"), "seed": 7, "n": 2}, {"stop": ["a", "b"], "seed": 7, "n": 2, "max_tokens": 128}),
        ({"top_p": 0.9, "presence_penalty": 1.0}, {"top_p": 0.9, "presence_penalty": 1.0, "max_tokens": 128}),
        (
            {"return_logprob": True, "top_logprobs_num": 2},
            {"logprobs": True, "top_logprobs": 2, "max_tokens": 128},
        ),
    ],
)
def test_what_was_asked_for_is_sent_under_the_apis_names(
    api: PaidApi, sampling: dict[str, Any], sent: dict[str, Any]
) -> None:
    api.answer = lambda path, body: chat_answer("a", "b") if body.get("n") else chat_answer("a")
    ask(openai(api), **sampling)
    assert api.bodies == [{**BASE, **sent}]


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        ({"top_k": 4}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"regex": "a+"}, "regex"),
        ({"ebnf": "root ::= 'a'"}, "ebnf"),
        ({"stop_regex": ("a",)}, "stop_regex"),
        ({"stop_token_ids": (3,)}, "stop_token_ids"),
        ({"min_new_tokens": 3}, "min_new_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"on_limit": "close"}, "on_limit"),
        ({"return_logprob": True, "logprob_start_len": 0}, "logprob_start_len"),
    ],
)
def test_what_the_api_cannot_do_is_refused_by_name_before_any_request(
    api: PaidApi, sampling: dict[str, Any], name: str
) -> None:
    with pytest.raises(Unsupported, match=rf"takes no {name} \("):
        ask(openai(api), **sampling)
    assert api.seen == []


def test_servers_that_take_more_are_given_it_in_their_own_words(api: PaidApi) -> None:
    more = {"top_k": 4, "min_p": 0.1, "min_new_tokens": 2, "regex": "a+"}
    plain = {**BASE, "max_tokens": 128, "top_k": 4, "min_p": 0.1, "min_tokens": 2}
    ask(openai(api, server="vllm"), **more)
    ask(openai(api, server="sglang", extra_body={"chat_template_kwargs": {"x": 1}}), **more)
    assert api.bodies == [
        {**plain, "structured_outputs": {"regex": "a+"}},
        {**plain, "regex": "a+", "chat_template_kwargs": {"x": 1}},
    ]
    with pytest.raises(ValueError, match="server='tgi' is not known"):
        openai(api, server="tgi")


def test_reasoning_models_are_limited_only_when_somebody_says_so(api: PaidApi) -> None:
    ask(openai(api, "o3-mini"))
    ask(openai(api, "gpt-5"), max_new_tokens=9)
    assert [set(body) - {"model", "messages"} for body in api.bodies] == [set(), {"max_completion_tokens"}]
    assert [reasons(m) for m in ("o1", "o4-mini", "gpt-5-mini", "openai/gpt-5")] == [True] * 4
    assert [reasons(m) for m in ("gpt-4o", "gpt-5-chat-latest", "olmo", "gpt-4.1")] == [False] * 4


def test_only_completion_models_are_asked_for_completions() -> None:
    assert all(
        map(takes_completions, ("gpt-3.5-turbo-instruct", "davinci-002", "ft:babbage-002:me", "text-davinci-003"))
    )
    assert not any(map(takes_completions, ("gpt-4", "Llama-3-8B-Instruct", "meta/adapter-1", "gpt-3.5-turbo")))


CLOSED = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (CLOSED, True),
        ({**CLOSED, "required": []}, False),
        ({"type": "object", "properties": {}}, False),
        ({**CLOSED, "properties": {"a": {"type": "array", "items": {"type": "object"}}}}, False),
        ({**CLOSED, "$defs": {"x": {"type": "object", "properties": {"b": {}}}}}, False),
    ],
)
def test_a_schema_is_strict_where_it_is_closed(api: PaidApi, schema: dict[str, Any], strict: bool) -> None:
    ask(openai(api), json_schema=json.dumps(schema))
    told = api.bodies[0]["response_format"]["json_schema"]
    assert told == {"name": "answer", "schema": schema, "strict": strict}


def test_a_schema_of_a_list_is_wrapped_for_the_request_only(api: PaidApi) -> None:
    api.in_turn(chat_answer('{"answer": [1, 2]}'), chat_answer('{"answer": [1, '), chat_answer("[1]"))
    schema = {"type": "array", "items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "integer"}}}
    assert ask(openai(api), json_schema=json.dumps(schema))[0].text == "[1, 2]"
    sent = api.bodies[0]["response_format"]["json_schema"]
    assert sent["strict"] is True and sent["schema"]["type"] == "object" and "n" in sent["schema"]["$defs"]
    assert ask(openai(api), json_schema=json.dumps(schema))[0].text == '{"answer": [1, '
    ask(openai(api, server="vllm"), json_schema=json.dumps(schema))
    assert api.bodies[2]["response_format"]["json_schema"]["schema"] == schema


def test_a_bare_value_of_a_typed_gen_is_asked_for_by_its_pattern(api: PaidApi) -> None:
    api.answer = lambda path, body: chat_answer('{"answer": "42"}')
    assert ask(openai(api), regex="[0-9]+", schema_of=int)[0].text == "42"
    (answer,) = api.bodies[0]["response_format"]["json_schema"]["schema"]["properties"].values()
    assert answer == {"type": "string", "pattern": "^(?:[0-9]+)$"}


def test_tools_and_their_results_keep_the_apis_shape(api: PaidApi) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    api.answer = lambda path, body: chat_answer(None, finish="tool_calls", tool_calls=[call, {**call, "id": "y"}])
    told = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "hm", "generated": True},
        {"role": "tool", "content": "2", "tool_call_id": "x", "name": "add"},
    ]
    (output,) = ask(openai(api), Talk(told), tools=(TOOL,), tool_choice="add")
    assert output.tool_calls == (ToolCall("x", "add", '{"a": 1}'), ToolCall("y", "add", '{"a": 1}'))
    assert output.text == "" and output.meta["finish_reason"] == {"type": "tool_calls"}
    body = api.bodies[0]
    assert body["tools"] == [TOOL.to_dict()] and body["tool_choice"]["function"] == {"name": "add"}
    assert body["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [call]}


# --- what a program may write ---


@pytest.mark.parametrize(
    ("talk", "says"),
    [
        (Talk(open_text="prefix "), "has to open the assistant's turn, but 'prefix ' stands before it"),
        (Talk(role=None), "outside of any turn"),
        (Talk(role="user"), "in the user's turn"),
    ],
)
def test_a_gen_has_to_open_the_assistants_turn(api: PaidApi, talk: Talk, says: str) -> None:
    with pytest.raises(Unsupported, match=says):
        ask(openai(api), talk)
    assert api.seen == []


def test_images_become_parts_of_their_message(api: PaidApi) -> None:
    async def use(stream: Any) -> None:
        mark = stream.attach(Media("image", "iVBORw0KGgo="))
        talk = Talk([{"role": "user", "content": f"What is {mark}?"}])

        await text_of(stream, call_of(talk))
        (branch,) = await stream.fork(1)
        await text_of(branch, call_of(talk))
        with pytest.raises(Unsupported, match="no PNG"):
            stream.attach(Media("image", "AAAA"))
        with pytest.raises(Unsupported):
            stream.attach(Media("video", "AAAA"))

    with_stream(openai(api), use)
    parts = api.bodies[0]["messages"][0]["content"]
    assert [p["type"] for p in parts] == ["text", "image_url", "text"]
    assert parts[1]["image_url"]["url"] == "data:image/png;base64,iVBORw0KGgo="
    assert api.bodies[1] == api.bodies[0]


# --- answers ---


def test_meta_info_and_usage_count_what_the_api_reports(api: PaidApi) -> None:
    backend = openai(api)
    api.answer = lambda path, body: chat_answer("a", "b", finish="length")
    first, second = ask(backend, n=2)
    assert (first.text, second.text) == ("a", "b") and first.meta["finish_reason"] == {"type": "length"}
    told = {k: first.meta[k] for k in ("id", "prompt_tokens", "completion_tokens", "cached_tokens")}
    assert told == {"id": "c1", "prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 5}
    assert "prompt_tokens" not in second.meta and first.meta["e2e_latency"] > 0
    ask(backend, n=2)
    used = backend.token_usage
    assert (used.requests, used.prompt_tokens, used.completion_tokens, used.cached_tokens) == (2, 14, 6, 10)


def test_streamed_outputs_are_cumulative(api: PaidApi) -> None:
    calls = [{"index": 0, "id": "x", "function": {"name": "add", "arguments": ""}}]
    api.answer = lambda path, body: [
        chat_chunk(role="assistant", content=""),
        chat_chunk(content="one"),
        chat_chunk(content=" two"),
        chat_chunk(tool_calls=calls),
        chat_chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}]),
        chat_chunk(tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}]),
        chat_chunk(finish="stop"),
        chat_chunk(usage=USAGE),
    ]
    backend = openai(api)
    steps = steps_of(backend, stream=True)
    assert [outputs[0].text for outputs in steps] == ["one", "one two", "one two"]
    assert steps[-1][0].meta["prompt_tokens"] == 7 and steps[-1][0].tool_calls == (ToolCall("x", "add", '{"a": 1}'),)
    assert api.bodies[0]["stream_options"] == {"include_usage": True} and backend.token_usage.completion_tokens == 3


def test_logprobs_are_rows(api: PaidApi) -> None:
    answer = chat_answer("hey")
    tokens = [
        {
            "token": "h",
            "logprob": -0.5,
            "bytes": None,
            "top_logprobs": [{"token": "h", "logprob": -0.5, "bytes": None}],
        },
        {
            "token": "ey",
            "logprob": -1.0,
            "bytes": None,
            "top_logprobs": [{"token": "i", "logprob": -0.7, "bytes": None}],
        },
    ]
    answer["choices"][0]["logprobs"] = {"content": tokens, "refusal": None}
    api.answer = lambda path, body: answer
    meta = ask(openai(api), return_logprob=True, top_logprobs_num=1)[0].meta
    assert meta["output_token_logprobs"] == [[-0.5, None, "h"], [-1.0, None, "ey"]]
    assert meta["output_top_logprobs"] == [[[-0.5, None, "h"]], [[-0.7, None, "i"]]]


def test_a_refusal_is_an_error(api: PaidApi) -> None:
    api.answer = lambda path, body: chat_answer(None, refusal="I would rather not")
    with pytest.raises(BackendError, match="I would rather not"):
        ask(openai(api))


def test_errors_have_the_status_and_the_providers_words(api: PaidApi) -> None:
    api.answer = lambda path, body: Failure(400, "max_tokens is too large")
    with pytest.raises(ApiError, match=r"OpenAI API, gpt-4: HTTP 400: max_tokens is too large") as caught:
        ask(openai(api))
    assert caught.value.status == 400 and type(caught.value.__cause__).__name__ == "BadRequestError"


def test_passing_failures_are_tried_again_and_counted(api: PaidApi) -> None:
    quick = RetryPolicy(max_tries=3, first_s=0.001, max_s=0.001)
    for stream in (False, True):
        answer: Any = [chat_chunk(content="ok"), chat_chunk(finish="stop")] if stream else chat_answer("ok")
        api.in_turn(Failure(429, headers={"Retry-After": "0"}), Failure(503), answer)
        backend = openai(api, retry=quick)
        assert ask(backend, stream=stream)[0].text == "ok" and backend.token_usage.retries == 2
    api.in_turn(Failure(0))
    with pytest.raises(ApiError, match=r"APIConnectionError \(3 tries\)") as caught:
        ask(openai(api, retry=quick))
    assert caught.value.status is None and len(api.seen) == 9


def test_a_stream_that_breaks_off_is_not_tried_again(api: PaidApi) -> None:
    api.answer = lambda path, body: [chat_chunk(content="half"), {"error": {"message": "out of memory"}}]
    shown: list[str] = []

    async def use(stream: Any) -> None:

        async for outputs in stream.generate(call_of(stream=True)):
            shown.append(outputs[0].text)

    with pytest.raises(ApiError, match="out of memory"):
        with_stream(openai(api, retry=RetryPolicy(first_s=0.001)), use)
    assert shown == ["half"] and len(api.seen) == 1


# --- completions, clients ---


def test_a_completion_model_is_asked_with_the_text(api: PaidApi) -> None:
    api.answer = lambda path, body: completion_answer(" blue")
    backend = openai(api, "gpt-3.5-turbo-instruct")
    assert ask(backend, text="The sky is", stop=(",",))[0].text == " blue" and not backend.by_messages
    path, body = api.seen[0]
    assert path == "/v1/completions"
    assert body == {"model": "gpt-3.5-turbo-instruct", "prompt": "The sky is", "max_tokens": 128, "stop": [","]}
    ask(openai(api, "base", is_chat_model=False, server="vllm"), json_schema='{"type": "object"}', ebnf="g")
    assert api.bodies[1]["structured_outputs"] == {"json": '{"type": "object"}', "grammar": "g"}
    with pytest.raises(Unsupported, match="json_schema"):
        ask(backend, json_schema='{"type": "object"}')


def test_what_a_completion_takes_back_is_not_in_the_next_prompt(api: PaidApi) -> None:

    async def use(stream: Any) -> None:
        stream.append("a")
        mark = stream.mark()
        await text_of(stream, call_of())
        stream.rewind(mark)
        stream.append("b")
        await text_of(stream, call_of())

    api.answer = lambda path, body: completion_answer("X")
    with_stream(openai(api, "davinci-002"), use)
    assert [body["prompt"] for body in api.bodies] == ["a", "ab"]


def test_every_loop_has_its_own_client_and_a_bound_on_its_requests(api: PaidApi) -> None:
    backend = openai(api, max_concurrency=2)
    assert [ask(backend)[0].text for _ in range(2)] == ["ok", "ok"]  # two loops, one after the other
    running = peak = 0

    async def call(client: Any) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1

    async def use() -> None:
        await asyncio.gather(*(backend.send(call) for _ in range(8)))

    asyncio.run(use())
    assert peak == 2


def test_a_missing_key_and_azure_are_the_clients_affair_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "AZURE_OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Exception, match=r"(?i)credentials|api_key"):
        OpenAI("gpt-4")
    azure = OpenAI("gpt-4", is_azure=True, azure_endpoint="https://x.example", api_version="1", api_key="k")
    assert type(azure._new_client()).__name__ == "AsyncAzureOpenAI"


def test_without_the_package_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'sglite\[openai\]'"):
        OpenAI("gpt-4")
