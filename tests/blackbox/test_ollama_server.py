"""Ollama's routes over a real socket, by hand and with Ollama's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import ollama
import pytest
from served import IDLE, Served, settles, start

import sglite as sgl

MESSAGES = [{"role": "user", "content": "Tell me about ships."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
DURATIONS = ("load_duration", "prompt_eval_duration", "eval_duration")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with sgl.Engine(dtype="float32", max_total_tokens=16384, num_threads=1, show_progress=False) as engine:
        running, url, thread = start(engine, served_model_name=("demo", "tiny:1b"))
        with httpx.Client(base_url=url, timeout=60) as http:
            served = Served(url, engine, http)
            yield served
            assert settles(lambda: served.load() == IDLE), served.load()
        running.should_exit = True
        thread.join(10)


def body(**fields: Any) -> dict[str, Any]:
    options = {"temperature": 0, "num_predict": 12, **fields.pop("options", {})}
    return {"model": "demo", "options": options, **fields}


def whole(server: Served, path: str, **fields: Any) -> Any:
    return server.post(path, body(stream=False, **fields))


def lines(server: Served, path: str, **fields: Any) -> list[Any]:
    """A stream, which is what these routes give unless told otherwise."""
    with server.http.stream("POST", path, json=body(**fields)) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("application/x-ndjson")
        found = [json.loads(line) for line in response.iter_lines()]
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
    return found


def refused(server: Served, path: str, status: int = 400, **fields: Any) -> str:
    error = server.post(path, body(**fields), status)
    assert set(error) == {"error"}
    return str(error["error"])


def ignored(server: Served, path: str, **fields: Any) -> list[str]:
    response = server.http.post(path, json=body(stream=False, **fields))
    assert response.status_code == 200, response.text
    return response.headers.get("x-sglite-ignored", "").split(", ")


# --- chat -------------------------------------------------------------------------------------------------------


def test_a_chat_says_what_the_openai_route_says(server: Served) -> None:
    found = whole(server, "/api/chat", messages=MESSAGES)
    theirs = server.post("/v1/chat/completions", {"messages": MESSAGES, "temperature": 0, "max_tokens": 12})
    assert found["message"] == {"role": "assistant", "content": theirs["choices"][0]["message"]["content"]}
    assert found["done_reason"] == theirs["choices"][0]["finish_reason"]
    assert found["prompt_eval_count"] == theirs["usage"]["prompt_tokens"]
    assert found["eval_count"] == theirs["usage"]["completion_tokens"]


@pytest.mark.parametrize("extra", [{}, {"think": True}, {"think": False}, {"format": SCHEMA}, {"logprobs": True}])
def test_a_chats_lines_add_up_to_the_whole(server: Served, extra: dict[str, Any]) -> None:
    fields = {"messages": MESSAGES, "options": {"num_predict": 60}, **extra}
    expected, found = whole(server, "/api/chat", **fields), lines(server, "/api/chat", **fields)
    parts = [line["message"] for line in found]
    assert "".join(part["content"] for part in parts) == expected["message"]["content"]
    assert "".join(part.get("thinking", "") for part in parts) == expected["message"].get("thinking", "")
    assert [row["token"] for line in found for row in line.get("logprobs", [])] == [
        row["token"] for row in expected.get("logprobs", [])
    ]
    assert found[-1]["message"] == {"role": "assistant", "content": ""}
    counters = ("done_reason", "prompt_eval_count", "eval_count")
    assert [found[-1][name] for name in counters] == [expected[name] for name in counters]


@pytest.mark.parametrize("stream", [False, True])
def test_times_are_nanoseconds_that_add_up(server: Served, stream: bool) -> None:
    asked = {"path": "/api/chat", "messages": MESSAGES}
    found = lines(server, **asked)[-1] if stream else whole(server, **asked)
    assert all(type(found[name]) is int and found[name] >= 0 for name in ("total_duration", *DURATIONS))
    assert found["total_duration"] == sum(found[name] for name in DURATIONS) > 10**5
    assert found["created_at"].endswith("Z") and found["eval_duration"] > 0


def test_thinking_is_a_field_of_its_own_and_counts_as_output(server: Served) -> None:
    found = whole(server, "/api/chat", messages=MESSAGES, think=True, options={"num_predict": 80})
    assert found["message"]["thinking"]
    assert "think>" not in json.dumps(found["message"])
    silent = whole(server, "/api/chat", messages=MESSAGES, think=False, options={"num_predict": 80})
    assert "thinking" not in silent["message"] and silent["message"]["content"]


def test_logprobs_have_a_row_for_each_token(server: Served) -> None:
    found = whole(server, "/api/chat", messages=MESSAGES, logprobs=True, top_logprobs=2)
    assert len(found["logprobs"]) == found["eval_count"]
    for row in found["logprobs"]:
        assert row["logprob"] <= 0 and len(row["top_logprobs"]) == 2
        assert row["top_logprobs"][0]["token"] == row["token"]  # greedy


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_formats_are_enforced(server: Served, path: str, stream: bool) -> None:
    fields = {"messages": MESSAGES} if path == "/api/chat" else {"prompt": "x"}
    for form, limit in ((SCHEMA, 100), ("json", 20)):
        hot = {"temperature": 5.0, "top_k": 0, "top_p": 1, "num_predict": limit, "seed": 1}
        found = (lines if stream else whole)(server, path, format=form, options=hot, **fields)
        parts = found if stream else [found]
        text = "".join(part["message"]["content"] if path == "/api/chat" else part["response"] for part in parts)
        jsonschema.validate(json.loads(text), SCHEMA if form == SCHEMA else {"type": "object"})


def test_the_last_text_is_not_lost_where_a_limit_or_a_stop_ends_it(server: Served) -> None:
    said = whole(server, "/api/chat", messages=MESSAGES)["message"]["content"]
    for options in ({"num_predict": 3}, {"stop": [said[4:7]]}, {"stop": said[4:7]}):
        expected = whole(server, "/api/chat", messages=MESSAGES, options=options)
        assert expected["done_reason"] == ("length" if "num_predict" in options else "stop")
        found = lines(server, "/api/chat", messages=MESSAGES, options=options)
        assert "".join(line["message"]["content"] for line in found) == expected["message"]["content"] != ""
        assert said.startswith(expected["message"]["content"])


def test_seeds_repeat_and_defaults_are_not_greedy(server: Served) -> None:
    def said(**options: Any) -> str:
        asked = {"model": "demo", "messages": MESSAGES, "stream": False, "options": {"num_predict": 12, **options}}
        return str(server.post("/api/chat", asked)["message"]["content"])

    assert said(seed=5) == said(seed=5)
    assert len({said() for _ in range(6)}) > 1


def test_a_limit_beyond_the_context_is_the_context(server: Served) -> None:
    found = whole(server, "/api/generate", prompt="x", format={"enum": ["a", "b"]}, options={"num_predict": 10**6})
    assert json.loads(found["response"]) in ("a", "b")
    assert "2048" in refused(server, "/api/generate", prompt="x " * 4000, raw=True)


# --- generate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"raw": True}, {"system": "Be brief."}, {"think": True}])
def test_generations_lines_add_up_to_the_whole(server: Served, extra: dict[str, Any]) -> None:
    expected = whole(server, "/api/generate", prompt="The forest was", **extra)
    found = lines(server, "/api/generate", prompt="The forest was", **extra)
    assert "".join(line["response"] for line in found) == expected["response"]
    assert "".join(line.get("thinking", "") for line in found) == expected.get("thinking", "")
    assert found[-1]["response"] == "" and found[-1]["eval_count"] == expected["eval_count"]


def test_a_raw_prompt_is_what_the_model_reads(server: Served) -> None:
    found = whole(server, "/api/generate", prompt="The forest was", raw=True)
    expected = server.engine.generate("The forest was", {"temperature": 0, "max_new_tokens": 12})
    assert found["response"] == expected["text"]
    assert found["prompt_eval_count"] == expected["meta_info"]["prompt_tokens"]


def test_a_prompt_is_a_message_of_the_user(server: Served) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    expected = whole(server, "/api/chat", messages=chat)
    found = whole(server, "/api/generate", prompt="Hello", system="Be brief.")
    assert found["response"] == expected["message"]["content"]
    assert found["prompt_eval_count"] == expected["prompt_eval_count"]


@pytest.mark.parametrize(("stay", "reason"), [(None, "load"), ("5m", "load"), (0, "unload"), ("0s", "unload")])
def test_nothing_to_say_loads_and_unloads_without_effect(server: Served, stay: Any, reason: str) -> None:
    found = server.post("/api/generate", {"model": "demo", "keep_alive": stay})
    assert (found["response"], found["done"], found["done_reason"]) == ("", True, reason)
    found = server.post("/api/chat", {"model": "demo", "messages": [], "keep_alive": stay})
    assert (found["message"]["content"], found["done"], found["done_reason"]) == ("", True, reason)


# --- what is refused, and what has no effect --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fields", "told"),
    [
        ("/api/chat", {"messages": "x"}, "messages"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images"),
        ("/api/chat", {"messages": MESSAGES, "format": "xml"}, "format"),
        ("/api/chat", {"messages": MESSAGES, "format": {"type": "nothing"}}, "format/type: "),
        ("/api/chat", {"messages": MESSAGES, "think": "very"}, "think"),
        ("/api/chat", {"messages": MESSAGES, "stream": "yes"}, "stream"),
        ("/api/chat", {"messages": MESSAGES, "options": {"temperature": -1}}, "options.temperature"),
        ("/api/chat", {"messages": MESSAGES, "options": {"repeat_penalty": 9}}, "options.repeat_penalty"),
        ("/api/chat", {"messages": MESSAGES, "options": {"mirostat": 2}}, "options.mirostat"),
        ("/api/chat", {"messages": MESSAGES, "top_logprobs": 3}, "top_logprobs"),
        ("/api/chat", {"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools[0].function"),
        ("/api/generate", {"prompt": 3}, "prompt"),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/api/generate", {"prompt": "x", "context": [1, 2]}, "context"),
        ("/api/generate", {"prompt": "x", "template": "{{ .Prompt }}"}, "template"),
        ("/api/generate", {"prompt": "x", "images": ["aGk="]}, "images"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name_before_the_stream(
    server: Served, path: str, fields: dict[str, Any], told: str
) -> None:
    assert told in refused(server, path, **fields)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/show", "/api/embed"])
def test_unknown_models_are_not_found(server: Served, path: str) -> None:
    fields = {"model": "nope:7b", "messages": MESSAGES, "prompt": "x", "input": "x"}
    assert refused(server, path, 404, **fields) == "model 'nope:7b' not found"
    assert refused(server, path, 400, **{**fields, "model": ""}) == "model is required"


def test_what_has_no_effect_is_named(server: Served) -> None:
    options = {"num_ctx": 512, "num_gpu": 1}
    named = ignored(server, "/api/chat", messages=MESSAGES, keep_alive="5m", truncate=True, options=options)
    assert named == ["keep_alive", "options.num_ctx", "options.num_gpu", "truncate"]
    assert ignored(server, "/api/chat", messages=MESSAGES) == [""]


def test_models_are_not_changed(server: Served) -> None:
    for method, path in (
        ("POST", "/api/pull"), ("POST", "/api/push"), ("POST", "/api/create"), ("POST", "/api/copy"),
        ("DELETE", "/api/delete"), ("POST", "/api/blobs/sha256:00"),
    ):  # fmt: skip
        response = server.http.request(method, path, json={"model": "demo"})
        assert response.status_code == 501
        assert path in response.json()["error"] and "demo" in response.json()["error"]


def test_embeddings_are_refused_with_the_reason(server: Served) -> None:
    assert "embeddings" in refused(server, "/api/embed", 501, input=["a", "b"])
    assert "embeddings" in refused(server, "/api/embeddings", 501, prompt="a")


# --- models -----------------------------------------------------------------------------------------------------


def test_every_name_works_with_and_without_its_tag(server: Served) -> None:
    listed = server.http.get("/api/tags").json()["models"]
    assert [entry["name"] for entry in listed] == ["demo:latest", "tiny:1b"]
    for name in ("demo", "demo:latest", "tiny:1b"):
        assert server.post("/api/chat", body(model=name, messages=MESSAGES, stream=False))["model"] == name
        assert server.post("/api/show", {"model": name})["details"] == listed[0]["details"]


def test_the_card_is_the_models(server: Served) -> None:
    card, (running, _) = server.post("/api/show", {"model": "demo"}), server.http.get("/api/ps").json()["models"]
    assert card["capabilities"] == ["completion", "tools", "thinking"]
    assert card["model_info"]["general.architecture"] == "qwen3"
    assert card["model_info"]["qwen3.context_length"] == running["context_length"] == 2048
    assert card["model_info"]["qwen3.embedding_length"] == 256
    assert server.engine.chat_template is not None
    assert card["template"] == server.engine.chat_template.source["default"]
    weights = server.engine.folder / "model.safetensors"
    assert running["size"] == weights.stat().st_size and running["size_vram"] == 0
    assert len(running["digest"]) == 64
    assert server.http.head("/api/version").status_code == 200


# --- Ollama's client --------------------------------------------------------------------------------------------


def get_weather(city: str) -> str:
    """Weather of a city

    Args:
        city: the city
    """
    raise RuntimeError("the service is down")


def add(a: int, b: int | None = None) -> str:
    """Add two integers

    Args:
        a: the first
        b: the second
    """
    return str(a + (b or 0))


QUESTIONS = ("What is the weather in Paris?", "Add 2 and 3.", "Thanks.")
TOOLS = {"get_weather": get_weather, "add": add}


class Agent:
    """Three questions, two tools, one of which fails."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.called: list[str] = []
        self.failed = 0

    def asks(self) -> dict[str, Any]:
        options = {"temperature": 0, "num_predict": 40}
        return {"model": "demo", "messages": self.messages, "tools": list(TOOLS.values()), "options": options}

    def hears(self, parts: list[ollama.ChatResponse]) -> bool:
        """Takes a streamed turn in; whether tools were called."""
        assert parts[-1].done and parts[-1].done_reason in ("stop", "length") and parts[-1].eval_count
        text = "".join(part.message.content or "" for part in parts)
        calls = [call for part in parts for call in part.message.tool_calls or []]
        assert "tool_call" not in text
        self.messages.append({"role": "assistant", "content": text, "tool_calls": [c.model_dump() for c in calls]})
        for call in calls:
            name, arguments = call.function.name, call.function.arguments
            assert set(arguments) <= {"get_weather": {"city"}, "add": {"a", "b"}}[name]
            self.called.append(name)
            try:
                result = TOOLS[name](**arguments)
            except RuntimeError as error:
                self.failed += 1
                result = f"Error: {error}"
            self.messages.append({"role": "tool", "tool_name": name, "content": result})
        return bool(calls)

    def ends(self) -> None:
        assert set(self.called) == set(TOOLS) and self.failed
        assert [one["role"] for one in self.messages].count("user") == len(QUESTIONS)


def test_the_client_runs_an_agent_with_streams(server: Served) -> None:
    client, agent = ollama.Client(host=server.url), Agent()
    for question in QUESTIONS:
        agent.messages.append({"role": "user", "content": question})
        for _ in range(3):
            if not agent.hears(list(client.chat(stream=True, **agent.asks()))):
                break
    agent.ends()


def test_the_async_client_runs_the_same_agent(server: Served) -> None:
    async def run() -> Agent:
        client, agent = ollama.AsyncClient(host=server.url), Agent()
        for question in QUESTIONS:
            agent.messages.append({"role": "user", "content": question})
            for _ in range(3):
                if not agent.hears([part async for part in await client.chat(stream=True, **agent.asks())]):
                    break
        return agent

    asyncio.run(run()).ends()


def test_calls_are_the_same_whole_and_streamed(server: Served) -> None:
    client = ollama.Client(host=server.url)
    agent = Agent()
    agent.messages.append({"role": "user", "content": QUESTIONS[0]})
    (expected,) = client.chat(**agent.asks()).message.tool_calls or []
    (found,) = [call for part in client.chat(stream=True, **agent.asks()) for call in part.message.tool_calls or []]
    assert found == expected and expected.function.name == "get_weather"
    assert isinstance(expected.function.arguments["city"], str)


def test_the_client_sees_models_thinking_logprobs_and_errors(server: Served) -> None:
    client = ollama.Client(host=server.url)
    assert [model.model for model in client.list().models] == ["demo:latest", "tiny:1b"]
    assert client.show("demo").capabilities == ["completion", "tools", "thinking"]
    assert client.ps().models[0].context_length == 2048
    options = {"temperature": 0, "num_predict": 40}
    found = client.generate("demo", "Hello", think=True, logprobs=True, options=options)
    assert found.thinking and found.logprobs and len(found.logprobs) == found.eval_count
    with pytest.raises(ollama.ResponseError, match="not found") as caught:
        client.chat("nope", MESSAGES)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="num_predict"):
        list(client.generate("demo", "x", stream=True, options={"num_predict": -9}))
    with pytest.raises(ollama.ResponseError, match="changes no models"):
        client.pull("llama3")
