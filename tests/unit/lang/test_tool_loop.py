"""Tool loops on a scripted model: what is called, told, counted and left behind."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
import time
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.backends.base import Stream
from sglite.lang.errors import BlockingReadError, DeadlineExceeded, VariableError
from sglite.lang.messages import ToolCall
from sglite.lang.session import SESSION
from sglite.lang.testing import Call, Invalid, Mock, Say
from sglite.lang.tool_events import (
    FinalAnswer,
    RetryEvent,
    RetryLimitExceeded,
    StepLimitExceeded,
    TextDelta,
    TokenLimitExceeded,
    ToolCallEvent,
    ToolError,
    ToolEvent,
    ToolResultEvent,
)
from sglite.lang.tool_loop import tool_events
from sglite.lang.tools import ToolContext


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def run(answers: Any, tools: Any = (add,), *, stream: bool = False, **options: Any) -> Any:
    """A plain program with one loop; its state."""

    @sgl.function
    def program(s: Any) -> Any:
        s += sgl.user("What is 2 + 3?")
        return sgl.tool_loop(s, tools, **options)

    with Mock(answers) as mock:
        state = program.run(backend=mock, stream=stream)
        state.sync()
    state.mock = mock
    return state


def results(state: Any) -> list[str]:
    return [message["content"] for message in state.messages() if message["role"] == "tool"]


# --- the loop ----------------------------------------------------------------------------------------------------


def test_calls_are_made_and_told_until_there_is_an_answer() -> None:
    state = run([Say("Let me see.", [Call("add", a=2, b=3), Call("add", a=5, b=1)]), Call("add", a=1, b=1), "Six."])
    assert state.ret_value == "Six."
    roles = [message["role"] for message in state.messages()]
    assert roles == ["user", "assistant", "tool", "tool", "assistant", "tool", "assistant"]
    first, second = state.messages()[1]["tool_calls"]
    assert json.loads(first["function"]["arguments"]) == {"a": 2, "b": 3}
    assert [state.messages()[i]["tool_call_id"] for i in (2, 3)] == [first["id"], second["id"]]
    assert results(state) == ["5", "6", "2"]
    assert [request.tool_choice for request in state.mock.requests] == ["auto"] * 3
    assert all([tool.name for tool in request.tools] == ["add"] for request in state.mock.requests)


def test_an_async_program_awaits_the_same() -> None:
    @sgl.program
    async def program(s: sgl.State) -> int:
        s.user("?")
        return await sgl.tool_loop(s, [add], type=int, name="n")  # type: ignore[no-any-return]

    with Mock([Call("add", a=2, b=3), 5]) as mock:
        assert asyncio.run(program(backend=mock)) == 5
    with Mock([Call("add", a=2, b=3), 5]) as mock:
        assert program.run_value(backend=mock) == 5


def test_branches_have_loops_of_their_own() -> None:
    @sgl.program
    async def program(s: sgl.State) -> list[str]:
        s.user("?")
        return [await answer for answer in s.map([1, 2, 3], lambda b, i: sgl.tool_loop(b.user(str(i)), [add]))]

    def answer(request: Any) -> Any:
        asked, last = request.messages[1]["content"], request.messages[-1]
        return last["content"] if last["role"] == "tool" else Call("add", a=int(asked), b=10)

    assert program.run_value(backend=Mock(answer)) == ["11", "12", "13"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_is_a_variable_of_its_type(stream: bool) -> None:
    state = run([Call("add", a=2, b=3), [1, 2]], type=list[int], name="xs", stream=stream)
    assert state["xs"] == [1, 2] and state.ret_value == [1, 2]


def test_later_turns_are_offered_no_tools() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s.user("?")
        sgl.tool_loop(s, [add])
        s.user("Sum up.")
        s.assistant(sgl.gen("end"))

    with Mock([Call("add", a=1, b=1), "2", "End"]) as mock:
        program.run(backend=mock).sync()
    assert [request.tool_choice for request in mock.requests] == ["auto", "auto", "none"]


@pytest.mark.parametrize("choice", ["required", {"name": "add"}])
def test_a_demand_is_for_the_first_turn(choice: Any) -> None:
    state = run([Call("add", a=1, b=1), "2"], tool_choice=choice)
    wanted = choice if isinstance(choice, str) else choice["name"]
    assert [request.tool_choice for request in state.mock.requests] == [wanted, "auto"]


def test_calls_that_may_not_be_made_are_not() -> None:
    state = run([Invalid(Call("add", a=1, b=1)), "2"], tool_choice="none")
    assert results(state) == ["Error: no tool may be called now; answer"]


# --- what the model does wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (Call("sub", a=1), "there is no tool 'sub'; the tools are add"),
        (Call("add", a=1), "arguments of add: b: Field required"),
        (Call("add", a=1, b="x"), "b: Input should be a valid integer"),
        (ToolCall("c1", "add", '{"a": 1, "b":'), "arguments of add: the text is not JSON"),
    ],
)
def test_the_model_is_told_what_was_wrong_with_its_call(call: Any, told: str) -> None:
    events: list[ToolEvent] = []
    answers = [Say("", [Invalid(call), Call("add", a=2, b=3)]), "5"]
    state = run(answers, on_event=events.append)
    assert results(state)[0].startswith("Error: ") and told in results(state)[0]
    assert results(state)[1] == "5"
    (retry,) = [event for event in events if isinstance(event, RetryEvent)]
    assert told in retry.reason and retry.call is not None and retry.call.name == getattr(call, "name", "")


@pytest.mark.parametrize("allowed", [0, 2])
def test_retries_are_bounded(allowed: int) -> None:
    wrong = Invalid(Call("sub"))
    with pytest.raises(RetryLimitExceeded, match=f"{allowed + 1} times, with max_retries={allowed}"):
        run([wrong] * (allowed + 1), max_retries=allowed)
    assert run([wrong] * allowed + ["ok"], max_retries=allowed).ret_value == "ok"


# --- limits ------------------------------------------------------------------------------------------------------


def test_the_step_limit_is_exact_and_the_conversation_stays() -> None:
    call, made = Call("add", a=2, b=3), []

    def counted(a: int, b: int) -> int:
        made.append(a)
        return a + b

    tool = sgl.tool(name="add")(counted)
    assert run([call, "5"], [tool], max_steps=2).ret_value == "5"
    made.clear()
    states: list[Any] = []

    @sgl.function
    def program(s: Any) -> str:
        states.append(s)
        s.user("?")
        try:
            sgl.tool_loop(s, [tool], max_steps=2)
        except StepLimitExceeded as error:
            return str(error) + json.dumps(error.messages)
        return ""

    with Mock([call, call]) as mock:
        told = program.run(backend=mock).ret_value
    assert told.startswith("the model still calls add in the last of max_steps=2 turns")
    assert made == [2], "the calls of the last turn were made though nobody would be told"
    assert [m["role"] for m in states[0].messages()] == ["user", "assistant", "tool", "assistant", "tool"]
    assert json.loads(told[told.index("[") :]) == states[0].messages()[1:]


def test_the_token_limit_is_exact() -> None:
    """The Mock counts words; a turn gets no more than what is left."""
    answers = [Say("one two three", [Call("add", a=1, b=1)]), "four five"]
    state = run(answers, token_limit=5)
    assert [request.sampling.max_new_tokens for request in state.mock.requests] == [5, 2]
    state = run(answers, token_limit=5, max_tokens=4)
    assert [request.sampling.max_new_tokens for request in state.mock.requests] == [4, 2]
    with pytest.raises(TokenLimitExceeded, match="wrote 3 tokens"):
        run(answers[:1], token_limit=3)
    with pytest.raises(TokenLimitExceeded):
        run([answers[0], Say("four five", finish="length")], token_limit=5)
    assert run([Say("four five", finish="length")], max_tokens=2, token_limit=5).ret_value == "four five"


# --- running tools -----------------------------------------------------------------------------------------------


def test_calls_of_a_turn_run_at_once() -> None:
    barrier = threading.Barrier(3, timeout=10)

    def meet(i: int) -> int:
        return i * 0 + barrier.wait() * 0 + i

    state = run([[Call("meet", i=1), Call("meet", i=2), Call("meet", i=3)], "ok"], [meet])
    assert results(state) == ["1", "2", "3"]


def test_calls_can_run_one_after_the_other() -> None:
    running, most = [0], [0]

    async def slow(i: int) -> int:
        running[0] += 1
        most[0] = max(most[0], running[0])
        await asyncio.sleep(0.01)
        running[0] -= 1
        return i

    calls = [Call("slow", i=i) for i in range(3)]
    assert results(run([calls, "ok"], [slow], parallel=False)) == ["0", "1", "2"]
    assert most == [1]


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_tools_see_the_context_variables_of_the_body() -> None:
    def plain() -> str:
        return VARIABLE.get()

    async def waiting() -> str:
        return VARIABLE.get()

    VARIABLE.set("here")
    assert results(run([[Call("plain"), Call("waiting")], "ok"], [plain, waiting])) == ["here", "here"]


def test_async_tools_run_on_the_bodys_loop() -> None:
    loops: list[Any] = []

    async def where() -> None:
        loops.append(asyncio.get_running_loop())

    @sgl.program
    async def program(s: sgl.State) -> str:
        loops.append(asyncio.get_running_loop())
        s.user("?")
        return await sgl.tool_loop(s, [where])  # type: ignore[no-any-return]

    assert asyncio.run(program(backend=Mock([Call("where"), "ok"]))) == "ok"
    assert loops[0] is loops[1]


def test_the_context_is_given_and_never_shown() -> None:
    @sgl.tool(context="db")
    def named(key: str, db: dict[str, int]) -> int:
        return db[key]

    def annotated(ctx: ToolContext[dict[str, int]], key: str) -> int:
        return ctx[key] + 1

    state = run([[Call("named", key="k"), Call("annotated", key="k")], "ok"], [named, annotated], context={"k": 7})
    assert results(state) == ["7", "8"]
    assert all(set(tool.parameters["properties"]) == {"key"} for tool in state.mock.requests[0].tools)
    with pytest.raises(ValueError, match=r"'named' takes a context as 'db': give tool_loop\(context=\.\.\.\)"):
        run([], [named])


def test_errors_are_told_or_end_the_program() -> None:
    def fail(why: str) -> None:
        raise LookupError(why)

    assert results(run([Call("fail", why="no such city"), "ok"], [fail])) == ["Error: LookupError: no such city"]
    strict = sgl.tool(on_error="raise")(fail)
    with pytest.raises(ToolError, match="the tool 'fail' failed: LookupError: no such city") as caught:
        run([Call("fail", why="no such city")], [strict])
    assert isinstance(caught.value.__cause__, LookupError) and caught.value.call.name == "fail"


def test_an_error_that_ends_the_program_cancels_the_other_calls() -> None:
    seen: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    @sgl.tool(on_error="raise")
    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise RuntimeError("broken")

    began = time.monotonic()
    with pytest.raises(ToolError, match="broken"):
        run([[Call("slow"), Call("fail")]], [slow, fail])
    assert seen == ["cancelled"] and time.monotonic() - began < 5


def test_a_tool_that_takes_too_long_is_left_behind() -> None:
    gate = threading.Event()

    @sgl.tool(timeout=0.05)
    def hang() -> None:
        gate.wait(30)

    @sgl.tool(timeout=0.05)
    async def ahang() -> None:
        await asyncio.sleep(30)

    before = SESSION.tools.num_abandoned
    state = run([[Call("hang"), Call("ahang")], "ok"], [hang, ahang])
    assert results(state) == ["Error: it took longer than 0.05 s"] * 2
    assert SESSION.tools.num_abandoned == before + 1
    gate.set()
    end = time.monotonic() + 5
    while SESSION.tools.num_abandoned > before and time.monotonic() < end:
        time.sleep(0.005)
    assert SESSION.tools.num_abandoned == before


def test_a_result_that_is_no_json_is_an_error_of_the_tool() -> None:
    def odd() -> object:
        return object()

    assert "it returned a object, which cannot be written as JSON" in results(run([Call("odd"), "ok"], [odd]))[0]


def test_a_deadline_ends_a_loop_whose_tool_does_not() -> None:
    @sgl.tool(timeout=None)
    async def hang() -> None:
        await asyncio.sleep(30)

    @sgl.function
    def program(s: Any) -> Any:
        s.user("?")
        return sgl.tool_loop(s, [hang])

    began = time.monotonic()
    with pytest.raises(sgl.ProgramError) as caught:
        program.run(backend=Mock([Call("hang")]), deadline=0.1)
    assert isinstance(caught.value.__cause__, DeadlineExceeded) and time.monotonic() - began < 5


def test_a_request_that_fails_ends_the_loop() -> None:
    with pytest.raises(VariableError, match="no answer left"):

        @sgl.function
        def program(s: Any) -> Any:
            s.user("?")
            return sgl.tool_loop(s, [add])

        program.run(backend=Mock([Call("add", a=1, b=1)]))


def test_cancelling_an_async_program_cancels_its_tools() -> None:
    seen: list[str] = []

    async def slow() -> None:
        seen.append("began")
        try:
            await asyncio.sleep(30)
        finally:
            seen.append("ended")

    @sgl.program
    async def program(s: sgl.State) -> str:
        s.user("?")
        return await sgl.tool_loop(s, [slow])  # type: ignore[no-any-return]

    async def main() -> None:
        task = asyncio.ensure_future(program(backend=Mock([Call("slow")])))
        while not seen:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert seen == ["began", "ended"]


# --- events ------------------------------------------------------------------------------------------------------

ANSWERS = [Say("Let me see.", [Call("add", a=2, b=3), Invalid(Call("add", a=1))]), "It is 5."]
KINDS = [TextDelta, RetryEvent, ToolCallEvent, ToolResultEvent, TextDelta, FinalAnswer]


def check_events(events: list[ToolEvent], whole: bool) -> None:
    kinds = [type(event) for event in events]
    assert [kind for i, kind in enumerate(kinds) if i == 0 or kind is not TextDelta or kinds[i - 1] != kind] == KINDS
    assert not whole or kinds == KINDS
    for step, text in ((1, "Let me see."), (2, "It is 5.")):
        assert "".join(e.text for e in events if isinstance(e, TextDelta) and e.step == step) == text
    (called,) = [event for event in events if isinstance(event, ToolCallEvent)]
    (back,) = [event for event in events if isinstance(event, ToolResultEvent)]
    assert called.arguments == {"a": 2, "b": 3} and (back.value, back.content, back.call) == (5, "5", called.call)


@pytest.mark.parametrize("stream", [False, True])
def test_events_tell_everything_in_a_plain_program(stream: bool) -> None:
    @sgl.function
    def program(s: Any) -> list[ToolEvent]:
        s.user("?")
        return list(tool_events(s, [add]))

    with Mock(ANSWERS) as mock:
        state = program.run(backend=mock, stream=stream)
        state.sync()
    check_events(state.ret_value, whole=not stream)
    if stream:
        assert len(state.ret_value) > len(KINDS)


def test_events_tell_everything_in_an_async_program() -> None:
    heard: list[ToolEvent] = []

    async def hear(event: ToolEvent) -> None:
        heard.append(event)

    @sgl.program
    async def program(s: sgl.State) -> list[ToolEvent]:
        s.user("?")
        with pytest.raises(BlockingReadError, match="async for"):
            list(tool_events(s, [add]))
        return [event async for event in tool_events(s, [add], on_event=hear)]

    events = program.run_value(backend=Mock(ANSWERS))
    check_events(events, whole=True)
    assert heard == events


def test_leaving_events_early_cancels_what_runs() -> None:
    ended = threading.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    @sgl.function
    def program(s: Any) -> None:
        s.user("?")
        for event in tool_events(s, [slow, add]):
            if isinstance(event, ToolResultEvent):
                break

    program.run(backend=Mock([[Call("slow"), Call("add", a=1, b=1)]]))
    assert ended.wait(5)


# --- around it ---------------------------------------------------------------------------------------------------


def test_the_stream_is_parked_while_tools_run() -> None:
    told: list[Any] = []

    class Parking(Mock):
        def open(self, program_id: str) -> Stream:
            stream = super().open(program_id)
            stream.park = lambda expected_s=None: told.append("parked")  # type: ignore[method-assign]
            return stream

    def work() -> None:
        time.sleep(0.01)
        told.append("worked")

    @sgl.function
    def program(s: Any) -> Any:
        s.user("?")
        return sgl.tool_loop(s, [work])

    program.run(backend=Parking([[Call("work")], "2"])).sync()
    assert told == ["parked", "worked"]


def test_calls_reach_the_meta_info_of_a_plain_gen() -> None:
    @sgl.function
    def program(s: Any) -> Any:
        s.user("?")
        s.ask([sgl.tool(add).spec])
        value = s.gen(int, "n")
        value.value()
        s.reply({"role": "assistant", "content": ""})
        return value.cell.meta["tool_calls"]

    (call,) = program.run(backend=Mock([Call("add", a=1, b=2)])).ret_value
    assert call["function"]["name"] == "add" and json.loads(call["function"]["arguments"]) == {"a": 1, "b": 2}


def test_a_trace_shows_one_turn() -> None:
    @sgl.function
    def program(s: Any) -> Any:
        s += sgl.user("?")
        s += sgl.tool_loop(s, [add], name="answer")

    trace = program.trace()
    assert "answer" in trace.variables


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps=0"),
        ({"token_limit": 0}, "token_limit=0"),
        ({"max_retries": -1}, "max_retries=-1"),
        ({"tool_choice": "add"}, "tool_choice='add'"),
        ({"tool_choice": {"name": "sub"}}, "tool_choice={'name': 'sub'}"),
        ({"n": 2}, r"tool_loop\(n=...\)"),
        ({"regex": "a"}, r"tool_loop\(regex=...\)"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run([], **options)
