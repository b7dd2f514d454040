"""Tokens in, tokens out: what `/inference/v1/generate` gives is what `/v1/completions` and `/generate` give."""

from __future__ import annotations

import json
from typing import Any

import pytest
from served import Served

PATH = "/inference/v1/generate"
IDS = [100, 200, 300, 400, 500, 600]
GREEDY = {"temperature": 0, "ignore_eos": True, "max_tokens": 6}


def ask(server: Served, status: int = 200, /, **fields: Any) -> Any:
    return server.post(PATH, {"token_ids": IDS, "sampling_params": GREEDY, **fields}, status)


def chunks(server: Served, **fields: Any) -> list[Any]:
    body = {"token_ids": IDS, "sampling_params": GREEDY, "stream": True, **fields}
    with server.http.stream("POST", PATH, json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_the_tokens_are_those_of_a_completion(server: Served) -> None:
    completion = server.post("/v1/completions", {"prompt": IDS, **GREEDY, "n": 2, "return_token_ids": True})
    found = ask(server, sampling_params={**GREEDY, "n": 2, "detokenize": False}, request_id="mine")
    assert found["request_id"] == "mine" and found["prompt_logprobs"] is None
    for index, (ours, theirs) in enumerate(zip(found["choices"], completion["choices"], strict=True)):
        wanted = {name: theirs[name] for name in ("token_ids", "finish_reason")}
        assert ours == {"index": index, "logprobs": None, **wanted}
    body = {"token_ids": IDS, "sampling_params": {**GREEDY, "detokenize": False, "nonsense": 1}}
    assert server.http.post(PATH, json=body).headers["X-Sglite-Ignored"] == "nonsense"
    assert found["usage"]["total_tokens"] == completion["usage"]["total_tokens"] == len(IDS) + 12


def test_as_many_as_fit_unless_told(server: Served) -> None:
    room = 12
    capacity = server.http.get("/v1/models").json()["data"][0]["max_model_len"]
    ids = [IDS[i % len(IDS)] for i in range(capacity - room)]
    for sampling in ({"ignore_eos": True}, {"ignore_eos": True, "max_tokens": None}):
        [choice] = ask(server, token_ids=ids, sampling_params=sampling)["choices"]
        assert len(choice["token_ids"]) == room and choice["finish_reason"] == "length"
    assert ask(server, sampling_params=None)["choices"][0]["token_ids"]


@pytest.mark.parametrize("top", [0, 1, 5])
def test_log_probabilities(server: Served, top: int) -> None:
    [choice] = ask(server, sampling_params={**GREEDY, "logprobs": top})["choices"]
    meta = server.post(
        "/generate",
        {
            "input_ids": IDS,
            "sampling_params": {"temperature": 0, "ignore_eos": True, "max_new_tokens": 6},
            "return_logprob": True,
            "top_logprobs_num": max(top, 1),
        },
    )["meta_info"]
    for row, token, alternatives in zip(
        choice["logprobs"]["content"], choice["token_ids"], meta["output_top_logprobs"], strict=True
    ):
        assert row["token"] == f"token_id:{token}" and len(row["top_logprobs"]) == max(top, 1)
        assert [one["token"] for one in row["top_logprobs"]] == [f"token_id:{one[1]}" for one in alternatives]
        assert row["top_logprobs"][0]["logprob"] == pytest.approx(alternatives[0][0], abs=1e-4)
    asked = {"logprobs": top, "logprob_token_ids": [7, 9], "prompt_logprobs": 1}
    found = ask(server, sampling_params={**GREEDY, **asked})
    given, of_prompt = found["choices"][0], found["prompt_logprobs"]
    assert len(of_prompt) == len(IDS) and of_prompt[0] is None and str(IDS[1]) in of_prompt[1]
    assert [one["token"] for one in given["logprobs"]["content"][0]["top_logprobs"]] == ["token_id:7", "token_id:9"]


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_adds_up(server: Served, n: int) -> None:
    sampling = {**GREEDY, "n": n, "logprobs": 1}
    whole = ask(server, sampling_params=sampling)
    parts = chunks(server, sampling_params=sampling, stream_options={"include_usage": True})
    usage = parts.pop()
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    for choice in whole["choices"]:
        own = [one for part in parts for one in part["choices"] if one["index"] == choice["index"]]
        assert [token for one in own for token in one["token_ids"]] == choice["token_ids"]
        assert all(len(one["token_ids"]) == len(one["logprobs"]["content"]) > 0 for one in own)
        assert [one["finish_reason"] for one in own] == [None] * (len(own) - 1) + ["length"]
    always = chunks(server, stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [part["usage"]["completion_tokens"] for part in always]
    assert counts[-1] == 6 and counts[:-1] == sorted(set(counts[:-1]))
    assert all("usage" not in part for part in chunks(server))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": ["a"]}, "token_ids"),
        ({"token_ids": None}, "token_ids"),
        ({"token_ids": [10**7]}, "token_ids"),
        ({"token_ids": [5] * 100_000}, "token_ids"),
        ({"sampling_params": {"max_tokens": 100_000}}, "max_tokens"),
        ({"sampling_params": {"max_tokens": "5"}}, "max_tokens"),
        ({"sampling_params": 5}, "sampling_params"),
        ({"sampling_params": {"stop": ["a"], "detokenize": False}}, "sampling_params.stop"),
        ({"sampling_params": {"echo": True}}, "sampling_params.echo"),
        ({"sampling_params": {"temperature": -1}}, "temperature"),
        ({"features": {}}, "features"),
        ({"kv_transfer_params": {}}, "kv_transfer_params"),
        ({"text": "a"}, "text"),
    ],
)
def test_what_is_wrong_is_named(server: Served, fields: dict[str, Any], param: str) -> None:
    assert ask(server, 400, **fields)["error"]["param"] == param


def test_no_such_model_is_a_404(server: Served) -> None:
    assert ask(server, 404, model="nobody")["error"]["param"] == "model"
