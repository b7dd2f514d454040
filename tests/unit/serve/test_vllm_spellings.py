"""What clients of vLLM ask for and rely on, where OpenAI's API says nothing or the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from served import Served

from sglite.runtime.serve.responses_api.items import messages_of
from sglite.version import __version__

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Tell me about ships."}]
IDS = [100, 200, 300, 400, 500, 600]
BODIES: dict[str, dict[str, Any]] = {CHAT: {"messages": MESSAGES}, TEXT: {"prompt": IDS}}
both = pytest.mark.parametrize("path", [CHAT, TEXT])
LONG = {"temperature": 0, "ignore_eos": True, "max_tokens": 6}


def ask(server: Served, path: str, status: int = 200, **fields: Any) -> Any:
    return server.post(path, {**BODIES[path], **LONG, **fields}, status)


def chunks(server: Served, path: str, **fields: Any) -> Iterator[Any]:
    body = {**BODIES[path], **LONG, **fields, "stream": True}
    with server.http.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line[6:])


@both
def test_what_was_not_asked_for_is_null(server: Served, path: str) -> None:
    """vLLM's clients read these attributes without looking for them first."""
    found = ask(server, path)
    of_all, choice = (found, found["choices"][0]) if path == CHAT else (found["choices"][0],) * 2
    assert of_all["prompt_logprobs"] is None and of_all["prompt_token_ids"] is None
    assert choice["token_ids"] is None and choice["stop_reason"] is None and found["system_fingerprint"] is None


@both
@pytest.mark.parametrize("wanted", [0, 1, 3])
def test_log_probabilities_of_the_prompt(server: Served, path: str, wanted: int) -> None:
    """The same numbers as with ``echo``, by token id, whatever else is asked for."""
    found = ask(server, path, prompt_logprobs=wanted, return_token_ids=True)
    choice = found["choices"][0]
    rows, ids = [(found if path == CHAT else choice)[name] for name in ("prompt_logprobs", "prompt_token_ids")]
    assert len(rows) == len(ids) and rows[0] is None and choice["logprobs"] is None
    own = [row[str(token)] for row, token in zip(rows[1:], ids[1:], strict=True)]
    echoed = server.post(TEXT, {"prompt": ids, **LONG, "echo": True, "logprobs": 1})["choices"][0]["logprobs"]
    assert [one["logprob"] for one in own] == pytest.approx(echoed["token_logprobs"][1 : len(ids)], abs=1e-4)
    for row, token in zip(rows[1:], ids[1:], strict=True):
        assert next(iter(row)) == str(token) and max(wanted, 1) <= len(row) <= wanted + 1
        ranks = sorted(one["rank"] for one in row.values() if one["rank"] is not None)
        assert ranks == list(range(1, wanted + 1))
    more = ask(server, path, prompt_logprobs=wanted, logprobs=True if path == CHAT else 0)
    rest = more["choices"][0]["logprobs"]
    tops = [one["top_logprobs"] for one in rest["content"]] if path == CHAT else rest["top_logprobs"]
    assert [len(top) for top in tops] == [0 if path == CHAT else 1] * 6, "the output has its own number of them"


@both
def test_prompt_logprobs_that_cannot_be(server: Served, path: str) -> None:
    for fields in ({"prompt_logprobs": -1}, {"prompt_logprobs": 21}, {"prompt_logprobs": 0, "stream": True}):
        assert ask(server, path, 400, **fields)["error"]["param"] == "prompt_logprobs"


@both
def test_prompts_are_cut_where_the_request_says(server: Served, path: str) -> None:
    def prompt(**fields: Any) -> list[int]:
        found = ask(server, path, return_token_ids=True, **fields)
        ids: list[int] = (found if path == CHAT else found["choices"][0])["prompt_token_ids"]
        assert found["usage"]["prompt_tokens"] == len(ids)
        return ids

    whole = prompt()
    assert prompt(truncate_prompt_tokens=4) == prompt(truncate_prompt_tokens=4, truncation_side="left") == whole[-4:]
    assert prompt(truncate_prompt_tokens=4, truncation_side="right") == whole[:4]
    assert prompt(truncate_prompt_tokens=1000) == prompt(truncate_prompt_tokens=-1) == whole
    for wrong in (0, -2, 10**6, "4"):
        assert ask(server, path, 400, truncate_prompt_tokens=wrong)["error"]["param"] == "truncate_prompt_tokens"
    assert ask(server, path, 400, truncation_side="up")["error"]["param"] == "truncation_side"


def test_a_prompt_beyond_the_context_is_cut_to_it(server: Served) -> None:
    most = server.engine.config.context_length
    body = {"prompt": [7, *IDS * 1000], "max_tokens": 8, "truncate_prompt_tokens": -1, "ignore_eos": True}
    assert server.post(TEXT, body)["usage"]["total_tokens"] == most
    echoed = server.post(TEXT, {**body, "truncate_prompt_tokens": 5, "echo": True, "return_token_ids": True})
    (choice,) = echoed["choices"]
    said = server.post("/detokenize", {"tokens": [*choice["prompt_token_ids"], *choice["token_ids"]]})["prompt"]
    assert choice["text"] == said


@both
def test_tokens_are_called_by_their_ids(server: Served, path: str) -> None:
    asked = {"return_tokens_as_token_ids": True, "return_token_ids": True}
    asked |= {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2, "echo": True}
    choice = ask(server, path, **asked)["choices"][0]
    ids = [*([] if path == CHAT else choice["prompt_token_ids"]), *choice["token_ids"]]
    rows = choice["logprobs"]
    named = [one["token"] for one in rows["content"]] if path == CHAT else rows["tokens"]
    assert named == [f"token_id:{token}" for token in ids]
    tops = (
        [[top["token"] for top in one["top_logprobs"]] for one in rows["content"]]
        if path == CHAT
        else (rows["top_logprobs"][1:])
    )
    assert all(name.startswith("token_id:") for top in tops for name in top)
    streamed = [c["choices"][0] for c in chunks(server, path, **asked)]
    rows = [one["logprobs"] for one in streamed if one["logprobs"]]
    assert sum(len(row["content"] if path == CHAT else row["tokens"]) for row in rows) == len(named)


def test_alternatives_of_a_completion_have_the_token_itself(server: Served) -> None:
    """OpenAI: ``logprobs`` alternatives and the sampled token, so up to one more; with 0 the sampled one alone."""
    for wanted in (0, 1, 5):
        found = ask(server, TEXT, logprobs=wanted, temperature=1.5, seed=3, top_p=1)["choices"][0]["logprobs"]
        for top, token, logprob in zip(*(found[k] for k in ("top_logprobs", "tokens", "token_logprobs")), strict=True):
            assert top[token] == logprob and max(wanted, 1) <= len(top) <= wanted + 1


@both
def test_the_last_text_says_why_it_ended(server: Served, path: str) -> None:
    found = [c["choices"][0] for c in chunks(server, path)]
    assert [one["finish_reason"] for one in found] == [None] * (len(found) - 1) + ["length"]
    assert found[-1]["delta"]["content"] if path == CHAT else found[-1]["text"]


@both
def test_running_usage_grows_with_every_chunk(server: Served, path: str) -> None:
    asked = {"include_usage": True, "continuous_usage_stats": True}
    found = [c["usage"] for c in chunks(server, path, stream_options=asked)]
    counts = [usage["completion_tokens"] for usage in found]
    assert counts[-1] == counts[-2] == 6 and counts[:-1] == sorted(set(counts[:-1]))
    assert {usage["prompt_tokens"] for usage in found} == {found[-1]["prompt_tokens"]}
    assert all(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] for usage in found)
    off = {"include_usage": False, "continuous_usage_stats": True}
    assert all(c.get("usage") is None and c["choices"] for c in chunks(server, path, stream_options=off))


@both
def test_stop_reason_is_what_the_request_named(server: Served, path: str) -> None:
    ids = ask(server, path, return_token_ids=True)["choices"][0]["token_ids"]
    stopped = ask(server, path, stop_token_ids=[ids[2]])["choices"][0]
    assert stopped["finish_reason"] == "stop" and stopped["stop_reason"] == ids[2]
    ended = server.post(CHAT, {"messages": [{"role": "user", "content": "what is 1+1?"}], "temperature": 0})
    (choice,) = ended["choices"]
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] is None and choice["matched_stop"] is not None
    whole = ask(server, TEXT)["choices"][0]["text"]
    assert ask(server, TEXT, stop=whole[-3:])["choices"][0]["stop_reason"] == whole[-3:]


def test_an_answer_that_goes_on_may_begin_with_what_it_goes_on_from(server: Served) -> None:
    begun = {"role": "assistant", "content": [{"type": "text", "text": "A ship is"}]}
    asked: dict[str, Any] = {"messages": [*MESSAGES, {**begun, "content": "A ship is"}], "continue_final_message": True}
    plain = ask(server, CHAT, **asked)["choices"][0]["message"]["content"]
    assert ask(server, CHAT, echo=True, **asked)["choices"][0]["message"]["content"] == "A ship is" + plain
    told = "".join(c["choices"][0]["delta"]["content"] for c in chunks(server, CHAT, echo=True, **asked))
    assert told == "A ship is" + plain
    assert ask(server, CHAT, echo=True)["choices"] == ask(server, CHAT)["choices"], "nobody's words but its own"
    shown = ask(server, CHAT, echo=True, messages=[*MESSAGES, begun])["choices"][0]["message"]["content"]
    assert shown.startswith("A ship is")


def test_a_choice_of_tools_needs_tools(server: Served) -> None:
    named = {"type": "function", "function": {"name": "f"}}
    for choice in ("auto", "required", named):
        assert ask(server, CHAT, 400, tool_choice=choice)["error"]["param"].startswith("tool_choice")
    assert ask(server, CHAT, tool_choice="none")["choices"] == ask(server, CHAT, tool_choice=None)["choices"]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain"])
def test_a_body_of_another_kind_is_refused(server: Served, kind: str) -> None:
    body = json.dumps({"messages": MESSAGES, "max_tokens": 1})
    refused = server.http.post(CHAT, content=body, headers={"Content-Type": kind})
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "unsupported_content_type"
    for good in ({}, {"Content-Type": "application/json; charset=utf-8"}):
        assert server.http.post(CHAT, content=body, headers=good).status_code == 200


@both
@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**63])
def test_a_seed_has_64_bits(server: Served, path: str, seed: int) -> None:
    assert ask(server, path, 400, seed=seed)["error"]["param"] == "seed"


def test_a_prompt_that_is_tokens_already(server: Served) -> None:
    """What comes of them is what comes of the messages; nothing is left for a template to say."""
    ids = server.post("/tokenize", {"messages": MESSAGES})["tokens"]
    body = {"messages": [], "prompt_token_ids": ids, "return_token_ids": True, **LONG}
    found, templated = server.post(CHAT, body), ask(server, CHAT)
    assert found["prompt_token_ids"] == ids
    assert found["choices"][0]["message"]["content"] == templated["choices"][0]["message"]["content"]
    for more in ({"add_generation_prompt": True}, {"chat_template_kwargs": {}}, {"documents": []}):
        assert server.post(CHAT, {**body, **more}, 400)["error"]["param"] == next(iter(more))
    for wrong in ([], ["a"], "text"):
        assert server.post(CHAT, {**body, "prompt_token_ids": wrong}, 400)["error"]["param"] == "prompt_token_ids"
    assert "give one" in server.post(CHAT, {**body, "input_ids": ids}, 400)["error"]["message"]


def test_a_turn_cannot_both_begin_and_go_on(server: Served) -> None:
    body = {"messages": [*MESSAGES, {"role": "assistant", "content": "A"}], "continue_final_message": True}
    for path in (CHAT, "/tokenize"):
        refused = server.post(path, {**body, "add_generation_prompt": True}, 400)["error"]
        assert refused["param"] == "add_generation_prompt"
        assert server.post(path, {**body, "add_generation_prompt": False})


@both
@pytest.mark.parametrize("streamed", [False, True])
def test_log_probabilities_of_given_tokens(server: Served, path: str, streamed: bool) -> None:
    """Those of ``/generate``, whatever the likeliest are and however many of those were asked for."""
    ids, on = [7, 100, 200], {"logprobs": True, "top_logprobs": 1} if path == CHAT else {"logprobs": 1}
    asked: dict[str, Any] = {**on, "logprob_token_ids": ids, "return_tokens_as_token_ids": True}
    found = ask(server, path, return_token_ids=True, prompt_logprobs=1, **asked)
    choice, prompt = found["choices"][0], (found if path == CHAT else found["choices"][0])["prompt_token_ids"]
    sampling = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
    body = {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True, "token_ids_logprob": ids}
    meta = server.post("/generate", body)["meta_info"]
    told = [choice] if not streamed else [one for c in chunks(server, path, **asked) for one in c["choices"]]
    if path == CHAT:
        rows = [row for one in told if one["logprobs"] for row in one["logprobs"]["content"]]
        named = [[(one["token"], one["logprob"]) for one in row["top_logprobs"]] for row in rows]
    else:
        tops = [row for one in told if one["logprobs"] for row in one["logprobs"]["top_logprobs"]]
        named = [[(name, row[name]) for name in (f"token_id:{token}" for token in ids)] for row in tops]
        assert all(len(row) <= len(ids) + 1 for row in tops)
    assert len(named) == 6
    for row, given in zip(named, meta["output_token_ids_logprobs"], strict=True):
        assert [name for name, _ in row] == [f"token_id:{token}" for token in ids]
        assert [value for _, value in row] == pytest.approx([one[0] for one in given], abs=1e-4)


@both
def test_given_tokens_that_cannot_be_told_of(server: Served, path: str) -> None:
    on = {"logprobs": True} if path == CHAT else {"logprobs": 0}
    for wrong in ({**on, "logprob_token_ids": []}, {**on, "logprob_token_ids": 5}, {**on, "logprob_token_ids": ["a"]}):
        assert ask(server, path, 400, **wrong)["error"]["param"] == "logprob_token_ids"
    assert ask(server, path, 400, **on, logprob_token_ids=[10**7])["error"]["param"] == "logprob_token_ids"
    assert ask(server, path, 400, logprob_token_ids=[1])["error"]["param"] == "logprob_token_ids"


def test_what_the_server_says_of_itself(server: Served) -> None:
    assert server.http.get("/version").json() == {"version": __version__}
    assert server.http.get("/load").json() == {"server_load": 0}


def test_conversations_of_a_batch_are_answered_one_by_one(server: Served) -> None:
    path, other = f"{CHAT}/batch", [{"role": "user", "content": "what is 1+1?"}]
    asked = {**LONG, "return_token_ids": True, "prompt_logprobs": 1, "logprobs": True, "seed": 5, "temperature": 1.0}
    found = server.post(path, {"messages": [MESSAGES, other, MESSAGES], **asked})
    alone = [server.post(CHAT, {"messages": one, **asked}) for one in (MESSAGES, other)]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    for choice, one in zip(found["choices"], [*alone, alone[0]], strict=True):
        assert (
            choice["message"] == one["choices"][0]["message"] and choice["token_ids"] == one["choices"][0]["token_ids"]
        )
        assert choice["prompt_token_ids"] == one["prompt_token_ids"]
        assert choice["prompt_logprobs"][1].keys() == one["prompt_logprobs"][1].keys()
    sizes = [one["usage"]["prompt_tokens"] for one in alone]
    assert found["usage"]["prompt_tokens"] == 2 * sizes[0] + sizes[1] and found["usage"]["completion_tokens"] == 18
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}}
    chosen = server.post(path, {"messages": [MESSAGES, other], "response_format": schema})["choices"]
    assert all(json.loads(choice["message"]["content"]) in ("yes", "no") for choice in chosen)
    for wrong, param in (
        ({"messages": MESSAGES}, "messages[0]"),
        ({"messages": []}, "messages"),
        ({"messages": [MESSAGES, [{"role": "poet", "content": "x"}]]}, "messages[1][0].role"),
        ({"messages": [MESSAGES], "stream": True}, "stream"),
        ({"messages": [MESSAGES], "n": 2}, "n"),
        ({"messages": [MESSAGES], "max_tokens": 10**6}, "max_tokens"),
    ):
        assert server.post(path, wrong, 400)["error"]["param"] == param


def test_invocations_are_what_their_fields_say(server: Served) -> None:
    for path in (CHAT, TEXT):
        body = {**BODIES[path], **LONG}
        assert server.post("/invocations", body)["choices"] == server.post(path, body)["choices"]
    assert server.post("/invocations", {"input": "x"}, 400)["error"]["code"] == "embeddings_not_supported"
    labels = {"query": "x", "items": ["y"], "label_token_ids": [5]}
    assert server.post("/invocations", labels)["scores"] == server.post("/v1/score", labels)["scores"]
    assert "messages, prompt" in server.post("/invocations", {"model": "default"}, 400)["error"]["message"]


THINKING = {"structured_outputs": {"regex": "Yes"}, "max_tokens": 60, "ignore_eos": False}
"""The bundled model thinks before it says what it must."""


def test_thinking_is_where_each_client_looks_for_it(server: Served) -> None:
    """SGLang's read ``reasoning_content`` of every delta, vLLM's ``reasoning`` of those that have it."""
    message = ask(server, CHAT, **THINKING)["choices"][0]["message"]
    thought = message["reasoning"]
    assert thought and message["reasoning_content"] == thought and message["content"] == "Yes"
    deltas = [c["choices"][0]["delta"] for c in chunks(server, CHAT, **THINKING)]
    assert "".join(delta["reasoning"] for delta in deltas if "reasoning" in delta) == thought
    assert "".join(delta["reasoning_content"] or "" for delta in deltas) == thought


def test_thinking_may_be_left_out(server: Served) -> None:
    whole = ask(server, CHAT, include_reasoning=False, **THINKING)
    message = whole["choices"][0]["message"]
    assert (message["reasoning"], message["reasoning_content"], message["content"]) == (None, None, "Yes")
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    deltas = [c["choices"][0]["delta"] for c in chunks(server, CHAT, include_reasoning=False, **THINKING)]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Yes"
    assert not any(delta.get("reasoning") or delta["reasoning_content"] for delta in deltas)


SAID: dict[str, Any] = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A ship"}]}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}


def test_a_message_that_is_not_whole_is_continued(server: Served) -> None:
    def answer(**more: Any) -> Any:
        items = [{"role": "user", "content": "Tell me about ships."}, {**SAID, **more}]
        body = {"input": items, "temperature": 0, "max_output_tokens": 6, "ignore_eos": True}
        return server.post("/v1/responses", body)

    went_on = {**LONG, "messages": [MESSAGES[1], {"role": "assistant", "content": "A ship"}]}
    choice = server.post(CHAT, {**went_on, "continue_final_message": True})["choices"][0]
    for status in ("in_progress", "incomplete"):
        assert answer(status=status)["output"][-1]["content"][0]["text"] == choice["message"]["content"]
    for status in ("completed", None):
        assert answer(status=status)["usage"]["input_tokens"] > answer(status="incomplete")["usage"]["input_tokens"]


def test_items_of_one_turn_are_one_message() -> None:
    """And what is said after something was said is another."""
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}
    thought["summary"] = [{"type": "summary_text", "text": "It thinks."}]
    (whole,) = messages_of([thought, SAID, CALL, {**CALL, "call_id": "d"}])
    assert whole["content"] == "A ship" and whole["reasoning_content"] == "Hm."
    assert [call["id"] for call in whole["tool_calls"]] == ["c", "d"]
    assert [one["content"] for one in messages_of([SAID, SAID])] == ["A ship", "A ship"]
    assert messages_of([{"type": "reasoning", "summary": thought["summary"]}])[0]["reasoning_content"] == "It thinks."
