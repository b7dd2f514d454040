"""A session's request goes on after exactly the tokens it names, finds them cached, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from served import Served, settles

from sglite.runtime.serve import sessions as module
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.sessions import Sessions, read_params

SAMPLING = {"temperature": 0.0, "max_new_tokens": 6, "ignore_eos": True}
LONG = {"temperature": 0.0, "max_new_tokens": 1500, "ignore_eos": True}


@pytest.fixture(autouse=True)
def left_alone(server: Served) -> Iterator[None]:
    """Every test closes what it has opened, and its requests have ended."""
    yield
    assert server.info()["sessions"]["open"] == 0


def opened(server: Served, **fields: Any) -> str:
    return str(server.post("/open_session", {"capacity_of_str_len": 1000, **fields}))


def said(server: Served, ids: list[int], session: str, named: str, **params: Any) -> dict[str, Any]:
    params = {"id": session, **params}
    body = {"input_ids": ids, "rid": named, "session_params": params, "sampling_params": SAMPLING}
    return dict(server.post("/generate", body))


def plain(server: Served, ids: list[int]) -> list[int]:
    return list(server.post("/generate", {"input_ids": ids, "sampling_params": SAMPLING})["output_ids"])


A, B = [11, 12, 13, 14, 15, 16, 17, 18], [21, 22, 23]


def test_each_way_to_go_on_names_its_tokens(server: Served) -> None:
    session = opened(server)
    first = said(server, A, session, "one")["output_ids"]
    assert first == plain(server, A)
    ways: dict[str, tuple[dict[str, Any], list[int]]] = {
        "all": ({}, [*A, *first, *B]),
        "input": ({"drop_previous_output": True}, [*A, *B]),
        "some": ({"offset": 3}, [*A[:3], *B]),
        "but-one": ({"offset": -1}, [*A, *first[:-1], *B]),
        "nothing": ({"offset": 0}, [*A, *first, *B]),
    }
    for name, (params, whole) in ways.items():
        found = said(server, B, session, name, rid="one", **params)
        assert found["meta_info"]["prompt_tokens"] == len(whole), name
        assert found["output_ids"] == plain(server, whole), name
    assert said(server, B, session, "fresh")["output_ids"] == plain(server, B)
    assert server.post("/close_session", {"session_id": session}) == {"success": True}
    assert server.info()["sessions"] == {"open": 0, "requests": 0, "tokens": 0}


def test_what_precedes_is_found_in_the_cache(server: Served) -> None:
    server.post("/flush_cache", {})
    session = opened(server)
    first = said(server, A * 8, session, "one")
    meta = said(server, B, session, "two", rid="one")["meta_info"]
    # The last token of an output is never computed, since nothing followed it.
    assert meta["cached_tokens"] == len(A * 8) + len(first["output_ids"]) - 1
    assert meta["computed_prompt_tokens"] == len(B) + 1
    server.post("/close_session", {"session_id": session})


def test_text_goes_on_without_a_second_beginning(server: Served) -> None:
    session, tokenizer = opened(server), server.engine.tokenizer
    assert tokenizer is not None
    body = {"text": "Hello", "rid": "a", "session_params": {"id": session}, "sampling_params": SAMPLING}
    first = server.post("/generate", body)
    body = {**body, "text": " world", "rid": "b", "session_params": {"id": session, "rid": "a"}}
    second = server.post("/generate", body)
    whole = [*tokenizer.encode("Hello", add_bos=True), *first["output_ids"], *tokenizer.encode(" world")]
    assert second["output_ids"] == plain(server, whole)
    server.post("/close_session", {"session_id": session})


def test_a_stream_is_a_request_like_others(server: Served) -> None:
    session = opened(server, session_id="mine")
    assert session == "mine"
    body = {"input_ids": A, "rid": "s", "session_params": {"id": session}, "sampling_params": SAMPLING, "stream": True}
    assert server.http.post("/generate", json=body).text.endswith("data: [DONE]\n\n")
    found = said(server, B, session, "t", rid="s")
    assert found["output_ids"] == plain(server, [*A, *plain(server, A), *B])
    assert "open already" in server.post("/open_session", {"session_id": "mine"}, 400)["error"]["message"]
    server.post("/close_session", {"session_id": session})


def test_a_streaming_session_goes_on_after_its_latest(server: Served) -> None:
    session = opened(server, streaming=True)
    first = said(server, A, session, "one")["output_ids"]
    second = said(server, B, session, "two")
    assert second["output_ids"] == plain(server, [*A, *first, *B])
    third = said(server, [31], session, "three")
    assert third["meta_info"]["prompt_tokens"] == len([*A, *first, *B, *second["output_ids"], 31])
    body = {"input_ids": B, "session_params": {"id": session, "replace": True}}
    assert "streaming" in server.post("/generate", body, 400)["error"]["message"]
    server.post("/close_session", {"session_id": session})


def test_an_offset_counts_nothing_where_nothing_precedes(server: Served) -> None:
    session = opened(server)
    first = said(server, A, session, "one", offset=-1, replace=True)
    assert first["output_ids"] == plain(server, A)
    assert said(server, B, session, "two", offset=2, drop_previous_output=True)["output_ids"] == plain(server, B)
    server.post("/close_session", {"session_id": session})


@pytest.mark.parametrize("before", [False, True])
def test_an_aborted_request_of_a_streaming_session_is_as_if_it_had_not_been(server: Served, before: bool) -> None:
    session = opened(server, streaming=True)
    kept = [*A, *said(server, A, session, "one")["output_ids"]] if before else []
    done: list[Any] = []

    def run() -> None:
        body = {"input_ids": [41], "rid": "long", "session_params": {"id": session}, "sampling_params": LONG}
        done.append(server.post("/generate", body))

    thread = threading.Thread(target=run)
    thread.start()
    assert settles(lambda: server.info()["num_running"] == 1)
    server.post("/abort_request", {"rid": "", "abort_all": True})
    thread.join(10)
    assert done[0]["meta_info"]["finish_reason"]["type"] == "abort"
    assert said(server, B, session, "next")["meta_info"]["prompt_tokens"] == len(kept) + len(B)
    server.post("/close_session", {"session_id": session})


def test_replacing_ends_what_runs_and_forgets_what_went_on(server: Served) -> None:
    session = opened(server)
    done: list[Any] = []

    def run() -> None:
        body = {"input_ids": A, "rid": "long", "session_params": {"id": session}, "sampling_params": LONG}
        done.append(server.post("/generate", body))

    thread = threading.Thread(target=run)
    thread.start()
    assert settles(lambda: server.info()["num_running"] == 1)
    body = {"input_ids": B, "rid": "early", "session_params": {"id": session, "rid": "long"}}
    assert "has not ended" in server.post("/generate", body, 400)["error"]["message"]
    new = said(server, B, session, "next", rid="long", replace=True)
    thread.join(10)
    cut = done[0]["output_ids"]
    assert done[0]["meta_info"]["finish_reason"]["type"] == "abort"
    assert new["meta_info"]["prompt_tokens"] == len([*A, *cut, *B])
    said(server, B, session, "after", rid="next")
    assert server.info()["sessions"]["requests"] == 3
    said(server, B, session, "other", rid="long", replace=True)  # forgets "next", and "after" with it
    body = {"input_ids": B, "session_params": {"id": session, "rid": "after"}}
    assert "no request 'after'" in server.post("/generate", body, 400)["error"]["message"]
    said(server, B, session, "all", replace=True)
    assert server.info()["sessions"]["requests"] == 1
    server.post("/close_session", {"session_id": session})


def test_what_a_client_left_can_be_gone_on_with(server: Served) -> None:
    session = opened(server)
    body = {"input_ids": A, "rid": "left", "session_params": {"id": session}, "sampling_params": LONG, "stream": True}
    with server.http.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
    assert settles(lambda: server.info()["num_running"] == 0)
    found = said(server, B, session, "next", rid="left")["meta_info"]
    assert len([*A, *B]) < found["prompt_tokens"] < 1500
    server.post("/close_session", {"session_id": session})


def test_closing_ends_what_runs(server: Served) -> None:
    session = opened(server)
    body = {"input_ids": A, "session_params": {"id": session}, "sampling_params": LONG, "stream": True}
    with server.http.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        server.post("/close_session", {"session_id": session})
        assert '"type":"abort"' in [line for line in lines if line][-2]


@pytest.mark.parametrize(
    "params, extra, named",
    [
        ({"rid": "none"}, {}, "no request 'none'"),
        ({"rid": "one", "offset": 99}, {}, "offset=99"),
        ({"rid": "one", "offset": -99}, {}, "offset=-99"),
        ({"rid": "one", "offset": 1.5}, {}, "session_params.offset"),
        ({"rid": "one", "replace": "yes"}, {}, "session_params.replace"),
        ({"id": ""}, {}, "session_params.id"),
        ({"name": "x"}, {}, "'name'"),
        ({}, {"rid": "one"}, "'one'"),
        ({}, {"input_ids": [A, B]}, "one prompt"),
        ({}, {"sampling_params": {"n": 2}}, "n=1"),
        ({}, {"input_ids": []}, "empty"),
        ({}, {"input_ids": [2**40]}, "token id"),
        ({}, {"input_ids": [10**9]}, "1000000000"),
    ],
)
def test_what_cannot_go_on_is_refused_and_leaves_nothing(
    server: Served, params: dict[str, Any], extra: dict[str, Any], named: str
) -> None:
    session = opened(server)
    said(server, A, session, "one")
    body = {"input_ids": B, "session_params": {"id": session, **params}, **extra}
    assert named in server.post("/generate", body, 400)["error"]["message"]
    assert server.info()["sessions"] == {"open": 1, "requests": 1, "tokens": len(A) + SAMPLING["max_new_tokens"]}
    server.post("/close_session", {"session_id": session})


def test_a_session_that_is_not_there_is_a_404(server: Served) -> None:
    body = {"text": "a", "session_params": {"id": "nobody"}}
    assert server.post("/generate", body, 404)["error"]["code"] == "unknown_session"
    server.post("/close_session", {"session_id": "nobody"}, 404)
    for wrong in ({"capacity_of_str_len": "x"}, {"timeout": -1}, {"session_id": 5}, {"capacity": 5}):
        server.post("/open_session", wrong, 400)
    response = server.http.post("/open_session", json={"capacity_of_str_len": 5, "session_id": "said"})
    assert response.headers["x-sglite-ignored"] == "capacity_of_str_len"
    server.post("/close_session", {"session_id": "said"})


def test_an_idle_session_is_forgotten_and_a_used_one_is_not(server: Served) -> None:
    left, used = opened(server, timeout=1), opened(server, timeout=2)
    assert settles(lambda: server.info()["sessions"]["open"] == 1, 4.0)
    server.post("/close_session", {"session_id": left}, 404)
    server.post("/close_session", {"session_id": used})


def test_only_the_first_of_a_session_begins_a_text() -> None:
    async def go_on() -> None:
        sessions = Sessions()
        sessions._sessions["s"] = module._Session("s", 60.0, False)
        first, later = read_params({"id": "s"}), read_params({"id": "s", "rid": "a"})
        assert first is not None and later is not None
        assert (await sessions.begin(first, "a", [1, 5], 1)).input_ids == [1, 5]
        assert (await sessions.begin(later, "b", [1, 6], 1)).input_ids == [1, 5, 6]
        assert (await sessions.begin(later, "c", [7, 1], 1)).input_ids == [1, 5, 7, 1]
        sessions._end(sessions._sessions["s"])

    asyncio.run(go_on())


def test_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REQUESTS", 3)
    monkeypatch.setattr(module, "MAX_TOKENS", 100)

    async def fill() -> None:
        sessions = Sessions()
        sessions._sessions["s"] = module._Session("s", 60.0, False)
        params = read_params({"id": "s"})
        assert params is not None
        with pytest.raises(Refused, match="100 are allowed") as refused:
            await sessions.begin(params, "a", [1] * 101, None)
        assert refused.value.status == 429
        turns = [await sessions.begin(params, str(i), [1] * 10, None) for i in range(3)]
        with pytest.raises(Refused, match="has 3 requests"):
            await sessions.begin(params, "b", [1], None)
        assert [turn.input_ids for turn in turns] == [[1] * 10] * 3
        turns[0].drop()
        assert sessions.counts() == {"open": 1, "requests": 2, "tokens": 20}
        sessions._end(sessions._sessions["s"])
        assert sessions.counts() == {"open": 0, "requests": 0, "tokens": 0}

    asyncio.run(fill())
