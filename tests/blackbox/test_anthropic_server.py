"""Anthropic's routes over a real socket, by hand and with Anthropic's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import jsonschema
import pytest
from served import IDLE, Served, settles, start

import sglite as sgl

PATH = "/v1/messages"
MESSAGES = [{"role": "user", "content": "Tell me about ships."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ADD = {
    "name": "add",
    "description": "Adds two integers.",
    "input_schema": {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in "ab"},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TOOLS = [WEATHER, ADD]
CALL = {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1, "b": 2}}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with sgl.Engine(dtype="float32", max_total_tokens=16384, num_threads=1, show_progress=False) as engine:
        running, url, thread = start(engine, served_model_name=("demo",))
        with httpx.Client(base_url=url, timeout=60) as http:
            served = Served(url, engine, http)
            yield served
            assert settles(lambda: served.load() == IDLE), served.load()
        running.should_exit = True
        thread.join(10)


@pytest.fixture
def client(server: Served) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "demo", "max_tokens": 12, "temperature": 0, "messages": MESSAGES, **fields}


def create(server: Served, **fields: Any) -> Any:
    return server.post(PATH, body(**fields))


def events(server: Served, **fields: Any) -> list[Any]:
    """A stream, each event of which is called what its type is."""
    with server.http.stream("POST", PATH, json=body(stream=True, **fields)) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        text = "".join(response.iter_text())
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def put_together(found: list[Any]) -> Any:
    """The message that a stream makes, read by the rules of the API."""
    assert [found[0]["type"], *(one["type"] for one in found[-2:])] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]
    message, texts = found[0]["message"], []
    assert (message["content"], message["stop_reason"], message["usage"]["output_tokens"]) == ([], None, 0)
    for one in found[1:-2]:
        if one["type"] == "content_block_start":
            assert one["index"] == len(message["content"])
            message["content"].append(one["content_block"])
            texts.append("")
        elif one["type"] == "content_block_delta":
            assert one["index"] == len(message["content"]) - 1
            texts[-1] += next((value for name, value in one["delta"].items() if name not in ("type", "signature")), "")
        else:
            assert one == {"type": "content_block_stop", "index": len(message["content"]) - 1}
    for block, text in zip(message["content"], texts, strict=True):
        field = {"text": "text", "thinking": "thinking", "tool_use": "input"}[block["type"]]
        block[field] = json.loads(text or "{}") if field == "input" else text
    usage = message["usage"] | found[-2]["usage"]
    return {**message, **found[-2]["delta"], "usage": usage}


def same(one: Any, other: Any) -> None:
    """The same message, but for its name, what it took, and what was in the cache."""
    for message in (one, other):
        for block in message["content"]:
            block.pop("id", None)
        usage = message["usage"]
        message["usage"] = (usage["input_tokens"] + usage["cache_read_input_tokens"], usage["output_tokens"])
        assert message.pop("id").startswith("msg_")
    assert one == other


def refused(server: Served, status: int = 400, **fields: Any) -> dict[str, Any]:
    answer = server.post(PATH, body(**fields), status)
    assert answer["type"] == "error" and set(answer["error"]) == {"type", "message"}
    return dict(answer["error"])


# --- messages ---------------------------------------------------------------------------------------------------


def test_a_message_says_what_the_openai_route_says(server: Served) -> None:
    found = create(server, system="Be brief.")
    chat = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    theirs = server.post("/v1/chat/completions", {"messages": chat, "temperature": 0, "max_tokens": 12})
    assert found["content"] == [{"type": "text", "text": theirs["choices"][0]["message"]["content"]}]
    usage = found["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == theirs["usage"]["prompt_tokens"]
    assert usage["output_tokens"] == theirs["usage"]["completion_tokens"]
    assert (found["type"], found["role"], found["model"]) == ("message", "assistant", "demo")


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"max_tokens": 3},
        {"max_tokens": 60, "thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"max_tokens": 100, "tools": TOOLS, "tool_choice": {"type": "any"}},
        {"max_tokens": 100, "tools": TOOLS, "tool_choice": {"type": "tool", "name": "add"}},
        {"max_tokens": 60, "tools": TOOLS, "messages": [{"role": "user", "content": "Add 2 and 3."}]},
        {"max_tokens": 100, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    ],
)
def test_a_stream_adds_up_to_the_whole(server: Served, extra: dict[str, Any]) -> None:
    expected, found = create(server, **extra), put_together(events(server, **extra))
    same(found, expected)
    assert expected["content"]


def test_the_usage_tells_what_was_in_the_cache(server: Served) -> None:
    fields = {"messages": [{"role": "user", "content": "One, two, three, four. " * 20}], "max_tokens": 1}
    first, again = (create(server, **fields)["usage"] for _ in range(2))
    assert again["cache_read_input_tokens"] > first["cache_read_input_tokens"] + 50
    for usage in (first, again):
        assert usage["sglite"]["computed_prompt_tokens"] == usage["input_tokens"]
        assert usage["cache_creation_input_tokens"] == 0


def test_counted_tokens_are_the_ones_that_are_sent(server: Served) -> None:
    for extra in (
        {},
        {"system": "Be brief."},
        {"tools": TOOLS},
        {"thinking": {"type": "enabled", "budget_tokens": 99}},
    ):
        usage = create(server, **extra)["usage"]
        counted = server.post(f"{PATH}/count_tokens", {"model": "demo", "messages": MESSAGES, **extra})
        assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


def test_stop_sequences_are_named(server: Served) -> None:
    said = create(server)["content"][0]["text"]
    for found in (create(server, stop_sequences=["???", said[4:7]]), put_together(
        events(server, stop_sequences=["???", said[4:7]])
    )):  # fmt: skip
        assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", said[4:7])
        assert found["content"] == [{"type": "text", "text": said[: said.index(said[4:7])]}]


def test_limits_and_ends_are_told_apart(server: Served) -> None:
    assert create(server, max_tokens=2)["stop_reason"] == "max_tokens"
    assert create(server, max_tokens=0)["content"] == []
    short = {"messages": [{"role": "user", "content": "Add 2 and 3."}], "tools": TOOLS, "max_tokens": 100}
    assert create(server, **short)["stop_reason"] == "tool_use"
    long = {"messages": [{"role": "user", "content": "x " * 1980}], "max_tokens": 32_000}
    regex = {"type": "json_schema", "schema": {"type": "array", "items": {"const": 1}, "minItems": 2000}}
    assert create(server, output_config={"format": regex}, **long)["stop_reason"] == "model_context_window_exceeded"


def test_thinking_is_a_block_in_front(server: Served) -> None:
    found = create(server, max_tokens=60, thinking={"type": "enabled", "budget_tokens": 1024})
    assert found["content"][0]["type"] == "thinking" and found["content"][0]["thinking"]
    assert found["content"][0]["signature"] == ""
    silent = create(server, max_tokens=60, thinking={"type": "disabled"})
    assert [block["type"] for block in silent["content"]] == ["text"]
    kinds = [one["delta"]["type"] for one in events(
        server, max_tokens=60, thinking={"type": "adaptive"}
    ) if one["type"] == "content_block_delta"]  # fmt: skip
    assert kinds.index("signature_delta") == kinds.count("thinking_delta") > 0


def test_an_answer_goes_on_from_the_assistants_last_words(server: Served) -> None:
    said = create(server)["content"][0]["text"]
    begun = [*MESSAGES, {"role": "assistant", "content": said[:9]}]
    found = create(server, messages=begun)["content"][0]["text"]
    assert not found.startswith(said[:9]) and "<|im" not in found
    counted = server.post(f"{PATH}/count_tokens", {"model": "demo", "messages": begun})["input_tokens"]
    plain = server.post(f"{PATH}/count_tokens", {"model": "demo", "messages": MESSAGES})["input_tokens"]
    tokenizer = server.engine.tokenizer
    assert tokenizer is not None and counted == plain + len(tokenizer.encode(said[:9]))


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_formats_are_enforced(server: Served, field: str) -> None:
    form: dict[str, Any] = {"type": "json_schema", "schema": SCHEMA}
    asked = {field: {"format": form} if field == "output_config" else form, "max_tokens": 100, "temperature": 1}
    for found in (create(server, **asked), put_together(events(server, **asked))):
        jsonschema.validate(json.loads(found["content"][-1]["text"]), SCHEMA)


@pytest.mark.parametrize(
    ("choice", "names"), [({"type": "any"}, {"add", "get_weather"}), ({"type": "tool", "name": "add"}, {"add"})]
)
def test_forced_calls_have_the_name_and_the_schema_that_was_asked_for(
    server: Served, choice: dict[str, Any], names: set[str]
) -> None:
    for seed in range(3):
        message = f"{seed}: tell me a story"
        asked = {"tools": TOOLS, "tool_choice": choice, "max_tokens": 200, "temperature": 1}
        found = create(server, messages=[{"role": "user", "content": message}], **asked)
        calls = [block for block in found["content"] if block["type"] == "tool_use"]
        assert calls and found["stop_reason"] == "tool_use"
        for call in calls:
            assert call["name"] in names and call["id"]
            jsonschema.validate(call["input"], next(t for t in TOOLS if t["name"] == call["name"])["input_schema"])


def test_without_parallel_use_there_is_one_call(server: Served) -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    found = create(server, tools=TOOLS, tool_choice=choice, max_tokens=200)
    assert [block["type"] for block in found["content"]] == ["tool_use"]
    none = create(server, tools=TOOLS, tool_choice={"type": "none"}, max_tokens=40)
    assert all(block["type"] != "tool_use" for block in none["content"])


# --- what coding agents send ------------------------------------------------------------------------------------


def test_a_request_of_a_coding_agent_is_answered_and_what_has_no_effect_is_named(server: Served) -> None:
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    asked = body(
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=12ab;"},
            {"type": "text", "text": "You are an agent.", **mark},
            {"type": "text", "text": "Be brief.", **mark},
        ],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "<note>x</note>"}, {"type": "text", "text": "Go."}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                CALL,
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "3"}], **mark},
            ]},
        ],
        tools=[{**ADD, **mark, "eager_input_streaming": True}, WEATHER],
        thinking={"type": "enabled", "budget_tokens": 31_999},
        max_tokens=32_000,
        metadata={"user_id": "somebody"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "medium"},
        service_tier="auto",
        stop_sequences=["\n"],
    )  # fmt: skip
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "a-2025-01-01,b-2025-02-02", "x-api-key": "none"}
    response = server.http.post(f"{PATH}?beta=true", json=asked, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["x-sglite-ignored"].split(", ") == [
        "system.x-anthropic-billing-header", "tools.eager_input_streaming", "metadata",
        "context_management", "service_tier",
    ]  # fmt: skip
    assert response.json()["id"] == f"msg_{response.headers['request-id']}"


def test_prompts_that_differ_in_billing_only_share_their_prefix(server: Served) -> None:
    text = "You are an agent of few words. " * 20
    systems = [[{"type": "text", "text": f"x-anthropic-billing-header: cch={i};"}, {"type": "text", "text": text}]
               for i in range(2)]  # fmt: skip
    _, again = (create(server, system=system, max_tokens=1)["usage"] for system in systems)
    assert again["input_tokens"] == 1


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": " "}]}, "messages"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": [CALL]}]}, "tool_result"),
        ({"system": 3}, "system"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stream": 1}, "stream"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [ADD, ADD]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "tool", "name": "sub"}}, "tool_choice.name"),
        ({"tools": [ADD], "tool_choice": "auto"}, "tool_choice"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
        ({"output_config": {"format": {"type": "regex"}}}, "output_config.format.type"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_format": {"type": "json_schema", "schema": {"type": "nothing"}}}, "output_format"),
        ({"tools": [ADD, {"name": "x", "input_schema": {"type": "object", "properties": 3}}]}, "tools[1]"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_by_name_before_the_stream(
    server: Served, fields: dict[str, Any], told: str, stream: bool
) -> None:
    error = refused(server, **{"stream": stream, **fields})
    assert error["type"] == "invalid_request_error" and told in error["message"]


def test_prompts_that_do_not_fit_are_refused_with_the_numbers(server: Served) -> None:
    error = refused(server, messages=[{"role": "user", "content": "x " * 4000}])
    assert "2048" in error["message"]


# --- Anthropic's client -----------------------------------------------------------------------------------------

CHOICES: tuple[dict[str, Any], ...] = (
    {"type": "tool", "name": "get_weather"},
    {"type": "tool", "name": "add", "disable_parallel_tool_use": True},
    {"type": "auto"},
)


class Agent:
    """Three turns, two tools, one of which fails."""

    def __init__(self) -> None:
        self.messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris? Then add 2 and 3."}]
        self.called: list[str] = []

    def asks(self, choice: dict[str, Any]) -> dict[str, Any]:
        asked = {"model": "demo", "max_tokens": 200, "messages": self.messages, "tools": TOOLS, "tool_choice": choice}
        return {**asked, "extra_body": {"temperature": 0}}

    def hears(self, message: Any, choice: dict[str, Any]) -> None:
        self.messages.append({"role": "assistant", "content": message.content})
        results = [self.run(block) for block in message.content if block.type == "tool_use"]
        assert (message.stop_reason == "tool_use") == bool(results)
        if choice["type"] == "tool":
            assert [block.name for block in message.content if block.type == "tool_use"][:1] == [choice["name"]]
        self.messages.append({"role": "user", "content": results or "go on"})

    def run(self, call: Any) -> dict[str, Any]:
        self.called.append(call.name)
        found = {"type": "tool_result", "tool_use_id": call.id}
        if call.name == "get_weather":
            return {**found, "content": "the service is down", "is_error": True}
        return {**found, "content": [{"type": "text", "text": str(call.input["a"] + call.input["b"])}]}


def test_the_client_runs_an_agent_with_streams(client: anthropic.Anthropic) -> None:
    agent = Agent()
    for choice in CHOICES:
        with client.messages.stream(**agent.asks(choice)) as stream:
            pieces = [event.partial_json for event in stream if event.type == "input_json"]
            message = stream.get_final_message()
        calls = [block for block in message.content if block.type == "tool_use"]
        assert "".join(pieces) == "".join(json.dumps(call.input) for call in calls)
        agent.hears(message, choice)
    assert agent.called[:2] == ["get_weather", "add"]


def test_the_async_client_runs_the_same_agent(server: Served) -> None:
    async def run() -> Agent:
        agent = Agent()
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
            for choice in CHOICES:
                async with client.messages.stream(**agent.asks(choice)) as stream:
                    said = [text async for text in stream.text_stream]
                    message = await stream.get_final_message()
                assert "".join(said) == "".join(block.text for block in message.content if block.type == "text")
                agent.hears(message, choice)
        return agent

    assert asyncio.run(run()).called[:2] == ["get_weather", "add"]


def test_pings_while_nothing_happens_do_not_disturb_the_client(server: Served) -> None:
    running, url, thread = start(server.engine, keep_alive_s=0.001)
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    asked: Any = {"model": "default", "max_tokens": 12, "messages": MESSAGES, "extra_body": {"temperature": 0}}
    raw = httpx.post(f"{url}{PATH}", json=body(model="default", stream=True), timeout=60).text
    assert 'event: ping\ndata: {"type":"ping"}\n\n' in raw
    with client.messages.stream(**asked) as stream:
        assert stream.get_final_text() == create(server)["content"][0]["text"]
    running.should_exit = True
    thread.join(10)


def test_the_clients_own_tool_loop_works(client: anthropic.Anthropic) -> None:
    seen: list[tuple[int, int]] = []

    @anthropic.beta_tool
    def add(a: int, b: int) -> str:
        """Adds two integers.

        Args:
            a: the first
            b: the second
        """
        seen.append((a, b))
        return str(a + b)

    asked: list[Any] = [{"role": "user", "content": "Add 2 and 3."}]
    extra = {"temperature": 0}
    runner = client.beta.messages.tool_runner(
        model="demo", max_tokens=200, tools=[add], messages=asked, max_iterations=3, extra_body=extra
    )
    reasons = [message.stop_reason for message in runner]
    assert reasons[0] == "tool_use"
    assert seen[0] == (2, 3)


def test_the_client_raises_what_went_wrong(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "demo", "max_tokens": 5, "messages": MESSAGES}
    with pytest.raises(anthropic.NotFoundError, match="nope"):
        client.messages.create(**{**asked, "model": "nope"})
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(**{**asked, "max_tokens": -1}, stream=True)
