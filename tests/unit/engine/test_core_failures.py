"""When a step, a compile or a client fails: who ends, who goes on, and what is never believed afterwards."""

from __future__ import annotations

from typing import Any

import pytest
from engines import Bench, Clock, ToyCompiler, toy_reference

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.protocol import LogprobOptions, SchedulerOutput

PROMPT = [i * 3 % 5 for i in range(20)]


def reason(b: Bench, name: str) -> Any:
    last = b.done[name].last
    assert last is not None
    return last.finish_reason


def fail_once(b: Bench, when: Any) -> None:
    """The first step for which ``when`` holds fails."""
    failed: list[int] = []

    def fails(step: SchedulerOutput) -> bool:
        if failed or not when(step):
            return False
        failed.append(step.step_id)
        return True

    b.worker.fail_step = fails


@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_that_fails_once_costs_nobody_anything_but_time(overlap: bool) -> None:
    """Its members start over, alone; only a request whose own step fails is to blame."""
    b = Bench(overlap=overlap)
    for i in range(4):
        b.add(f"r{i}", [i, *PROMPT], 6)
    fail_once(b, lambda step: len(step.rows) == 4 and step.samples)
    done = b.run()
    assert b.core.scheduler.failed_steps == 1
    for i in range(4):
        assert done[f"r{i}"].tokens == toy_reference([i, *PROMPT], 6)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_request_that_makes_every_step_fail_is_found_out_and_ends_alone(overlap: bool) -> None:
    b = Bench(overlap=overlap)
    b.worker.fail_step = lambda step: any(3 in row.token_ids[:1] and row.start == 0 for row in step.rows)
    for i in range(5):
        b.add(f"r{i}", [i, *PROMPT], 6)
    done = b.run()
    assert reason(b, "r3").type == "error" and "scripted failure" in reason(b, "r3").message
    for i in (0, 1, 2, 4):
        assert done[f"r{i}"].tokens == toy_reference([i, *PROMPT], 6)


def test_a_failed_step_leaves_no_checkpoint_of_its_own() -> None:
    """The keys of a place may have been computed by somebody else; the state of the one that failed never got there."""
    b = Bench(num_pages=16, page_size=64, states={"ssm": 2}, max_running=1)
    b.add("first", PROMPT, 4)
    out = b.run()["first"].tokens
    b.add("other", [4] * 7, 1)  # takes the slots of the checkpoints that the first one left
    b.run()
    b.add("culprit", PROMPT, 9)
    fail_once(b, lambda step: [row.start for row in step.rows] == [22])
    b.run()
    assert reason(b, "culprit").type == "error"
    b.add("next", PROMPT + out[:3] + [1], 5)
    assert b.run()["next"].tokens == toy_reference(PROMPT + out[:3] + [1], 5)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_checkpoint_that_a_failed_step_was_to_write_is_not_used(overlap: bool) -> None:
    """The keys were there before, so the place stays in the tree; its state was never reached."""
    b = Bench(page_size=16, states={"ssm": 6}, overlap=overlap)
    b.add("before", PROMPT, 1)
    b.run()
    b.core.cache.checkpoints.drop_since(-1)
    b.add("first", PROMPT, 4)
    b.add("bystander", [4] * 9, 4)
    fail_once(b, lambda step: len(step.rows) == 2 and step.checkpoints)
    assert b.run()["first"].tokens == toy_reference(PROMPT, 4) and b.core.scheduler.failed_steps == 1
    b.add("next", [*PROMPT, 1, 1], 4)
    assert b.run()["next"].tokens == toy_reference([*PROMPT, 1, 1], 4)


def test_everything_fails_and_everybody_hears_of_it() -> None:
    b = Bench(overlap=True)
    b.worker.fail_step = lambda step: True
    for i in range(5):
        b.add(f"r{i}", PROMPT[i:], 6)
    b.run()
    assert all(reason(b, f"r{i}").type == "error" for i in range(5))
    b.worker.fail_step = lambda step: False
    b.add("after", PROMPT, 6)
    assert b.run()["after"].tokens == toy_reference(PROMPT, 6)


def test_a_constraint_being_compiled_holds_up_nobody_else() -> None:
    compiler = ToyCompiler(slow=True)
    b = Bench(compiler=compiler, max_running=1)
    b.add("slow", PROMPT, 9, constraint=ConstraintSpec.regex("* + +"))
    b.add("quick", PROMPT, 6)
    for _ in range(20):
        b.step()
    assert b.done["quick"].terminals == 1 and b.core.is_idle
    compiler.release()
    assert b.run()["slow"].tokens == toy_reference(PROMPT, 9, constraint="* + +")


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [("refused", "constraint_refused", "a toy that is refused"), ("broken", "internal", "KeyError")],
)
def test_a_constraint_that_does_not_compile_ends_its_request_only(spec: str, code: str, message: str) -> None:
    b = Bench(compiler=ToyCompiler())
    b.add("bad", PROMPT, 6, constraint=ConstraintSpec.regex(spec))
    b.add("good", PROMPT, 6)
    assert b.run()["good"].tokens == toy_reference(PROMPT, 6)
    assert reason(b, "bad").code == code and message in reason(b, "bad").message


def test_masks_that_leave_no_token_end_the_request_with_an_error() -> None:
    """The constraint allows two tokens, and the minimum length bans both."""
    b = Bench(compiler=ToyCompiler())
    sampling = {"stop_token_ids": (1, 2), "min_new_tokens": 2}
    b.add("bad", PROMPT, 6, constraint=ConstraintSpec.regex("* 1|2 *"), sampling=sampling)
    b.add("good", PROMPT, 6)
    assert b.run()["good"].tokens == toy_reference(PROMPT, 6)
    assert reason(b, "bad").type == "error" and "masked" in reason(b, "bad").message


@pytest.mark.parametrize(
    ("prompt", "fields", "sampling", "message"),
    [
        ([], {}, {}, "input_ids is empty"),
        ([1] * 257, {}, {}, "the prompt has 257 tokens and the engine holds 256"),
        ([1] * 256, {}, {}, "raise max_total_tokens (now 256)"),
        ([1] * 200, {}, {"max_new_tokens": 57}, "give max_new_tokens<=56"),
        ([1, 64], {}, {}, "input_ids has 64, outside the vocabulary of 64"),
        ([1, -1], {}, {}, "input_ids has -1"),
        ([1], {"logprobs": LogprobOptions(start_len=2)}, {}, "logprob_start_len=2 is outside the prompt of 1"),
        ([1], {"constraint": ConstraintSpec.regex("*")}, {}, "needs a tokenizer"),
        ([1], {}, {"stop": ("x",)}, "use stop_token_ids"),
    ],
)
def test_what_cannot_run_is_refused_at_once_in_one_line(
    prompt: list[int], fields: dict[str, Any], sampling: dict[str, Any], message: str
) -> None:
    b = Bench()
    b.add("bad", prompt, 8, sampling=sampling, **fields)
    b.run()
    assert reason(b, "bad").code == "invalid_request"
    assert message in reason(b, "bad").message and "\n" not in reason(b, "bad").message
    assert b.worker.steps == []


def test_a_request_as_long_as_the_engine_holds_runs_to_its_end() -> None:
    b = Bench()
    b.add("whole", [1] * 200, 56)
    b.add("unbounded", [2] * 250, 0, sampling={"max_new_tokens": None})
    b.add("prefill", [3] * 256, 0)
    done = b.run()
    assert len(done["whole"].tokens) == 56 and len(done["unbounded"].tokens) == 6 and done["prefill"].tokens == []


def test_a_full_queue_refuses_and_says_so() -> None:
    b = Bench(config={"max_waiting": 2}, max_running=1)
    for i in range(3):
        b.add(f"r{i}", PROMPT, 4)
    b.run()
    assert "queue is full (2 requests)" in reason(b, "r2").message
    assert b.done["r1"].tokens == toy_reference(PROMPT, 4)


def test_time_limits_end_those_who_wait_and_those_who_run() -> None:
    clock = Clock()
    b = Bench(clock=clock, max_running=1)
    b.add("running", PROMPT, 100, timeout_s=10.0)
    b.add("queued", PROMPT, 5, queue_timeout_s=3.0)
    b.add("patient", PROMPT, 5, queue_timeout_s=50.0)
    for _ in range(5):
        b.step()
    assert b.done["running"].tokens and b.done["queued"].terminals == 0
    clock.now = 4.0
    b.step()
    assert reason(b, "queued").code == "timeout" and "queue_timeout_s=3.0" in reason(b, "queued").message
    clock.now = 11.0
    done = b.run()
    assert reason(b, "running").type == "abort" and "timeout_s=10.0" in reason(b, "running").message
    assert done["running"].tokens == toy_reference(PROMPT, 100)[: len(done["running"].tokens)] != []
    assert done["patient"].tokens == toy_reference(PROMPT, 5)


def test_a_queue_time_limit_says_nothing_about_running() -> None:
    clock = Clock()
    b = Bench(clock=clock)
    b.add("r", PROMPT, 9, queue_timeout_s=3.0)
    b.step()
    clock.now = 60.0
    assert b.run()["r"].tokens == toy_reference(PROMPT, 9)


def test_a_time_limit_counts_while_a_constraint_compiles() -> None:
    clock = Clock()
    b = Bench(clock=clock, compiler=ToyCompiler(slow=True))
    b.add("r", PROMPT, 9, constraint=ConstraintSpec.regex("*"), timeout_s=3.0)
    b.step()
    clock.now = 4.0
    b.run()
    assert reason(b, "r").code == "timeout"


def test_abort_all_and_close_leave_nothing_behind() -> None:
    compiler = ToyCompiler(slow=True)
    b = Bench(overlap=True, compiler=compiler)
    b.add("constrained", PROMPT, 9, constraint=ConstraintSpec.regex("*"))
    for i in range(12):
        b.add(f"r{i}", [i % 5, *PROMPT], 9)
    for _ in range(3):
        b.step()
    b.core.abort_all("over")
    for output in b.core.drain():
        b.done[output.request_id].terminals += output.finish_reason is not None
    assert all(done.terminals == 1 for done in b.done.values())
    b.check()
    b.core.close()
    assert compiler.closed
