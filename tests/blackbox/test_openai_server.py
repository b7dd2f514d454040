"""OpenAI's routes over a real socket: they say what the engine says, in OpenAI's words, streamed or whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from served import Served, settles, start

import sglite as sgl

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Tell me about ships."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with sgl.Engine(dtype="float32", max_total_tokens=16384, num_threads=1, show_progress=False) as engine:
        running, url, thread = start(engine, served_model_name=("demo", "other"))
        with httpx.Client(base_url=url, timeout=60) as http:
            yield Served(url, engine, http)
            assert settles(lambda: http.get("/server_info").json()["num_open_requests"] == 0)
        running.should_exit = True
        thread.join(10)


@pytest.fixture
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def chat(server: Served, **fields: Any) -> Any:
    return server.post(CHAT, {"messages": MESSAGES, "temperature": 0, "max_tokens": 12, **fields})


def events(server: Served, path: str, body: Any) -> list[Any]:
    """Payloads of a stream, which must end with [DONE]."""
    with server.http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        found = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert found[-1] == "[DONE]"
    return [json.loads(line) for line in found[:-1]]


def refused(server: Served, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    error = server.post(path, body, status)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


# --- chat -------------------------------------------------------------------------------------------------------


def test_a_chat_is_what_the_engine_says_after_the_templates_prompt(server: Served) -> None:
    template = server.engine.chat_template
    assert template is not None
    prompt = template.render(MESSAGES, add_generation_prompt=True)
    ids = server.engine.tokenizer.encode(prompt)  # type: ignore[union-attr]
    expected = server.engine.generate(input_ids=ids, sampling_params={"temperature": 0, "max_new_tokens": 12})
    found = chat(server)
    assert found["choices"][0]["message"]["content"] == expected["text"]
    usage = found["usage"]
    assert usage["prompt_tokens"] == len(ids)
    assert usage["completion_tokens"] == expected["meta_info"]["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] + usage["sglite"]["computed_prompt_tokens"] == len(ids)


def test_a_stream_adds_up_to_the_whole(server: Served) -> None:
    body = {
        "messages": MESSAGES, "temperature": 1.0, "seed": 5, "max_tokens": 20, "n": 3, "logprobs": True,
        "top_logprobs": 2, "ignore_eos": True,
    }  # fmt: skip
    whole = server.post(CHAT, body)
    chunks = events(server, CHAT, {**body, "stream_options": {"include_usage": True}})
    assert len({chunk["id"] for chunk in chunks}) == 1 and chunks[-1]["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert chunks[-1]["usage"][name] == whole["usage"][name]
    for index, choice in enumerate(whole["choices"]):
        mine = [one for chunk in chunks for one in chunk["choices"] if one["index"] == index]
        assert "".join(one["delta"].get("content") or "" for one in mine) == choice["message"]["content"]
        rows = [row for one in mine if one["logprobs"] for row in one["logprobs"]["content"]]
        assert [row["token"] for row in rows] == [row["token"] for row in choice["logprobs"]["content"]]
        assert mine[0]["delta"]["role"] == "assistant" and [one["finish_reason"] for one in mine][-1] == "length"
        assert sum(one["finish_reason"] is not None for one in mine) == 1
    assert len({choice["message"]["content"] for choice in whole["choices"]}) == 3


def test_a_turn_is_continued_where_its_beginning_stops(server: Served) -> None:
    whole = chat(server, max_tokens=10, return_token_ids=True)["choices"][0]
    tokenizer = server.engine.tokenizer
    assert tokenizer is not None
    begun, rest = (tokenizer.decode(ids) for ids in (whole["token_ids"][:4], whole["token_ids"][4:]))
    messages = [*MESSAGES, {"role": "assistant", "content": begun}]
    found = chat(server, messages=messages, continue_final_message=True, max_tokens=6)
    assert found["choices"][0]["message"]["content"] == rest


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, None),
        ({"structured_outputs": {"json": SCHEMA}}, None),
        ({"guided_json": SCHEMA}, None),
        ({"json_schema": json.dumps(SCHEMA)}, None),
        ({"regex": "[0-9]{3}-[a-z]{2}"}, r"\d{3}-[a-z]{2}"),
        ({"structured_outputs": {"regex": "[0-9]{3}-[a-z]{2}"}}, r"\d{3}-[a-z]{2}"),
        ({"ebnf": 'root ::= "on" | "off"'}, "on|off"),
        ({"structured_outputs": {"grammar": 'root ::= "on" | "off"'}}, "on|off"),
        ({"guided_choice": ["red", "green"]}, "red|green"),
        ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
        (
            {"response_format": {"type": "structural_tag", "format": {"type": "const_string", "value": "yes!"}}},
            "yes!",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_every_spelling_of_a_constraint_is_enforced(server: Served, fields: Any, pattern: Any, path: str) -> None:
    body = {"temperature": 1.0, "max_tokens": 60, **fields}
    body |= {"messages": MESSAGES} if path == CHAT else {"prompt": "It was"}
    choice = server.post(path, body)["choices"][0]
    chunks = events(server, path, body)
    streamed = "".join(
        (one["delta"].get("content") or "" if path == CHAT else one["text"]) for c in chunks for one in c["choices"]
    )
    for text in (choice["message"]["content"] if path == CHAT else choice["text"], streamed):
        if pattern is None:
            value = json.loads(text)
            assert set(value) == {"name", "age"} and 0 <= value["age"] <= 9
        else:
            assert re.fullmatch(pattern, text)


def test_a_short_limit_still_gives_a_whole_value_where_one_fits(server: Served) -> None:
    schema = {"type": "array", "items": {"type": "string"}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(5):
        choice = chat(server, response_format=form, temperature=1.5, seed=seed, max_tokens=10)["choices"][0]
        assert isinstance(json.loads(choice["message"]["content"]), list) and choice["finish_reason"] == "stop"
    cut = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "minLength": 100}}}
    choice = chat(server, response_format=cut, max_tokens=5)["choices"][0]
    assert choice["finish_reason"] == "length"


def test_ignored_fields_are_named_and_refused_ones_too(server: Served) -> None:
    body = {"messages": MESSAGES, "max_tokens": 1, "user": "u", "zzz": 1, "metadata": {"a": "b"}, "store": False}
    response = server.http.post(CHAT, json=body)
    assert set(response.headers["X-Sglite-Ignored"].split(", ")) == {"user", "metadata", "zzz"}
    assert "X-Sglite-Ignored" not in server.http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 1}).headers


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_completion_tokens": "x"}, "max_completion_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"n": 129}, "n"),
        ({"min_tokens": 30}, "min_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": ["x"] * 33}, "stop"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"logits_processors": ["x"]}, "logits_processors"),
        ({"best_of": 4}, "best_of"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"regex": "a", "ebnf": 'root ::= "a"'}, "ebnf"),
        ({"response_format": {"type": "x"}}, "response_format.type"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages[0].content[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"model": 5}, "model"),
        ({"session_params": {"id": "x"}}, "session_params"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_wrong_is_named(server: Served, fields: Any, param: str) -> None:
    error = refused(server, CHAT, {"messages": MESSAGES, "max_tokens": 8, **fields})
    assert error["param"] == param and error["type"] == "invalid_request_error" and error["message"]


def test_a_prompt_beyond_the_context_names_the_numbers(server: Served) -> None:
    long = [{"role": "user", "content": "word " * 3000}]
    error = refused(server, CHAT, {"messages": long})
    assert error["code"] == "context_length_exceeded" and "2048" in error["message"]
    error = refused(server, "/v1/completions", {"prompt": [7] * 2000, "max_tokens": 100})
    assert error["code"] == "context_length_exceeded" and error["param"] == "max_tokens" and "48" in error["message"]


# --- models and completions ---------------------------------------------------------------------------------------


def test_the_model_has_its_names_and_no_others(server: Served, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == ["demo", "other"]
    assert client.models.retrieve("other").id == "other"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("third")
    assert refused(server, CHAT, {"model": "third", "messages": MESSAGES}, 404)["code"] == "model_not_found"
    for name in ("demo", "other", "default", None):
        answer = chat(server, model=name, max_tokens=1)
        assert answer["model"] == (name or "demo")


def test_an_echoed_prompt_is_scored_as_the_engine_scores_it(server: Served) -> None:
    prompt = "The quick brown fox"
    body = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 3, "temperature": 0}
    choice = server.post("/v1/completions", body)["choices"][0]
    ids = server.engine.tokenizer.encode(prompt, add_bos=True)  # type: ignore[union-attr]
    expected = server.engine.generate(
        input_ids=ids, sampling_params={"temperature": 0, "max_new_tokens": 3}, return_logprob=True,
        logprob_start_len=0, top_logprobs_num=2,
    )  # fmt: skip
    rows = [*expected["meta_info"]["input_token_logprobs"], *expected["meta_info"]["output_token_logprobs"]]
    found = choice["logprobs"]["token_logprobs"]
    assert found[0] is None and len(found) == len(rows)
    assert all(abs(a - row[0]) < 1e-3 for a, row in zip(found[1:], rows[1:], strict=True))
    assert choice["text"] == prompt + expected["text"]
    offsets = choice["logprobs"]["text_offset"]
    assert "".join(choice["logprobs"]["tokens"])[: len(prompt)] == prompt and offsets[0] == 0
    chunks = events(server, "/v1/completions", body)
    assert "".join(one["text"] for chunk in chunks for one in chunk["choices"]) == choice["text"]
    tokens = [t for c in chunks for one in c["choices"] if one["logprobs"] for t in one["logprobs"]["tokens"]]
    assert tokens == choice["logprobs"]["tokens"]


def test_many_prompts_with_many_choices_keep_their_places(server: Served) -> None:
    body = {"prompt": ["one", "two", "three"], "n": 2, "seed": 3, "max_tokens": 3, "echo": True, "ignore_eos": True}
    found = server.post("/v1/completions", body)
    assert [choice["index"] for choice in found["choices"]] == list(range(6))
    starts = [choice["text"][:3] for choice in found["choices"]]
    assert starts == ["one", "one", "two", "two", "thr", "thr"]
    assert found["usage"]["completion_tokens"] == 18
    chunks = events(server, "/v1/completions", {**body, "stream_options": {"include_usage": True}})
    for choice in found["choices"]:
        mine = [one for c in chunks for one in c["choices"] if one["index"] == choice["index"]]
        assert "".join(one["text"] for one in mine) == choice["text"]
    assert chunks[-1]["usage"]["completion_tokens"] == 18
    assert chunks[-1]["usage"]["prompt_tokens"] == found["usage"]["prompt_tokens"]


def test_nothing_but_the_prompt_is_scored_with_no_tokens_to_come(server: Served) -> None:
    body = {"prompt": "Yes or no? Yes", "max_tokens": 0, "echo": True, "logprobs": 1}
    choice = server.post("/v1/completions", body)["choices"][0]
    assert choice["text"] == body["prompt"] and choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["tokens"]) >= 4
