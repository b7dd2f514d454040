"""The Responses API: the same turns as chat, as items; kept, continued, cancelled."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from served import IDLE, Served, settles, start

import sglite as sgl
from sglite.runtime.serve.responses_api.store import Kept, Store

PATH = "/v1/responses"
ADD = {
    "type": "function",
    "name": "add",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["a"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with sgl.Engine(dtype="float32", max_total_tokens=16384, num_threads=1, show_progress=False) as engine:
        running, url, thread = start(engine)
        with httpx.Client(base_url=url, timeout=60) as http:
            yield Served(url, engine, http)
        running.should_exit = True
        thread.join(10)


@pytest.fixture
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def text(response: Any) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def make(server: Served, **fields: Any) -> Any:
    return server.post(PATH, {"input": "Tell me about ships.", "temperature": 0, "max_output_tokens": 12, **fields})


def test_a_response_is_what_chat_says(server: Served) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me about ships."}]
    chat = server.post("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 12})
    found = make(server, instructions="Be brief.")
    assert text(found) == chat["choices"][0]["message"]["content"]
    assert found["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert found["usage"]["output_tokens"] == chat["usage"]["completion_tokens"]
    cut = make(server, max_output_tokens=2, ignore_eos=True)
    assert cut["status"] == "incomplete" and cut["incomplete_details"] == {"reason": "max_output_tokens"}


def test_the_events_add_up_to_the_response(server: Served, client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(
            model="default", input="Tell me about ships.", temperature=0, max_output_tokens=12, stream=True,
            include=["message.output_text.logprobs"],
        )
    )  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:3]] == [
        "response.created", "response.in_progress", "response.output_item.added",
    ]  # fmt: skip
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last: Any = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert deltas == last.response.output_text == text(make(server))
    assert events[2].item.content == [], "an item begins empty"  # type: ignore[union-attr]
    kept = client.responses.retrieve(last.response.id)
    assert kept.output_text == deltas and kept.status == last.response.status


def test_a_conversation_goes_on_from_a_response_as_from_its_items(server: Served) -> None:
    first = make(server)
    by_name = make(server, input="And tea?", previous_response_id=first["id"])
    told = [
        {"role": "user", "content": "Tell me about ships."},
        *first["output"],
        {"role": "user", "content": "And tea?"},
    ]
    by_items = make(server, input=told)
    assert text(by_name) == text(by_items)
    assert by_name["usage"]["input_tokens"] == by_items["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    listed = server.http.get(f"{PATH}/{by_name['id']}/input_items").json()["data"]
    assert [item.get("role") for item in listed] == ["user", "assistant", "user"]


def test_calls_and_their_outputs_are_items(server: Served) -> None:
    found = make(server, tools=[ADD], tool_choice="required", max_output_tokens=100)
    (call,) = [item for item in found["output"] if item["type"] == "function_call"][:1]
    assert call["name"] == "add" and 0 <= json.loads(call["arguments"])["a"] <= 99
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "7"}
    followed = make(server, input=[output], previous_response_id=found["id"], tools=[ADD], tool_choice="none")
    assert followed["status"] in ("completed", "incomplete") and isinstance(text(followed), str)
    without = make(server, input="x", tools=[ADD], tool_choice="none")
    assert followed["usage"]["input_tokens"] > without["usage"]["input_tokens"]


def test_one_in_the_background_can_be_asked_for_and_cancelled(server: Served) -> None:
    begun = make(server, background=True)
    assert begun["status"] == "queued" and begun["output"] == []
    path = f"{PATH}/{begun['id']}"
    assert settles(lambda: server.http.get(path).json()["status"] in ("completed", "incomplete"))
    assert text(server.http.get(path).json()) == text(make(server))
    long = make(server, background=True, max_output_tokens=1900, ignore_eos=True)
    time.sleep(0.1)
    cancelled = server.http.post(f"{PATH}/{long['id']}/cancel")
    assert cancelled.status_code == 200 and cancelled.json()["status"] == "cancelled"
    assert settles(lambda: server.load() == IDLE)


def test_what_is_not_kept_is_not_found(server: Served) -> None:
    kept, passing = make(server), make(server, store=False)
    assert server.http.get(f"{PATH}/{passing['id']}").status_code == 404
    assert server.http.delete(f"{PATH}/{kept['id']}").json()["deleted"] is True
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        answer = server.http.request(method, f"{PATH}/{kept['id']}{path}")
        assert answer.status_code == 404 and answer.json()["error"]["message"]
    answer = server.post(PATH, {"input": "x", "previous_response_id": kept["id"]}, 404)
    assert answer["error"]["param"] == "previous_response_id"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"background": True, "stream": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"text": {"format": {"type": "json_schema", "schema": 5}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 1e9}, "temperature"),
        ({"reasoning": {"effort": "enormous"}}, "reasoning.effort"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(server: Served, fields: Any, param: str) -> None:
    error = server.post(PATH, {"input": "x", **fields}, 400)["error"]
    assert error["param"] == param and error["message"]


def test_the_store_forgets_the_oldest() -> None:
    store = Store(most=3, most_bytes=10_000)
    for index in range(5):
        store.put(Kept({"id": f"r{index}"}, []))
    assert len(store) == 3 and store.get("r1") is None and store.get("r4") is not None
    store.put(Kept({"id": "big"}, ["x" * 9_990]))
    assert store.get("big") is not None and len(store) == 1, "what is newest stays, whatever its size"
    store.put(Kept({"id": "big"}, []))
    store.put(Kept({"id": "small"}, []))
    assert len(store) == 2
