"""POST /generate says what the engine says, refuses by name what it cannot do, and frees what nobody waits for."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from served import Served, settles, start

from sglite.runtime.engine.generation import Generation
from sglite.runtime.engine.presenter import Presenter
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.serve.body import MAX_DEPTH, decode
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.in_flight import InFlight

GREEDY = {"temperature": 0.0, "max_new_tokens": 6}
LONG = {"temperature": 0.0, "max_new_tokens": 1500, "ignore_eos": True}


def events(served: Served, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a streamed request, without the last, which must be [DONE]."""
    with served.http.stream("POST", "/generate", json={**body, "stream": True}) as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def told(event: dict[str, Any]) -> Any:
    """An answer without what differs from run to run."""
    meta = event["meta_info"]
    rows = {name: meta[name] for name in meta if name.endswith("logprobs")}
    return event["text"], event["output_ids"], meta["finish_reason"], meta["prompt_tokens"], rounded(rows)


def rounded(value: Any) -> Any:
    """Sums differ in their last bits with what else is computed in the same step."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(
    "body",
    [
        {"text": "Hello"},
        {"text": ["Hello", "The capital"]},
        {"input_ids": [5, 9, 12]},
        {"input_ids": [[5, 9], [12]]},
        {"text": "Hello", "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2},
        {
            "text": ["a", "b"],
            "return_logprob": [True, False],
            "token_ids_logprob": [3],
            "return_text_in_logprobs": True,
        },
    ],
)
def test_an_answer_is_the_engines(server: Served, body: dict[str, Any]) -> None:
    given = {"prompt" if name == "text" else name: value for name, value in body.items()}
    expected = server.engine.generate(sampling_params=GREEDY, **given)
    found = server.post("/generate", {**body, "sampling_params": GREEDY})
    assert isinstance(found, list) == isinstance(expected, list)
    for one, other in zip(*(x if isinstance(x, list) else [x] for x in (found, expected)), strict=True):
        assert json.loads(json.dumps(told(one))) == json.loads(json.dumps(told(other)))


def test_each_prompt_of_a_batch_may_have_its_own_parameters(server: Served) -> None:
    params = [{**GREEDY, "max_new_tokens": n} for n in (0, 2, 5)]
    found = server.post("/generate", {"text": ["a", "b", "c"], "sampling_params": params})
    assert [len(one["output_ids"]) for one in found] == [0, 2, 5]


@pytest.mark.parametrize("text", ["Hello", ["Hello", "The"]])
@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_ends_as_the_whole_answer_is(server: Served, text: Any, n: int) -> None:
    body = {"text": text, "sampling_params": {**GREEDY, "temperature": 1.0, "seed": 7, "n": n}}
    whole = server.post("/generate", body)
    seen: dict[int, list[dict[str, Any]]] = {}
    for event in events(server, body):
        seen.setdefault(event.get("index", 0), []).append(event)
    assert [told(seen[i][-1])[:3] for i in sorted(seen)] == [
        told(one)[:3] for one in (whole if isinstance(whole, list) else [whole])
    ]
    for steps in seen.values():
        for earlier, later in itertools.pairwise(steps):
            assert later["text"].startswith(earlier["text"])
        assert [step["meta_info"]["finish_reason"] is not None for step in steps] == [False] * (len(steps) - 1) + [True]


@pytest.mark.parametrize(
    "body, named",
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": ""}, "text"),
        ({"text": []}, "text"),
        ({"text": ["a", 1]}, "text[1]"),
        ({"input_ids": [1, "x"]}, "input_ids"),
        ({"input_ids": [10**9]}, "1000000000"),
        ({"text": "a", "foo": 1, "bar": 2}, "'foo', 'bar'"),
        ({"text": "a", "temperature": 0}, "temperature belongs into sampling_params"),
        ({"text": "a", "image_data": "x"}, "image_data"),
        ({"text": "a", "session_params": {"id": 1}}, "session_params.id"),
        ({"text": "a", "session_params": [{"id": "x"}]}, "session_params"),
        ({"text": "a", "input_embeds": [[0.1]]}, "input_ids"),
        ({"text": "a", "max_thinking_tokens": 5}, "reasoning_budget"),
        ({"text": ["a", "b"], "image_data": [None, "x"]}, "image_data"),
        ({"text": "a", "sampling_params": {"custom_params": {"x": 1}}}, "custom_params"),
        ({"text": "a", "sampling_params": {"stream_interval": 0}}, "stream_interval"),
        ({"text": "a", "sampling_params": {"n": 129}}, "n"),
        ({"text": "a", "sampling_params": {"stop": ["x"] * 33}}, "stop"),
        ({"input_ids": [[1]] * 2049}, "2048"),
        ({"text": "a", "lora_path": "x"}, "lora_path"),
        ({"text": "a", "stream": 1}, "stream"),
        ({"text": "a", "return_logprob": "yes"}, "return_logprob"),
        ({"text": "a", "return_logprob": True, "top_logprobs_num": 1.5}, "top_logprobs_num"),
        ({"text": "a", "token_ids_logprob": [True]}, "token_ids_logprob"),
        ({"text": "a", "sampling_params": 3}, "sampling_params"),
        ({"text": "a", "sampling_params": {"top_p": 2}}, "top_p"),
        ({"text": "a", "sampling_params": {"top_k": 10**50}}, "top_k"),
        ({"text": "a", "sampling_params": {"regex": "("}}, "regex"),
        ({"text": "a", "priority": "high"}, "priority"),
        ({"text": ["a", "b"], "rid": ["one"]}, "rid"),
        ({"text": ["a", "b"], "rid": ["one", 2]}, "rid"),
        ({"text": "a", "rid": 7}, "rid"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params"),
        ({"text": "word " * 5000, "sampling_params": {"max_new_tokens": 1}}, "2048"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_a_400_that_names_it(
    server: Served, body: dict[str, Any], named: str, stream: bool
) -> None:
    error = server.post("/generate", {**({"stream": True} if stream else {}), **body}, 400)["error"]
    assert named in error["message"] and error["type"] == "invalid_request_error"


def test_fields_that_ask_for_nothing_are_accepted(server: Served) -> None:
    nothing = {"image_data": None, "return_hidden_states": False, "lora_path": None, "rid": None, "modalities": []}
    more = {"session_params": None, "lora_id": [None], "routed_dp_rank": 0, "log_metrics": True}
    sampling = {**GREEDY, "custom_params": None, "stream_interval": None}
    response = server.http.post("/generate", json={"text": "a", "sampling_params": sampling, **nothing, **more})
    assert response.status_code == 200 and "x-sglite-ignored" not in response.headers


@pytest.mark.parametrize("stream", [False, True])
def test_fields_without_effect_are_named(server: Served, stream: bool) -> None:
    body = {"text": "a", "sampling_params": GREEDY, "routing_key": "x", "no_logs": True, "stream": stream}
    response = server.http.post("/generate", json=body)
    assert set(response.headers["x-sglite-ignored"].split(", ")) == {"routing_key", "no_logs"}


def test_an_interval_leaves_events_out_but_for_first_and_last(server: Served) -> None:
    sampling = {"temperature": 0.0, "max_new_tokens": 20, "ignore_eos": True}
    steps = events(server, {"text": "Hello", "sampling_params": {**sampling, "stream_interval": 8}})
    lengths = [len(step["output_ids"]) for step in steps]
    assert lengths[-1] == 20 and len(lengths) <= 4
    assert all(later - earlier >= 8 for earlier, later in itertools.pairwise(lengths[:-1]))
    assert steps[-1]["text"] == server.post("/generate", {"text": "Hello", "sampling_params": sampling})["text"]


def test_one_name_for_a_batch_names_its_requests(server: Served) -> None:
    found = server.post("/generate", {"text": ["a", "b"], "rid": "lot", "sampling_params": GREEDY})
    assert [one["meta_info"]["id"] for one in found] == ["lot_0", "lot_1"]


@pytest.mark.parametrize("body, aborted", [({"text": ["a", "b"]}, 2), ({"text": "a", "sampling_params": {"n": 2}}, 1)])
def test_a_name_ends_all_that_was_asked_for_under_it(server: Served, body: dict[str, Any], aborted: int) -> None:
    sampling = {**LONG, **body.get("sampling_params", {})}
    body = {**body, "sampling_params": sampling, "rid": "many", "stream": True}
    with server.http.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        assert server.post("/abort_request", {"rid": "man"}) == {"aborted": 0}
        assert server.post("/abort_request", {"rid": "many"}) == {"aborted": aborted}
        last = {json.loads(line[6:])["index"]: json.loads(line[6:]) for line in lines if line.startswith("data: {")}
    assert [last[i]["meta_info"]["finish_reason"]["type"] for i in (0, 1)] == ["abort", "abort"]


def test_one_of_several_outputs_ends_alone(server: Served) -> None:
    body = {"text": "a", "sampling_params": {**LONG, "max_new_tokens": 60, "n": 2}, "rid": "pair", "stream": True}
    with server.http.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        assert server.post("/abort_request", {"rid": "pair-2x"}) == {"aborted": 0}
        assert server.post("/abort_request", {"rid": "pair-1"}) == {"aborted": 1}
        last = {json.loads(line[6:])["index"]: json.loads(line[6:]) for line in lines if line.startswith("data: {")}
    assert [last[i]["meta_info"]["finish_reason"]["type"] for i in (0, 1)] == ["length", "abort"]


def test_a_programs_generation_is_ended_by_the_name_it_says(server: Served) -> None:
    nodes = [
        {"op": "open", "seq": "0"},
        {"op": "extend", "seq": "0", "text": "Hello"},
        {"op": "generate", "id": "a", "seq": "0", "sampling_params": LONG, "stream": True},
        {"op": "close", "seq": "0"},
    ]
    body = {"version": 1, "program": "p-abort", "nodes": nodes}
    with server.http.stream("POST", "/program", json=body) as response:
        lines = (json.loads(line) for line in response.iter_lines() if line)
        first = next(line for line in lines if "outputs" in line)
        assert server.post("/abort_request", {"rid": first["outputs"][0]["meta_info"]["id"]}) == {"aborted": 1}
        last = [line for line in lines if "outputs" in line][-1]
    assert last["outputs"][0]["meta_info"]["finish_reason"]["type"] == "abort"


def test_vertex_wraps_the_same_answers(server: Served) -> None:
    body = {"instances": [{"text": "a"}, {"text": "b"}], "parameters": {"sampling_params": GREEDY}}
    found = server.post("/vertex_generate", body)["predictions"]
    assert [one["text"] for one in found] == [
        one["text"] for one in server.post("/generate", {"text": ["a", "b"], "sampling_params": GREEDY})
    ]
    assert server.post("/vertex_generate", {"instances": []}) == {"predictions": []}
    for wrong in ({}, {"instances": "a"}, {"instances": [{"text": "a"}, {"input_ids": [1]}]}, {"instances": [1]}):
        server.post("/vertex_generate", wrong, 400)
    server.post("/vertex_generate", {"instances": [{"text": "a"}], "parameters": {"stream": True}}, 400)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"\xff",
        b'{"text": NaN}',
        b'{"text": 1e999}',
        b'{"text": "\\ud800"}',
        b'{"text": "a\\udfff"}',
        b'{"text": "\xff\xfe"}',
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"text":' + b'"a"' * 2,
        b'{"text": "a"} x',
        '{"text": "a"}'.encode("utf-16"),
        b'{"tools": ' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"text": ' + b"9" * 5000 + b"}",
    ],
)
def test_bodies_that_are_no_json_object_are_400(server: Served, content: bytes) -> None:
    for path in BODIES:
        response = server.http.post(path, content=content)
        assert response.status_code == 400 and response.json()["error"]["message"]


@pytest.mark.parametrize("opens, closes", [(b"[", b"]"), (b'{"a":', b"}")])
def test_a_body_is_nested_so_deep_and_no_deeper(opens: bytes, closes: bytes) -> None:
    decode(opens * (MAX_DEPTH - 1) + b"[]" + closes * (MAX_DEPTH - 1))
    decode(b"[" + b"[]," * 5000 + b"1]")
    with pytest.raises(Refused, match="deeper than 200"):
        decode(opens * MAX_DEPTH + b"[]" + closes * MAX_DEPTH)


BODIES = (
    "/generate", "/program", "/program/renew", "/program/close", "/abort_request", "/render", "/tokenize",
    "/detokenize", "/open_session", "/close_session", "/vertex_generate", "/parse_function_call", "/separate_reasoning",
)  # fmt: skip


def test_errors_of_routing_have_the_same_shape(server: Served) -> None:
    assert server.http.get("/nowhere").status_code == 404
    assert server.http.get("/generate").status_code == 405
    assert "/nowhere" in server.http.get("/nowhere").json()["error"]["message"]


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
        raw.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{")
        assert b" 413 " in raw.recv(100)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_request(server: Served, stream: bool) -> None:
    body = json.dumps({"text": "a", "sampling_params": LONG, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
        raw.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert settles(lambda: server.info()["num_open_requests"] == 1)
    assert settles(lambda: server.info()["num_open_requests"] == 0, 2.0)


def test_abort_by_name_ends_that_request_and_says_so(server: Served) -> None:
    with server.http.stream(
        "POST", "/generate", json={"text": "a", "sampling_params": LONG, "rid": "mine", "stream": True}
    ) as response:
        lines = response.iter_lines()
        next(lines)
        assert "mine" in server.post("/generate", {"text": "b", "rid": "mine"}, 400)["error"]["message"]
        assert server.post("/abort_request", {"rid": "other"}) == {"aborted": 0}
        assert server.post("/abort_request", {"rid": "mine"}) == {"aborted": 1}
        last = [line for line in lines if line][-2]
    assert json.loads(last[6:])["meta_info"]["finish_reason"]["type"] == "abort"


@pytest.mark.parametrize("body", [{}, {"rid": 5}, {"rid": "x", "abort_all": True}, {"abort_all": "yes"}, {"id": "x"}])
def test_an_abort_that_names_nothing_is_refused(server: Served, body: dict[str, Any]) -> None:
    server.post("/abort_request", body, 400)


def test_more_requests_than_the_engine_may_hold_are_turned_away(server: Served, monkeypatch: Any) -> None:
    full = InFlight(limit=1)
    full.admit()
    full.add("one", Generation([Presenter("one", SamplingParams(), None, None)], lambda rid: None))
    with pytest.raises(Refused, match="1 requests are open") as refused:
        full.admit()

    def turn_away(self: InFlight, *counts: int) -> None:
        raise refused.value

    monkeypatch.setattr(InFlight, "admit", turn_away)
    response = server.http.post("/generate", json={"text": "a"})
    assert response.status_code == 429 and response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "queue_full"


def test_the_model_says_how_its_turns_are_spelled(server: Served) -> None:
    for path in ("/get_model_info", "/model_info"):
        info = server.http.get(path).json()
    told = info["chat_format"]
    assert info["has_image_understanding"] is False and info["is_generation"] is True
    assert tuple(told["turns"]["user"]) == server.engine.turn("user", False)
    assert tuple(told["first"]["user"]) == server.engine.turn("user", True)


def test_flush_forgets_what_was_cached(server: Served) -> None:
    body = {"text": "A prompt that is long enough to be cached.", "sampling_params": GREEDY}
    server.post("/generate", body)
    assert server.post("/generate", body)["meta_info"]["cached_tokens"] > 0
    assert server.post("/flush_cache", {}) == {"success": True}
    assert server.post("/generate", body)["meta_info"]["cached_tokens"] == 0


def test_render_is_the_checkpoints_own_template(server: Served) -> None:
    messages = [{"role": "user", "content": "hi"}]
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
    template = server.engine.chat_template
    assert template is not None
    found = server.post("/render", {"messages": messages, "tools": tools})
    assert found == {"prompt": template.render(messages, tools=tools, add_generation_prompt=True)}
    for wrong in ({}, {"messages": []}, {"messages": ["x"]}, {"messages": messages, "tools": "f"}, {"message": []}):
        server.post("/render", wrong, 400)


@pytest.fixture(scope="module")
def locked(engine: Any) -> Iterator[str]:
    server, url, thread = start(engine, api_key="ключ")
    yield url
    server.should_exit = True
    thread.join(10)


def test_the_key_opens_and_health_needs_none(locked: str) -> None:
    assert httpx.get(f"{locked}/health").status_code == 200
    for headers in ({"Authorization": "Bearer ключ".encode()}, {"X-API-Key": "ключ".encode()}):
        assert httpx.get(f"{locked}/model_info", headers=headers).status_code == 200
