"""Mock: requests get the answers that the script has for them, and what does not fit is told by name."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.backends.base import GenCall, Hints
from sglite.lang.ir import Sampling
from sglite.lang.testing import Fail, Mock, MockError, MockRequest, Say


@sgl.function
def two(s: Any) -> None:
    s += "p" + sgl.gen("a") + "|" + sgl.gen("b")


# --- scripts ---


def test_a_function_sees_the_whole_request_and_may_be_async() -> None:
    seen: list[MockRequest] = []

    async def answer(request: MockRequest) -> str:
        seen.append(request)
        await asyncio.sleep(0)
        return request.choices[1] if request.kind == "select" else f"<{request.name} {request.index}>"

    @sgl.function
    def f(s: Any) -> None:
        s += sgl.user("hi") + sgl.assistant(sgl.gen("a", n=2, temperature=0.5) + sgl.select("c", ["x", "y"]))

    mock = Mock(answer)
    state = f.run(backend=mock)
    assert state["a"] == ["<a 0>", "<a 1>"] and state["c"] == "y"
    gen, _, select = seen
    assert (gen.name, gen.prompt, gen.sampling.temperature) == ("a", "USER: hi\nASSISTANT: ", 0.5)
    assert select.choices == ("x", "y") and select.prompt == "USER: hi\nASSISTANT: <a 0>"
    assert [r.name for r in mock.requests] == ["a", "c"] and mock.prompts == [gen.prompt, select.prompt]
    assert gen.messages == select.messages == [{"role": "user", "content": "hi"}]


def test_names_may_have_functions_and_unnamed_gens_the_name_none() -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += sgl.gen("a") + sgl.gen() + sgl.gen("a")

    mock = Mock({"a": lambda request: str(len(request.prompt)), None: ["--"]})
    assert f.run(backend=mock).text() == "0--3"
    with pytest.raises(
        sgl.ProgramError, match=r"no answer for the unnamed gen at 0/\d+ after '0'; it has answers for 'a'"
    ):
        f.run(backend=Mock({"a": "0"})).text()


def test_n_outputs_use_n_answers_and_say_when_there_are_fewer() -> None:
    f = sgl.function(lambda s: s.__iadd__(sgl.gen("a", n=3)))
    assert f.run(backend=Mock({"a": ["x", "y", "z"]}))["a"] == ["x", "y", "z"]
    assert f.run(backend=Mock({"a": "x"}))["a"] == ["x", "x", "x"]
    with pytest.raises(sgl.VariableError, match="no answer left for 'a' after ''; 3 are wanted, 2 are left"):
        f.run(backend=Mock({"a": ["x", "y"]}))["a"]


def test_each_attempt_of_a_check_uses_an_answer() -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "n=" + sgl.gen("n", check=lambda v: int(v) > 5, retries=3) + "."

    with Mock({"n": ["2", "nonsense", "9"]}) as mock:
        state = f.run(backend=mock)
        assert state["n"] == "9" and state.text() == "n=9."
    assert mock.prompts == ["n="] * 3


def test_a_script_has_to_be_one() -> None:
    with pytest.raises(TypeError, match="a set is no script; give a dict, a list or a function"):
        Mock({"a"})  # type: ignore[arg-type]


def test_unknown_names_are_told_what_there_is() -> None:
    state = two.run(backend=Mock({"b": "1", "c": "2"}))
    with pytest.raises(sgl.VariableError, match="no answer for 'a' after 'p'; it has answers for 'b', 'c'") as caught:
        state["a"]
    assert isinstance(caught.value.__cause__, MockError) and isinstance(caught.value.__cause__, sgl.BackendError)


# --- unused answers ---


def test_answers_left_over_fail_the_test_by_name() -> None:
    mock = Mock({"a": ["1", "2", "3"], "b": "x", "never": "y", "also": ["z"]})
    two.run(backend=mock).sync()
    with pytest.raises(AssertionError, match=r"not used: 'a': '2', '3'; 'never': 'y'; 'also': 'z'$"):
        mock.done()
    with (
        pytest.raises(AssertionError, match=r"not used: '3', '4', '5', '6', '7' and 2 more$"),
        Mock(list("123456789")) as m,
    ):
        two.run(backend=m).sync()


def test_done_waits_for_outputs_that_nobody_read() -> None:
    for _ in range(20):
        with Mock({"a": ["1"], "b": ["2"]}, delay_s=0.001) as mock:
            two.run(backend=mock)
    with Mock({"a": ["1"], "b": ["2"]}) as mock:
        assert two.run(backend=mock, stream=True).text() == "p1|2"


def test_a_refused_answer_fails_the_test_even_if_nobody_read_it() -> None:
    with pytest.raises(AssertionError, match="'b' has the stop string"), Mock({"a": "1", "b": "2\n"}) as mock:
        assert two.run(backend=mock, stop="\n")["a"] == "1"


def test_an_error_of_the_test_itself_is_not_hidden_by_unused_answers() -> None:
    with pytest.raises(ZeroDivisionError), Mock({"a": "1"}):
        raise ZeroDivisionError


# --- select ---


def test_a_select_gets_one_of_its_choices_at_any_temperature() -> None:
    @sgl.function
    def f(s: Any, temperature: float, method: Any) -> None:
        s += "x" + sgl.select("c", ["a", "b", "c"], temperature=temperature, choices_method=method)

    for method in (sgl.token_length_normalized, sgl.unconditional_likelihood_normalized, sgl.greedy_token_selection):
        temperature = 0.0 if method is sgl.greedy_token_selection else 100.0
        assert f.run(temperature, method, backend=Mock({"c": "b"}))["c"] == "b"
    with pytest.raises(sgl.VariableError, match=r"answer 'd' for 'c' is none of \['a', 'b', 'c'\]"):
        f.run(0.0, sgl.token_length_normalized, backend=Mock({"c": "d"}))["c"]


def test_a_select_may_be_given_scores() -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += sgl.select("c", ["a", "b"])

    state = f.run(backend=Mock({"c": {"a": -2.0, "b": -0.5}}))
    assert state["c"] == "b" and state.get_meta_info("c")["normalized_prompt_logprobs"] == [-2.0, -0.5]
    with pytest.raises(sgl.VariableError, match=r"has to give a log probability to each of \['a', 'b'\]"):
        f.run(backend=Mock({"c": {"a": -2.0}}))["c"]


# --- failures, time, accounts ---


def test_a_request_may_fail() -> None:
    with pytest.raises(sgl.VariableError, match="overloaded") as caught:
        two.run(backend=Mock({"a": Fail("overloaded")}))["a"]
    assert type(caught.value.__cause__) is sgl.BackendError
    with pytest.raises(sgl.VariableError, match="late"):
        two.run(backend=Mock({"a": "1", "b": Fail(TimeoutError("late"))}))["b"]

    @sgl.function
    def f(s: Any) -> None:
        s += sgl.select("c", ["x"])

    with pytest.raises(sgl.VariableError, match="no"):
        f.run(backend=Mock({"c": Fail("no")}))["c"]


def test_a_streamed_request_may_fail_half_way() -> None:
    state = two.run(backend=Mock({"a": Fail("gone", after="one two three")}), stream=True)
    assert "".join(state.text_iter("a")) == "one two three" and "gone" in str(state.error())


def test_streams_come_word_by_word() -> None:
    state = two.run(backend=Mock({"a": "one two\n three ", "b": ""}), stream=True)
    assert list(state.text_iter("a")) == ["one", " two", "\n three", " "] and state.text() == "pone two\n three |"


def test_several_streamed_outputs_grow_together() -> None:
    async def ask() -> list[list[str]]:
        stream = Mock(["a b c", "d"]).open("")
        call = GenCall(name=None, sampling=Sampling(n=2), stream=True)
        return [[output.text for output in step] async for step in stream.generate(call)]

    assert asyncio.run(ask()) == [["a", "d"], ["a b", "d"], ["a b c", "d"]]


def test_requests_at_the_same_time_take_their_delay_once() -> None:
    @sgl.function
    def f(s: Any) -> None:
        branches = s.fork(20)
        branches += sgl.gen("v")
        branches.join()

    start = time.perf_counter()
    assert f.run(backend=Mock({"v": "x"}, delay_s=0.1))["v"] == ["x"] * 20
    assert 0.1 <= time.perf_counter() - start < 1.0


def test_tokens_are_words() -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "one two three " + sgl.gen("a") + sgl.select("c", [" x", " y z"])

    state = f.run(backend=Mock({"a": Say("four five", meta={"extra": 1}), "c": " x"}))
    meta = state.get_meta_info("a")
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["finish_reason"]) == (3, 2, {"type": "stop"})
    assert meta["prompt_tokens"] == meta["cached_tokens"] + meta["computed_prompt_tokens"] and meta["extra"] == 1
    assert state.get_meta_info("c")["prompt_tokens"] == 6 + 7
    assert (state.usage.requests, state.usage.completion_tokens, state.usage.prompt_tokens) == (2, 2, 16)


def test_marks_forks_and_hints_are_those_of_a_stream() -> None:
    async def ask() -> list[str]:
        mock = Mock(lambda request: f"{request.prompt}>{request.node}")
        stream = mock.open("")
        stream.append("a")
        mark = stream.mark()
        stream.append("b")
        (branch,) = await stream.fork(1)
        stream.rewind(mark)
        call = GenCall(name="v", sampling=Sampling(), hints=Hints(node="0/1"))
        texts = [step[0].text for one in (stream, branch, stream) async for step in one.generate(call)]
        stream.rewind(mark)
        texts += [step[0].text async for step in stream.generate(call)]
        for one in (stream, branch, stream):
            await one.aclose()
        await asyncio.to_thread(mock.done, 0.1)
        return texts

    assert asyncio.run(ask()) == ["a>0/1", "ab>0/1", "aa>0/1>0/1", "a>0/1"]


def test_the_latest_requests_are_remembered() -> None:
    mock = Mock({"a": "1", "b": "2"}, keep=1)
    two.run(backend=mock).sync()
    assert mock.prompts == ["p1|"]
