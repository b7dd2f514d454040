"""Administration does what it says or says why not; texts are encoded, decoded and parsed as the chat routes do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from served import Served, settles, start

from sglite.runtime.serve.admin import _REFUSED

GREEDY = {"temperature": 0.0, "max_new_tokens": 6, "ignore_eos": True}
LONG = {"temperature": 0.0, "max_new_tokens": 1500, "ignore_eos": True}
ADMIN = {"Authorization": "Bearer boss"}


@pytest.fixture(scope="module")
def guarded(engine: Any) -> Iterator[httpx.Client]:
    """A server with an API key and an admin key; the client has the admin's."""
    server, url, thread = start(engine, api_key="user", admin_key="boss")
    with httpx.Client(base_url=url, timeout=60, headers=ADMIN) as http:
        yield http
    server.should_exit = True
    thread.join(10)


def test_what_cannot_be_done_says_what_to_do_instead(guarded: httpx.Client) -> None:
    for path, methods, _, _ in _REFUSED:
        for method in methods:
            error = guarded.request(method, path, json={"model_path": "/etc"})
            assert error.status_code == 400 and error.json()["error"]["code"] == "not_supported"
            assert error.json()["error"]["message"].startswith(f"{path} is not supported: ")


@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_a_paused_request_goes_on_with_the_same_output(guarded: httpx.Client, mode: str) -> None:
    body = {"text": "Hello there", "sampling_params": {**LONG, "max_new_tokens": 60}}
    expected = guarded.post("/generate", json=body).json()["output_ids"]
    with guarded.stream("POST", "/generate", json={**body, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        assert guarded.post("/pause_generation", json={"mode": mode}).json()["status"] == "ok"
        before = guarded.get("/server_info").json()["step_tokens"]
        time.sleep(0.1)
        assert guarded.get("/server_info").json()["step_tokens"] == before
        assert guarded.post("/continue_generation").json()["status"] == "ok"
        last = [json.loads(line[6:]) for line in lines if line.startswith("data: {")][-1]
    assert last["output_ids"] == expected


def test_pausing_may_end_what_is_open(guarded: httpx.Client) -> None:
    body = {"text": "Hello", "sampling_params": LONG, "stream": True}
    with guarded.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        guarded.post("/pause_generation")
        assert '"type":"abort"' in [line for line in lines if line][-2]
    guarded.post("/continue_generation", json={})
    assert guarded.post("/generate", json={"text": "a", "sampling_params": GREEDY}).status_code == 200
    for wrong in ({"mode": "hard"}, {"mode": 1}, {"how": "abort"}):
        assert guarded.post("/pause_generation", json=wrong).status_code == 400


def test_ending_everything_is_for_the_admin_and_one_request_for_everybody(guarded: httpx.Client) -> None:
    user = {"Authorization": "Bearer user"}
    assert guarded.post("/abort_request", json={"abort_all": True}, headers=user).status_code == 401
    assert guarded.post("/abort_request", json={"rid": "x"}, headers=user).json() == {"aborted": 0}
    assert guarded.post("/abort_request", json={"abort_all": True}).json() == {"aborted": 0}
    response = guarded.post("/abort_request", json={"rid": "x", "abort_message": "enough"})
    assert response.headers["x-sglite-ignored"] == "abort_message"


def test_without_an_admin_key_everybody_may_end_everything(server: Served) -> None:
    assert server.post("/abort_request", {"abort_all": True}) == {"aborted": 0}


def test_load_is_what_runs(server: Served) -> None:
    idle = server.http.get("/v1/loads").json()["loads"][0]
    assert (idle["num_running_reqs"], idle["num_waiting_reqs"], idle["num_used_tokens"]) == (0, 0, 0)
    assert idle["max_total_num_tokens"] == 16_384 and idle["memory"]["token_capacity"] == 16_384
    body = {"text": ["Hello", "you"], "sampling_params": LONG, "stream": True}
    with server.http.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        assert settles(lambda: server.info()["num_running"] == 2)
        busy = server.http.get("/v1/loads?include=core").json()["loads"][0]
        (short,) = server.http.get("/get_load").json()
    assert busy["num_running_reqs"] == 2 and busy["num_used_tokens"] > 0 and "memory" not in busy
    assert 0 < busy["token_usage"] <= 1 and busy["utilization"] == 2 / busy["max_running_requests"]
    assert short["num_reqs"] == 2 and short["dp_rank"] == 0
    for wrong in ("include=all,x", "format=prometheus", "dp_rank=1"):
        assert server.http.get(f"/v1/loads?{wrong}").status_code == 400


def test_a_flush_may_wait_for_quiet(server: Served) -> None:
    assert server.http.get("/flush_cache?timeout=5").json() == {"success": True}
    body = {"text": "Hello", "sampling_params": {**LONG, "max_new_tokens": 200}}
    thread = threading.Thread(target=server.post, args=("/generate", body))
    thread.start()
    assert settles(lambda: server.info()["num_running"] == 1)
    assert "still open" in server.post("/flush_cache?timeout=0", {}, 400)["error"]["message"]
    assert server.post("/flush_cache?timeout=30", {}) == {"success": True}
    assert server.info()["num_open_requests"] == 0
    thread.join(10)
    for wrong in ("x", "-1", "nan", "inf", "1e9", ""):
        assert server.http.get(f"/flush_cache?timeout={wrong}").status_code == 400


def test_info_shows_options_and_origins_and_no_key(guarded: httpx.Client) -> None:
    info = guarded.get("/get_server_info").json()
    assert info["version"] and info["config"]["dtype"]["origin"] == "argument"
    assert info["keys"] == ["api_key", "admin_key"] and info["options"]["host"] == "127.0.0.1"
    model = guarded.get("/model_info").json()
    assert (model["model_type"], model["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])
    (state,) = info["internal_states"]
    assert state["memory_usage"]["token_capacity"] == info["max_total_num_tokens"]
    assert state["last_gen_throughput"] >= 0 and info["tokenizer_path"] == model["tokenizer_path"]
    for path in ("/server_info", "/model_info", "/openapi.json", "/docs"):
        said = guarded.get(path).text
        assert '"user"' not in json.dumps(info["options"]) and "boss" not in said


# --- tokens ---------------------------------------------------------------------------------------------------


TEXTS = ["Hello world", "naïve 日本 🦙\n\ttabs", "", "<|im_start|>x<|im_end|>"]


@pytest.mark.parametrize("version", ["", "/v1"])
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_the_tokenizers_and_go_back(server: Served, text: str, version: str) -> None:
    tokenizer = server.engine.tokenizer
    assert tokenizer is not None
    found = server.post(f"{version}/tokenize", {"prompt": text, "return_token_strs": True})
    assert found["tokens"] == tokenizer.encode(text, add_bos=True) and found["count"] == len(found["tokens"])
    assert found["max_model_len"] == server.engine.config.context_length
    assert [tokenizer.id_of(spelled) for spelled in found["token_strs"]] == found["tokens"]
    plain = server.post("/tokenize", {"prompt": text, "add_special_tokens": False})
    assert plain["tokens"] == tokenizer.encode(text) and plain["token_strs"] is None
    back = server.post(f"{version}/detokenize", {"tokens": plain["tokens"]})
    assert back["prompt"] == text and back["text"] == tokenizer.decode(plain["tokens"], skip_special_tokens=True)
    same = server.post("/detokenize", {"tokens": plain["tokens"], "skip_special_tokens": False})
    assert same == {"prompt": text, "text": text}


def test_several_texts_at_once(server: Served) -> None:
    found = server.post("/tokenize", {"prompt": ["a b", "c"]})
    assert found["count"] == [len(ids) for ids in found["tokens"]] and len(found["tokens"]) == 2
    assert server.post("/detokenize", {"tokens": found["tokens"]})["prompt"] == ["a b", "c"]
    assert server.post("/detokenize", {"tokens": []}) == {"prompt": "", "text": ""}


def test_messages_count_what_the_chat_route_will_count(server: Served) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi " * 20_000}]
    tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}]
    for extra in ({}, {"tools": tools}, {"add_generation_prompt": False}):
        short = [{**one, "content": one["content"][:30]} for one in messages]
        found = server.post("/tokenize", {"messages": short, **extra})
        rendered = server.post("/render", {"messages": short, **extra})["prompt"]
        assert server.post("/detokenize", {"tokens": found["tokens"]})["prompt"] == rendered
        if "add_generation_prompt" not in extra:
            body = {"messages": short, "max_tokens": 1, "temperature": 0, **extra, "tool_choice": "none"}
            if "tools" not in extra:
                body.pop("tool_choice")
                usage = server.post("/v1/chat/completions", body)["usage"]
                assert usage["prompt_tokens"] == found["count"]
    assert server.post("/tokenize", {"messages": messages})["count"] > 20_000


@pytest.mark.parametrize(
    "path, body",
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": 5}),
        ("/tokenize", {"prompt": [1, 2]}),
        ("/tokenize", {"prompt": []}),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {"prompt": "a", "add_special_tokens": "yes"}),
        ("/tokenize", {"messages": []}),
        ("/tokenize", {"messages": [{"role": "wizard", "content": "a"}]}),
        ("/tokenize", {"prompt": "a", "prmpt": "b"}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": "abc"}),
        ("/detokenize", {"tokens": [1, "x"]}),
        ("/detokenize", {"tokens": [[1], 2]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [10**60]}),
        ("/detokenize", {"tokens": [True]}),
        ("/parse_function_call", {}),
        ("/parse_function_call", {"text": "a", "tools": [{"type": "function"}]}),
        ("/parse_function_call", {"text": "a", "tool_call_parser": "no such format"}),
        ("/separate_reasoning", {"text": 5}),
        ("/separate_reasoning", {"text": "a", "reasoning_parser": "no such format"}),
        ("/separate_reasoning", {"text": "a", "return_blocks": True}),
    ],
)
def test_what_is_wrong_is_a_400(server: Served, path: str, body: dict[str, Any]) -> None:
    assert server.post(path, body, 400)["error"]["message"]


def test_an_unknown_model_has_no_tokens(server: Served) -> None:
    server.post("/tokenize", {"model": "nobody", "prompt": "a"}, 404)
    server.post("/tokenize", {"model": "default", "prompt": "a"})


# --- parsing --------------------------------------------------------------------------------------------------


def test_calls_in_a_text_are_found_by_the_named_format(server: Served) -> None:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("add", "find")
    ]
    text = 'Let me see.\n<tool_call>\n{"name": "find", "arguments": {"q": "a </tool_call> b"}}\n</tool_call>'
    found = server.post("/parse_function_call", {"text": text, "tools": tools, "tool_call_parser": "hermes"})
    assert found["normal_text"].strip() == "Let me see."
    (call,) = found["calls"]
    assert (call["tool_index"], call["name"], json.loads(call["parameters"])) == (1, "find", {"q": "a </tool_call> b"})


def test_thinking_is_taken_off_by_the_named_format(server: Served) -> None:
    body = {"text": "<think>hm, 2 + 2</think>\n\n4", "reasoning_parser": "qwen3"}
    found = server.post("/separate_reasoning", body)
    assert found["reasoning_text"].strip() == "hm, 2 + 2" and found["text"].strip() == "4"


@pytest.mark.parametrize(
    ("name", "text", "thought", "said"),
    [
        ("deepseek-r1", "first 2 + 2</think>4", "first 2 + 2", "4"),
        ("deepseek-r1", "<think>first</think>4", "first", "4"),
        ("deepseek-r1", "no mark yet", "no mark yet", ""),
        ("qwen3-thinking", "first</think>4", "first", "4"),
        ("qwen3", "no mark", "", "no mark"),
    ],
)
def test_what_a_prompt_opened_is_thinking_from_the_beginning(
    server: Served, name: str, text: str, thought: str, said: str
) -> None:
    found = server.post("/separate_reasoning", {"text": text, "reasoning_parser": name})
    assert (found["reasoning_text"], found["text"]) == (thought, said)


@pytest.mark.parametrize(("text", "thought"), [("first</think>4", "first"), ("4", "")])
def test_without_a_name_the_served_models_closing_mark_shows_that_a_thought_was_open(
    server: Served, text: str, thought: str
) -> None:
    found = server.post("/separate_reasoning", {"text": text})
    assert (found["reasoning_text"], found["text"]) == (thought, "4")
