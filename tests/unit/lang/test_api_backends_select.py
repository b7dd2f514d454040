"""select on OpenAI: by probabilities where a server echoes prompts with them, by a decision elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from paid_api import USAGE, Failure, PaidApi, Talk, chat_answer, completion_answer, with_stream

from sglite.lang.backends.openai import OpenAI
from sglite.lang.backends.retrying import RetryPolicy
from sglite.lang.errors import BackendError, Unsupported

pytest.importorskip("openai")


@pytest.fixture
def api() -> Iterator[PaidApi]:
    server = PaidApi()
    yield server
    server.close()


def openai(api: PaidApi, model: str = "gpt-4") -> OpenAI:
    return OpenAI(model, base_url=f"{api.url}/v1", api_key="key", retry=RetryPolicy(max_tries=1))


async def select(stream: Any, choices: list[str], talk: Talk | None = None, unconditional: bool = False) -> Any:
    return await stream.score("v", choices, unconditional=unconditional, conversation=talk or Talk())


def best(scores: Any, choices: list[str]) -> str:
    means = scores.normalized_prompt_logprobs
    return choices[means.index(max(means))]


def test_a_chat_model_decides_within_the_choices(api: PaidApi) -> None:
    api.answer = lambda path, body: chat_answer('{"choice": "no"}')
    choices = ["yes", "no"]
    scores = with_stream(openai(api), lambda stream: select(stream, choices))
    assert best(scores, choices) == "no" and scores.cost["degraded"] == 1 and scores.cost["prompt_tokens"] == 7
    body = api.bodies[0]
    assert body["temperature"] == 0.0 and body["response_format"]["json_schema"]["strict"] is True
    assert body["response_format"]["json_schema"]["schema"]["properties"]["choice"]["enum"] == choices
    with pytest.raises(Unsupported, match="unconditional_likelihood_normalized"):
        with_stream(openai(api), lambda stream: select(stream, choices, unconditional=True))


def test_where_schemas_are_unknown_the_answer_is_compared(api: PaidApi) -> None:
    told: list[str] = []

    def answer(path: str, body: dict[str, Any]) -> Any:
        if "response_format" in body:
            return Failure(400, "response_format is not supported")
        told.append(body["messages"][-1]["content"])
        return chat_answer("The lake.")

    api.answer = answer
    choices = ["a river", "lake"]
    talk = Talk(open_text="It is ")
    assert best(with_stream(openai(api), lambda stream: select(stream, choices, talk)), choices) == "lake"
    assert '"It is "' in told[0] and '["a river", "lake"]' in told[0]
    api.answer = lambda path, body: chat_answer("a mountain")
    with pytest.raises(BackendError, match=r"'a mountain' names none of \['a river', 'lake'\]"):
        with_stream(openai(api), lambda stream: select(stream, choices))


def test_a_completion_model_is_scored_by_echo_where_it_echoes(api: PaidApi) -> None:
    def told(prompt: str) -> dict[str, Any]:
        tokens = ["It", " is", " " + prompt.split(" ")[-1]] if prompt.startswith("It") else [prompt]
        values = [None, *(-0.1 * len(t) for t in tokens[1:])]
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": None, "text_offset": None}

    api.answer = lambda path, body: completion_answer(*body["prompt"], logprobs=[told(p) for p in body["prompt"]])
    choices = [" blue", " red"]

    async def use(stream: Any) -> Any:
        stream.append("It is")
        return await select(stream, choices, unconditional=True)

    scores = with_stream(openai(api, "davinci-002"), use)
    assert scores.input_token_logprobs == [[[-0.5, None, " blue"]], [[-0.4, None, " red"]]]
    assert scores.unconditional_token_logprobs == [[[None, None, " blue"]], [[None, None, " red"]]]
    body = api.bodies[0]
    assert scores.cost["prompt_tokens"] == 2 * USAGE["prompt_tokens"]
    assert (body["echo"], body["max_tokens"], body["logprobs"]) == (True, 0, 1)
    assert body["prompt"] == ["It is blue", "It is red"]


def test_choices_that_are_spelled_otherwise_without_the_prompt_are_not_compared(api: PaidApi) -> None:
    def told(prompt: str) -> dict[str, Any]:
        tokens = ["p", "ab"] if prompt == "pab" else ["a", "b"]
        return {"tokens": tokens, "token_logprobs": [None, -1.0], "top_logprobs": None, "text_offset": None}

    async def use(stream: Any) -> Any:
        stream.append("p")
        return await select(stream, ["ab"], unconditional=True)

    api.answer = lambda path, body: completion_answer(*body["prompt"], logprobs=[told(p) for p in body["prompt"]])
    with pytest.raises(Unsupported, match=r"'ab' is spelled with other tokens without the prompt \(\['a', 'b'\]\)"):
        with_stream(openai(api, "davinci-002"), use)


@pytest.mark.parametrize("echo", [Failure(400, "echo with logprobs is not supported"), completion_answer("x", "y")])
def test_a_completion_model_that_does_not_echo_decides(api: PaidApi, echo: Any) -> None:
    api.answer = lambda path, body: echo if body.get("echo") else completion_answer(" blue, I think")
    scores = with_stream(openai(api, "davinci-002"), lambda stream: select(stream, [" blue", " red"]))
    assert best(scores, [" blue", " red"]) == " blue" and scores.cost["degraded"] == 1
