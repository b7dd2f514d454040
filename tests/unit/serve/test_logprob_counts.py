"""Log probabilities that are asked for are counted before they are made: nobody fills the memory with them."""

from __future__ import annotations

from typing import Any

import pytest
from served import Served

from sglite.runtime.engine.generation import Generation
from sglite.runtime.engine.presenter import Presenter
from sglite.runtime.sample.params import InvalidParameter, SamplingParams
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.in_flight import InFlight
from sglite.runtime.serve.logprob_count import MAX_LOGPROBS, MAX_OPEN_LOGPROBS, count_logprobs


@pytest.mark.parametrize(
    ("sampling", "options", "count"),
    [
        ({"max_new_tokens": 5}, {"top_logprobs_num": 9}, 0),
        ({"max_new_tokens": 5}, {"return_logprob": True}, 5),
        ({"max_tokens": 5, "n": 3}, {"return_logprob": True, "top_logprobs_num": 9}, 150),
        ({"max_new_tokens": 5}, {"return_logprob": True, "logprob_start_len": 4, "token_ids_logprob": [1, 2]}, 33),
        ({"max_new_tokens": 5}, {"return_logprob": True, "logprob_start_len": -1}, 5),
        ({"max_new_tokens": None}, {"return_logprob": True}, 90),
        ({"max_new_tokens": 10**9}, {"return_logprob": True}, 90),
        ({}, {"return_logprob": True, "top_logprobs_num": "many"}, 90),
    ],
)
def test_they_are_counted_as_they_will_be_told(sampling: dict[str, Any], options: dict[str, Any], count: int) -> None:
    assert count_logprobs(10, sampling, options, 100) == count


def test_what_is_told_is_what_was_counted(server: Served) -> None:
    options = {"return_logprob": True, "logprob_start_len": 1, "top_logprobs_num": 3, "token_ids_logprob": [7, 8]}
    sampling = {"max_new_tokens": 4, "ignore_eos": True}
    meta = server.post("/generate", {"input_ids": [41, 42, 43, 44], "sampling_params": sampling, **options})[
        "meta_info"
    ]
    told = 0
    for side in ("input", "output"):
        told += len(meta[f"{side}_token_logprobs"])
        told += sum(len(row) for kind in ("top", "token_ids") for row in meta[f"{side}_{kind}_logprobs"])
    assert told == count_logprobs(4, sampling, options, 100) == 42


def test_open_requests_share_a_bound() -> None:
    in_flight = InFlight(limit=100)
    for name in ("one", "two"):
        in_flight.admit(1, MAX_LOGPROBS)
        in_flight.add(name, Generation([Presenter(name, SamplingParams(), None, None)], lambda rid: None), "", None,
                      MAX_LOGPROBS)  # fmt: skip
    assert 2 * MAX_LOGPROBS == MAX_OPEN_LOGPROBS
    with pytest.raises(Refused, match="open requests") as refused:
        in_flight.admit(1, 1)
    assert refused.value.status == 429
    in_flight.admit(1)
    in_flight.discard("one")
    in_flight.admit(1, MAX_LOGPROBS)
    with pytest.raises(InvalidParameter, match="top_logprobs_num"):
        in_flight.admit(1, MAX_LOGPROBS + 1)


def test_too_many_are_refused_by_name(server: Served) -> None:
    fields = {"return_logprob": True, "logprob_start_len": 0, "token_ids_logprob": [1] * 100_000}
    error = server.post("/generate", {"input_ids": [41] * 50, **fields}, 400)["error"]
    assert error["param"] == "top_logprobs_num" and "log probabilities" in error["message"]
    nodes: list[dict[str, Any]] = [
        {"op": "open", "seq": "0"},
        {"op": "extend", "seq": "0", "text": "Once " * 50},
        {"op": "generate", "seq": "0", "id": "a", **fields},
        {"op": "close", "seq": "0"},
    ]
    answer = server.http.post("/program", json={"version": 1, "program": "p", "nodes": nodes})
    assert "log probabilities" in answer.text
