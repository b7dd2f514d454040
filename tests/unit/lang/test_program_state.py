"""What a program promises to its author."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.formats import TableFormat
from sglite.lang.ir import Fork, Gen, Join, Lit


def test_outputs_continue_exactly_the_text_before_them(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "a" + sgl.gen("x") + "b"
        s += sgl.gen("y") + "c"

    state = f.run(backend=echo)
    x = echo.answer("a")
    y = echo.answer(f"a{x}b")
    assert (state["x"], state["y"], state.text()) == (x, y, f"a{x}b{y}c")
    assert state.get_meta_info("y")["prompt"] == f"a{x}b"


def test_neighbouring_literals_reach_the_back_end_as_one(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "a"
        s += "b" + sgl.user("c")
        s += sgl.gen("x")
        s += "d"
        s += "e"
        s += sgl.gen("y")
        s += "never needed"

    f.run(backend=echo).sync()
    assert echo.appended == ["abUSER: c\n", "de"]


def test_appending_never_blocks_and_reading_waits_for_its_own_value_only(echo: Any) -> None:
    echo.gate = threading.Event()

    @sgl.function
    def f(s: Any) -> Any:
        s += "a" + sgl.gen("x")
        left, right = s.fork(2)
        left += "l" + sgl.gen("v")
        right["own"] = 7
        assert right["own"] == 7 and "v" in left and "x" in s
        return left

    state = f.run(backend=echo)  # returns although nothing was answered
    echo.gate.set()
    assert state.ret_value["v"] == echo.answer("a" + state["x"] + "l")


def test_a_reused_name_is_read_in_program_order(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> Any:
        s += "1" + sgl.gen("v")
        first = s["v"]
        s += "2" + sgl.gen("v")
        return first, s["v"]

    first, second = f.run(backend=echo).ret_value
    assert first == echo.answer("1") and second == echo.answer(f"1{first}2")


def test_a_branch_has_the_parents_variables_even_unfinished_ones(echo: Any) -> None:
    echo.gate = threading.Event()

    @sgl.function
    def f(s: Any) -> Any:
        s += "a" + sgl.gen("x")
        (branch,) = s.fork(1)
        s += "later" + sgl.gen("y")
        return branch

    state = f.run(backend=echo)
    branch = state.ret_value
    assert "x" in branch and "y" not in branch
    echo.gate.set()
    assert branch["x"] == state["x"] and branch.get_meta_info("x")["prompt"] == "a"


def test_joined_variables_become_lists_and_joined_text_is_appended_in_order(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "p"
        group = s.fork(2)
        group += lambda i: f"{i}" + sgl.gen("v")
        group[1]["extra"] = 9
        group.join()
        s.fork(2).join("concate_and_append")
        more = s.fork(2)
        more += ["<", ">"]
        more += sgl.gen("w")
        more.join("concate_and_append")
        s += "." + sgl.gen("end")

    state = f.run(backend=echo)
    assert state["v"] == [echo.answer("p0"), echo.answer("p1")] and state["extra"] == [9]
    joined = f"p<{echo.answer('p<')}>{echo.answer('p>')}."
    assert state.text() == joined + echo.answer(joined)


def test_copy_is_scratch_paper(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "p"
        with s.copy() as scratch:
            scratch += "think" + sgl.gen("t")
        s += "q"

    state = f.run(backend=echo)
    assert state["t"] == [echo.answer("pthink")] and state.text() == "pq"


def test_n_outputs_are_a_list_and_the_first_goes_on(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "p" + sgl.gen("v", n=2)

    state = f.run(backend=echo)
    assert state["v"] == [echo.answer("p", 0), echo.answer("p", 1)]
    assert state.text() == "p" + state["v"][0] and len(state.get_meta_info("v")) == 2


def test_var_scope_holds_what_was_appended_inside_however_it_ends(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "a"
        with pytest.raises(LookupError), s.var_scope("outer"):
            s += "b"
            with s.var_scope("inner"):
                s += sgl.gen("v")
            raise LookupError
        s += "c"

    state = f.run(backend=echo)
    assert state["inner"] == state["v"] and state["outer"] == "b" + state["v"]


def test_default_system_turn_only_where_a_conversation_starts_without_one(echo: Any) -> None:
    table = {role: (f"<{role}>", f"</{role}>") for role in ("system", "user", "assistant")}
    backend = type(echo)(TableFormat("t", table, "be good", ("</assistant>",)))

    @sgl.function
    def f(s: Any, system: str | None) -> None:
        if system:
            s += sgl.system(system)
        s += sgl.user("  hi") + sgl.assistant(sgl.gen("a", stop=["x", "</assistant>"]))

    told, default = f.run("mine", backend=backend), f.run(None, backend=backend)
    assert [m["content"] for m in told.messages()] == ["mine", "hi", told["a"]]
    assert default.text().startswith("<system>be good</system><user>  hi</user><assistant>")
    assert default.messages()[0] == {"role": "system", "content": "be good"}
    assert echo.calls == [] and backend.calls[0][1].sampling.stop == ("x", "</assistant>")


@pytest.mark.parametrize(
    "ops", [sgl.user_begin() + sgl.user("x"), sgl.user_end(), sgl.user_begin() + sgl.assistant_end()]
)
def test_misplaced_turns_are_refused_where_they_are_written(echo: Any, ops: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "kept"
        with pytest.raises(ValueError, match="turn of"):
            s += ops

    assert f.run(backend=echo).text() == "kept"


def test_a_failure_carries_variable_request_prompt_and_cause(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "boom!" + sgl.gen("v", top_p=0.5) + "tail" + sgl.gen("w")

    state = f.run(backend=echo)
    with pytest.raises(sgl.VariableError) as failed:
        state["v"]
    assert (failed.value.variable, failed.value.partial_text) == ("v", "boom!")
    assert isinstance(failed.value, KeyError) and isinstance(failed.value.__cause__, sgl.BackendError)
    for part in ("output 'v' failed", "gen('v', top_p=0.5)", "boom!", "exclamation mark"):
        assert part in str(failed.value)
    assert "\n" not in str(failed.value)
    with pytest.raises(sgl.VariableError, match="'w' has no value, an earlier request failed"):
        state["w"]


def test_a_failed_stream_answers_every_later_read_at_once(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> Any:
        s += "boom!" + sgl.gen("v")
        s.sync()
        s += "more" + sgl.gen("w")
        branch = s.fork(1)[0]
        branch += "x" + sgl.gen("y")
        s += sgl.select("c", ["a"])
        return branch

    state = f.run(backend=echo)
    branch = state.ret_value
    assert len(echo.calls) == 1
    assert "exclamation" in str(state.error()) and "exclamation" in str(branch.error())
    for read in (state.text, state.messages, branch.text, lambda: branch["y"], lambda: state.get_meta_info("c")):
        with pytest.raises(sgl.ProgramError, match="exclamation"):
            read()
    assert "".join(state.text_iter()) == "boom!" and "exclamation" in repr(state)
    assert "v" not in state


def test_a_failed_branch_leaves_its_siblings_and_parent_alone(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> Any:
        s += "p"
        group = s.fork(2)
        group += ["bad!", "good"]
        group += sgl.gen("v")
        s += sgl.gen("x")
        group.join()
        return group

    state = f.run(backend=echo)
    assert state.error() is None and state["x"] == echo.answer("p")
    assert state.ret_value[1]["v"] == echo.answer("pgood")
    with pytest.raises(sgl.VariableError, match="exclamation"):
        state["v"]


def test_text_of_a_failed_branch_cannot_be_joined(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        group = s.fork(2)
        group += ["good", "bad!" + sgl.gen("v")]
        group.join("concate_and_append")
        s += sgl.gen("w")

    state = f.run(backend=echo)
    with pytest.raises(sgl.VariableError, match=r"'w' has no value.*join.*exclamation"):
        state["w"]


def test_an_exception_inside_a_turn_closes_it(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        with pytest.raises(LookupError), s.user():
            s += "part"
            raise LookupError
        s += sgl.assistant("recovered")

    assert [m["content"] for m in f.run(backend=echo).messages()] == ["part", "recovered"]


def test_streams_are_closed_when_the_run_ends(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "a" + sgl.gen()
        s.fork(3)

    f.run(backend=echo).run.finished.result(5)
    assert echo.opened == echo.closed == 4


def test_an_ended_run_can_be_read_but_not_appended_to(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "a"

    state = f.run(backend=echo)
    with pytest.raises(RuntimeError, match="has ended"):
        state += "b"
    with pytest.raises(RuntimeError, match="has ended"):
        state.fork(2)
    state["x"] = 1
    assert state.text() == "a" and state["x"] == 1


def test_an_exception_of_the_body_stops_its_requests(echo: Any) -> None:
    echo.gate = threading.Event()
    states = []

    @sgl.function
    def f(s: Any) -> None:
        states.append(s)
        s += "a" + sgl.gen("v")
        while not echo.calls:
            pass
        raise LookupError("here")

    with pytest.raises(LookupError, match="here"):
        f.run(backend=echo)
    states[0].run.finished.result(5)
    assert echo.cancelled == 1 and echo.opened == echo.closed
    with pytest.raises(sgl.VariableError, match=r"the body of 'f'.*here"):
        states[0]["v"]


def test_cancel_ends_waiting_readers(echo: Any) -> None:
    echo.gate = threading.Event()

    @sgl.function
    def f(s: Any) -> None:
        s += "a" + sgl.gen("v") + "b"
        s.fork(2)[0].__iadd__(sgl.gen("w"))

    state = f.run(backend=echo)
    state.cancel()
    with pytest.raises(sgl.VariableError, match="cancelled"):
        state["v"]
    state.run.finished.result(5)


def test_streamed_runs_return_before_the_body_and_can_be_followed(echo: Any) -> None:
    started, go = threading.Event(), threading.Event()

    @sgl.function
    def f(s: Any) -> str:
        started.set()
        go.wait(5)
        s += "a" + sgl.gen("x") + "b"
        s += sgl.gen("y")
        return "done"

    state = f.run(backend=echo, stream=True)
    started.wait(5)
    pieces = state.text_iter("y")  # not declared yet
    go.set()
    assert "".join(pieces) == state["y"]
    assert "".join(state.text_iter()) == state.text() == "a" + state["x"] + "b" + state["y"]
    assert len(list(state.text_iter("x"))) > 1 and state.ret_value == "done"
    assert list(state.text_iter("nope")) == []


def test_literals_of_a_streamed_run_are_seen_before_anything_needs_them(echo: Any) -> None:
    go = threading.Event()

    @sgl.function
    def f(s: Any) -> None:
        s += "first"
        s["seen"] = go.wait(5)
        s += "second"

    state = f.run(backend=echo, stream=True)
    pieces = state.text_iter()
    assert next(pieces) == "first"
    go.set()
    assert list(pieces) == ["second"] and state["seen"], "the reader was first"


def test_a_streamed_body_that_raises_says_so_in_error(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "a"
        raise LookupError("in the body")

    state = f.run(backend=echo, stream=True)
    assert isinstance(state.error().__cause__, LookupError)
    assert "".join(state.text_iter()) in ("", "a")


def test_reading_text_inside_a_body_does_not_wait_for_its_end(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> Any:
        s += "a" + sgl.gen("v")
        return s.text(), "".join(s.text_iter()), "".join(s.text_iter("v"))

    for stream in (False, True):
        state = f.run(backend=echo, stream=stream)
        state.sync()
        text, followed, variable = state.ret_value
        assert text == followed == "a" + variable


def test_inline_mode_executes_every_append_before_the_next(echo: Any) -> None:
    echo.gate = threading.Event()
    threading.Timer(0.05, echo.gate.set).start()

    @sgl.function
    def f(s: Any) -> tuple[int, int]:
        s += "a" + sgl.gen("x")
        return len(echo.calls), echo.running

    assert f.run(backend=echo, use_thread=False).ret_value == (1, 0)


def test_separated_reasoning_never_becomes_part_of_the_prompt() -> None:
    mock = sgl.testing.Mock({"a": "<think>because</think>yes", "b": "so"})

    @sgl.function
    def f(s: Any) -> None:
        s += "q:" + sgl.separate_reasoning(sgl.gen("a") + "|", model_type="qwen3") + sgl.gen("b")

    state = f.run(backend=mock)
    assert (state["a"], state["a_reasoning_content"], state.text()) == ("yes", "because", "q:yes|so")
    assert mock.prompts == ["q:", "q:yes|"]


def test_a_text_model_refuses_an_image(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "see " + sgl.image(b"png") + sgl.gen("v")

    with pytest.raises(sgl.VariableError, match=r"image\(3 bytes\): this back end takes text only"):
        f.run(backend=echo)["v"]


def test_the_graph_of_a_run_has_its_text_and_data_edges(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "p"
        group = s.fork(2)
        group += sgl.gen("v")
        group.join()

    nodes = f.run(backend=echo).run.graph.nodes
    assert [type(n.op) for n in nodes] == [Lit, Fork, Gen, Gen, Join]
    assert [(n.stream, n.prev) for n in nodes] == [(0, None), (0, 0), (1, 1), (2, 1), (0, 1)]
    assert nodes[1].op == Fork((1, 2)) and nodes[4].sources == (2, 3)


def test_a_failed_value_fails_the_stream_it_is_appended_to_and_says_so(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        a = s.branch()
        a += "no!" + sgl.gen("v")
        s += "go " + a.var("v") + sgl.gen("w")

    error = f.run(backend=echo).error()
    assert "exclamation mark" in str(error) and "variable 'v'" in str(error)
