"""Programs on API back ends: conversations, retries of values, speculation and failures from end to end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from paid_api import Failure, PaidApi, chat_answer, completion_answer

import sglite as sgl
from sglite.lang.backends.openai import OpenAI
from sglite.lang.backends.retrying import RetryPolicy


@pytest.fixture
def api() -> Iterator[PaidApi]:
    pytest.importorskip("openai")
    server = PaidApi()
    yield server
    server.close()


def openai(api: PaidApi, model: str = "gpt-4", **options: Any) -> OpenAI:
    return OpenAI(model, base_url=f"{api.url}/v1", api_key="k", **options)


def test_each_turn_is_a_request_with_the_turns_before_it(api: PaidApi) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += sgl.system("be nice")
        for i in range(2):
            s += sgl.user(f"q{i}") + sgl.assistant(sgl.gen(f"a{i}"))

    api.in_turn(chat_answer("one"), chat_answer("two"))
    state = f.run(backend=openai(api))
    assert (state["a0"], state["a1"]) == ("one", "two")
    first = [{"role": "system", "content": "be nice"}, {"role": "user", "content": "q0"}]
    more = [{"role": "assistant", "content": "one"}, {"role": "user", "content": "q1"}]
    assert [body["messages"] for body in api.bodies] == [first, first + more]
    assert state.messages() == [*first, *more, {"role": "assistant", "content": "two"}]


def test_branches_ask_with_their_own_turns(api: PaidApi) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += sgl.system("sys")
        branches = s.fork(3)
        for i, branch in enumerate(branches):
            branch += sgl.user(f"q{i}") + sgl.assistant(sgl.gen("a"))
        branches.join()

    api.answer = lambda path, body: chat_answer(body["messages"][-1]["content"].upper())
    assert f.run(backend=openai(api))["a"] == ["Q0", "Q1", "Q2"]


def test_select_in_a_program_reads_as_its_decision(api: PaidApi) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += sgl.user("yes or no?") + sgl.assistant(sgl.select("v", ["yes", "no"]))

    api.answer = lambda path, body: chat_answer('{"choice": "no"}')
    state = f.run(backend=openai(api))
    assert state["v"] == "no" and state.get_meta_info("v")["degraded"] == 1


def test_one_call_writes_a_turn_of_several_gens(api: PaidApi) -> None:
    @sgl.function(num_api_spec_tokens=64)
    def f(s: Any) -> None:
        for i in range(2):
            s += sgl.user(f"card {i}")
            s += sgl.assistant("Name:" + sgl.gen("name", stop="\n") + "\nBorn:" + sgl.gen("born", stop="\n") + "\nEnd.")

    api.in_turn(chat_answer("Name: Ada\nBorn: 1815\nEnd."), chat_answer("Name: Alan\nBorn: 1912\nEnd."))
    state = f.run(backend=openai(api))
    assert (state["name"], state["born"], len(api.seen)) == (" Alan", " 1912", 2)
    told = state.messages()
    assert [m["content"] for m in told if m["role"] == "assistant"] == [
        "Name: Ada\nBorn: 1815\nEnd.",
        "Name: Alan\nBorn: 1912\nEnd.",
    ]
    assert api.bodies[1]["messages"] == told[:3]


def test_a_completion_with_turns_is_asked_with_plain_text(api: PaidApi) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += sgl.user("hi") + sgl.assistant("Well, " + sgl.gen("a", stop="\n"))

    api.answer = lambda path, body: completion_answer("hello")
    assert f.run(backend=openai(api, "davinci-002"))["a"] == "hello"
    assert api.bodies[0]["prompt"] == "USER: hi\nASSISTANT: Well, "


@pytest.mark.filterwarnings("ignore")
def test_a_failure_reaches_the_reader_with_the_providers_words(api: PaidApi) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += sgl.user("hi") + sgl.assistant(sgl.gen("a"))

    api.answer = lambda path, body: Failure(401, "bad key")
    state = f.run(backend=openai(api, retry=RetryPolicy(max_tries=1)))
    with pytest.raises(KeyError, match="HTTP 401: bad key"):
        state["a"]
    assert "HTTP 401: bad key" in str(state.error())


def test_rows_of_a_batch_share_the_client(api: PaidApi) -> None:
    @sgl.function
    def f(s: Any, q: str) -> None:
        s += sgl.user(q) + sgl.assistant(sgl.gen("a", max_tokens=5))

    api.answer = lambda path, body: chat_answer(body["messages"][0]["content"][::-1])
    backend = openai(api, max_concurrency=4)
    states = f.run_batch([{"q": f"q{i}"} for i in range(12)], backend=backend)
    assert [state["a"] for state in states] == [f"q{i}"[::-1] for i in range(12)]
    assert backend.token_usage.requests == 12 and backend.token_usage.prompt_tokens == 84
