"""``/metrics`` and ``/v1/requests`` of a server: exact on every route, with no text and a bounded number of series."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx
from served import settles

from sglite.runtime.observe.series import REQUEST_COUNTERS

TEN = [5] * 10
SECRET = "zebra-secret-4711"
OF_THE_ENGINE = {
    "prompt_tokens": "prompt_tokens",
    "cached_tokens": "cached_tokens",
    "computed_tokens": "computed_prompt_tokens",
    "generation_tokens": "completion_tokens",
    "forced_tokens": "forced_tokens",
    "forward_passes": "forward_passes",
    "replayed_tokens": "replayed_tokens",
    "resampled_tokens": "resampled_tokens",
    "masks_filled": "masks_filled",
}
"""Our counters, and what the engine calls the same in its own sums."""


def seven(**more: Any) -> dict[str, Any]:
    return {"max_new_tokens": 7, "ignore_eos": True, "temperature": 0, **more}


def native(**more: Any) -> dict[str, Any]:
    return {"input_ids": TEN, "sampling_params": seven(), **more}


def program(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "program": "p", "nodes": [{"op": "open", "seq": "s"}, *nodes, {"op": "close", "seq": "s"}]}


def test_every_route_counts_its_tokens_exactly(serve: Any) -> None:
    served = serve()
    cases: list[tuple[str, dict[str, Any], int, int]] = [
        ("/generate", native(), 10, 7),
        ("/generate", native(stream=True), 10, 7),
        ("/generate", native(sampling_params=seven(n=2, temperature=1)), 20, 14),
        ("/generate", {"input_ids": [TEN, TEN[:4]], "sampling_params": seven()}, 14, 14),
        ("/generate", native(sampling_params=seven(max_new_tokens=0)), 10, 0),
        ("/v1/completions", {"prompt": TEN, "max_tokens": 7, "ignore_eos": True}, 10, 7),
        ("/v1/completions", {"prompt": TEN, "max_tokens": 7, "ignore_eos": True, "stream": True}, 10, 7),
    ]
    for path, body, prompt, generated in cases:
        before = served.metrics()
        assert served.http.post(path, json=body).status_code == 200
        after = served.metrics()
        grown = [after[f"sglite:{name}_tokens_total"] - before[f"sglite:{name}_tokens_total"] for name in
                 ("prompt", "generation")]  # fmt: skip
        assert grown == [prompt, generated], (path, body)
        assert after["sglite:prompt_tokens_total"] == sum(
            after[f"sglite:{name}_tokens_total"] for name in ("cached", "computed")
        )


def test_chat_is_counted_as_its_usage_says(serve: Any) -> None:
    served = serve()
    usage = served.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5})[
        "usage"
    ]
    found = served.metrics()
    assert found["sglite:prompt_tokens_total"] == usage["prompt_tokens"]
    assert found["sglite:generation_tokens_total"] == usage["completion_tokens"]


def test_the_sums_are_the_engines_own_after_a_mix_of_everything(serve: Any) -> None:
    served = serve()
    before = served.totals()
    served.post("/generate", native(input_ids=[*TEN, *range(40, 90)]))
    served.post("/generate", native(input_ids=[*TEN, *range(40, 95)]))
    schema = json.dumps({"type": "object", "properties": {"name": {"enum": ["Ann"]}}, "required": ["name"]})
    served.post("/generate", native(sampling_params={"max_new_tokens": 40, "json_schema": schema, "temperature": 0}))
    with served.http.stream(
        "POST", "/generate", json=native(sampling_params=seven(max_new_tokens=1500), stream=True)
    ) as r:
        next(r.iter_lines())
    nodes = (
        {"op": "extend", "seq": "s", "text": "One, two,"},
        {"op": "generate", "id": "a", "seq": "s", "sampling_params": {"max_new_tokens": 5}},
        {"op": "score", "id": "c", "seq": "s", "choices": [" yes", " no"]},
    )
    text = served.http.post("/program", json=program(*nodes)).text
    assert '"error"' not in text, text
    after, found = served.totals(), served.metrics()
    for ours, theirs in OF_THE_ENGINE.items():
        assert found[f"sglite:{ours}_total"] == after[theirs] - before[theirs], ours
    assert found["sglite:forced_tokens_total"] > 0 and found["sglite:cached_tokens_total"] > 0
    assert found["sglite:num_aborted_requests_total"] == 1 and found["sglite:num_so_requests_total"] == 1


def test_gauges_settle_and_scraping_takes_no_step(serve: Any) -> None:
    served = serve()
    served.post("/generate", native())
    assert settles(lambda: served.metrics()["sglite:engine_statistics_age_seconds"] < 1)
    assert settles(lambda: served.metrics()["sglite:steps_total"] == served.info()["num_steps"])
    steps = served.info()["num_steps"]
    for _ in range(5):
        found = served.metrics()
    assert served.info()["num_steps"] == steps
    assert found["sglite:num_running_reqs"] == found["sglite:num_queue_reqs"] == found["sglite:token_usage"] == 0
    assert found["sglite:engine_up"] == 1
    pages = [found[f"sglite:kv_{name}_tokens"] for name in ("used", "available", "evictable")]
    assert sum(pages) == found["sglite:max_total_num_tokens"] == 16_384


def test_http_requests_are_counted_by_route_and_status_and_nothing_else(serve: Any) -> None:
    served = serve(api_key="key")
    auth = {"Authorization": "Bearer key"}
    served.http.post("/generate", json=native(), headers=auth)
    served.http.post("/generate", json={"oops": 1}, headers=auth)
    served.http.post("/generate", json=native())
    for i in range(5):
        served.http.get(f"/nothing/{i}", headers=auth)
        served.http.get(f"/v1/models/{i}", headers=auth)
    found = {name: value for name, value in served.metrics().items() if "route" in name}
    assert found == {
        "sglite:http_requests_total[('route', '/generate'), ('status', '200')]": 1,
        "sglite:http_requests_total[('route', '/generate'), ('status', '400')]": 1,
        "sglite:http_requests_total[('route', '/generate'), ('status', '401')]": 1,
        "sglite:http_requests_total[('route', 'other'), ('status', '404')]": 5,
        "sglite:http_requests_total[('route', '/v1/models/{name:path}'), ('status', '404')]": 5,
    }
    refused = {name: value for name, value in served.metrics().items() if "http_refused_total" in name}
    assert refused == {
        "sglite:http_refused_total[('reason', 'invalid')]": 1,
        "sglite:http_refused_total[('reason', 'no_key')]": 1,
        "sglite:http_refused_total[('reason', 'not_found')]": 10,
    }


def test_no_text_is_seen(serve: Any, caplog: Any) -> None:
    served = serve(log_requests=True)
    caplog.set_level("INFO")
    body = {"text": SECRET, "sampling_params": {**seven(), "stop": [SECRET], "regex": f"({SECRET})+"}, "rid": "r"}
    assert served.http.post("/generate", json=body).status_code == 200
    served.http.post("/generate", json={"text": SECRET, SECRET: 1})
    served.http.get(f"/v1/requests/{SECRET}")
    shown = [served.http.get(path).text for path in ("/metrics", "/v1/requests", "/v1/requests/r")]
    assert settles(lambda: "sglite.requests" in {record.name for record in caplog.records})
    fields = [str(getattr(record, "fields", "")) for record in caplog.records if record.name == "sglite.requests"]
    assert not any(SECRET in text for text in [*shown, *fields])


def test_the_prefix_and_the_models_name_are_the_options(serve: Any) -> None:
    text = serve(metrics_prefix="sglang", served_model_name=("mine",)).http.get("/metrics").text
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(line.startswith("sglang:") and 'model_name="mine"' in line for line in lines)


def test_names_that_sglangs_dashboards_ask_for_are_there(serve: Any) -> None:
    served = serve(metrics_prefix="sglang")
    served.post("/generate", native())
    names = {name.partition("[")[0] for name in served.metrics()}
    histograms = ("e2e_request_latency_seconds", "time_to_first_token_seconds", "inter_token_latency_seconds")
    asked = [f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")]
    asked += ["num_running_reqs", "gen_throughput", "cache_hit_rate", "num_queue_reqs", "token_usage"]
    asked += ["prompt_tokens_total", "generation_tokens_total", "num_used_tokens", "queue_time_seconds_bucket"]
    assert {f"sglang:{name}" for name in asked} <= names
    assert {f"sglang:{name}_total" for name in REQUEST_COUNTERS} <= names


def test_a_request_has_a_timeline(serve: Any) -> None:
    served = serve()
    reply = served.http.post("/generate", json=native(rid="mine", stream=True), headers={"x-request-id": "abc-1"})
    assert reply.headers["x-request-id"] == "abc-1"
    meta = json.loads(reply.text.strip().split("\n\n")[-2].removeprefix("data: "))["meta_info"]
    assert settles(lambda: served.http.get("/v1/requests/abc-1").json()["state"] == "finished")
    found = served.http.get("/v1/requests/abc-1").json()
    again = served.http.get("/v1/requests/mine").json()
    assert {**found, "age_s": 0} == {**again, "age_s": 0}
    assert served.http.get("/v1/requests/chatcmpl-mine").json()["id"] == "abc-1"
    assert (found["id"], found["route"], found["status"], found["streamed"]) == ("abc-1", "/generate", 200, True)
    (one,) = found["generations"]
    assert one["id"] == "mine" and one["state"] == "finished" and one["finish_reason"] == "length"
    same = ("prompt_tokens", "cached_tokens", "computed_prompt_tokens", "completion_tokens", "forward_passes")
    assert [one[name] for name in same] == [meta[name] for name in same]
    times = [one[f"{name}_ms"] for name in ("submitted", "admitted", "first_run", "first_token", "last_token", "ended")]
    assert sorted(times) == times and found["body_ms"] <= times[0] and times[-1] <= found["answered_ms"] + 1
    (listed,) = served.http.get("/v1/requests").json()["data"]
    assert listed["id"] == "abc-1" and listed["generations"] == ["mine"]


def test_a_program_call_lists_its_generations_and_each_call_its_own(serve: Any) -> None:
    """Also where the nodes of the second are carried out by the task of the first, which waits to score."""
    served = serve()
    node = {"op": "generate", "seq": "s", "sampling_params": {"max_new_tokens": 200, "ignore_eos": True}}
    score = {"op": "score", "id": "c", "seq": "s", "choices": [" yes", " no"]}
    first = [{"op": "open", "seq": "s"}, {"op": "extend", "seq": "s", "text": "Hi"}, {**node, "id": "a"}, score]
    second = [{**node, "id": "b", "sampling_params": {"max_new_tokens": 2}}, {"op": "close", "seq": "s"}]

    def ask(name: str, nodes: list[dict[str, Any]]) -> Any:
        body = {"version": 1, "program": "p", "nodes": nodes}
        return served.http.stream("POST", "/program", json=body, headers={"x-request-id": name})

    with ask("one", first) as one, ask("two", second) as two:
        assert '"error"' not in one.read().decode() + two.read().decode()
    found = [served.http.get(f"/v1/requests/{name}").json()["generations"] for name in ("one", "two")]
    assert [len(generations) for generations in found] == [3, 1]
    assert {one["program"] for generations in found for one in generations} == {"p"}


def test_unknown_requests_and_bad_limits_are_refused(serve: Any) -> None:
    served = serve()
    assert served.http.get("/v1/requests/nobody").json()["error"]["code"] == "unknown_request"
    for limit in ("0", "-1", "x", "1001", "9" * 5000, "٣"):
        reply = served.http.get("/v1/requests", params={"limit": limit})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "limit"


def test_an_id_that_is_not_fit_to_be_one_is_replaced(serve: Any) -> None:
    served = serve()
    for given in ("", "a b", "a" * 129, 'x"y', "-", "é"):
        reply = served.http.get("/health", headers={"x-request-id": given.encode()})
        assert reply.headers["x-request-id"] != given and len(reply.headers["x-request-id"]) == 32
    for path in ("/nothing", "/v1/requests/nobody"):
        assert served.http.get(path, headers={"x-request-id": "ok.1"}).headers["x-request-id"] == "ok.1"


def test_a_client_that_goes_away_is_counted(serve: Any) -> None:
    served = serve()
    before = served.metrics()["sglite:num_aborted_requests_total"]
    with contextlib.suppress(httpx.TimeoutException):
        httpx.post(f"{served.url}/generate", json=native(sampling_params=seven(max_new_tokens=1500)), timeout=0.5)
    assert settles(lambda: served.metrics()["sglite:num_aborted_requests_total"] == before + 1)
    assert settles(lambda: any("'499'" in name for name in served.metrics()))
    assert settles(lambda: served.metrics()["sglite:http_open_requests"] == 1)  # the scrape's own
