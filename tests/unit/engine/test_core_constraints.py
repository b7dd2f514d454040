"""Constraints in the step loop: tokens taken back, forced runs and what they cost, closing in time, the reasoning gate.

That output is right in every configuration is shown in ``test_core_matrix`` and ``test_scheduler_resampling``; here
is what else is promised.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from engines import END_MANY, Bench, ToyCompiler, script, toy_outcome, toy_reference

from sglite.constrained.spec import CompilerBusy, ConstraintSpec
from sglite.runtime.executor.scripted import reference
from sglite.runtime.protocol import GenerateRequest, LogprobOptions
from sglite.runtime.sample.params import SamplingParams

PROMPT = [i * 3 % 5 for i in range(20)]
GUARDED = "* < * * 2 >7 + < * 1 >5 *"
IMPOSSIBLE = "* * < 1 1 >3 *"


def bench(overlap: bool = False, **changes: Any) -> Bench:
    return Bench(**{"compiler": ToyCompiler(), "overlap": overlap, "num_pages": 256, **changes})


def ask(b: Bench, name: str, constraint: str, n: int = 40, **fields: Any) -> None:
    b.add(name, fields.pop("prompt", PROMPT), n, constraint=ConstraintSpec.regex(constraint), **fields)


def end(b: Bench, name: str) -> Any:
    last = b.done[name].last
    assert last is not None and last.finish_reason is not None
    return last.finish_reason


def spent(b: Bench, name: str) -> Any:
    last = b.done[name].last
    assert last is not None
    return last.accounting


def sequences(b: Bench) -> list[list[int]]:
    """What the tree knows, as whole sequences."""
    cache = b.core.cache
    leaves = [node for node in cache.nodes() if not node.children]
    return [[token for part in cache.path(leaf) for token in part.tokens] for leaf in leaves]


# --- tokens taken back -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [False, True])
def test_what_was_taken_back_is_neither_sent_nor_left_in_the_tree(overlap: bool) -> None:
    want = toy_outcome(PROMPT, 40, constraint=GUARDED)
    assert want.resampled > 3
    for page_size in (1, 4, 16):
        b = bench(overlap, page_size=page_size)
        ask(b, "it", GUARDED, logprobs=LogprobOptions())
        while b.done["it"].terminals == 0:
            b.step()
            assert b.done["it"].tokens == want.tokens[: len(b.done["it"].tokens)]
        whole = PROMPT + want.tokens
        assert all(known == whole[: len(known)] for known in sequences(b))
        assert spent(b, "it").resampled_tokens == want.resampled


@pytest.mark.parametrize("overlap", [False, True])
def test_what_somebody_else_uses_of_a_value_taken_back_stays(overlap: bool) -> None:
    """The tree holds keys of tokens, whatever becomes of the output they were tried for."""
    alone = bench(overlap)
    ask(alone, "it", GUARDED)
    alone.run()
    compiler = alone.core._compiler
    assert isinstance(compiler, ToyCompiler)
    for tried in compiler.matchers[0].failed:
        b = bench(overlap)
        user = [*PROMPT, *tried, 4, 4]
        ask(b, "it", GUARDED)
        b.step()
        b.add("user", user, 9)
        ask(b, "twin", GUARDED)
        done = b.run()
        assert done["it"].tokens == done["twin"].tokens == toy_reference(PROMPT, 40, constraint=GUARDED)
        assert done["user"].tokens == toy_reference(user, 9)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_constraint_that_cannot_be_satisfied_says_so_and_what_was_final_stays(overlap: bool) -> None:
    b = bench(overlap)
    ask(b, "it", IMPOSSIBLE)
    b.add("other", PROMPT, 6)
    done = b.run()
    assert (end(b, "it").type, end(b, "it").code) == ("error", "constraint_unsatisfied")
    assert "after 2 tokens" in end(b, "it").message
    assert done["it"].tokens == toy_reference(PROMPT, 2, constraint="* *")
    assert done["it"].last.constraint_complete is False and spent(b, "it").completion_tokens == 2
    assert done["other"].tokens == toy_reference(PROMPT, 6)


@pytest.mark.parametrize("overlap", [False, True])
def test_an_abort_inside_a_value_sends_nothing_of_it_and_a_length_sends_what_there_is(overlap: bool) -> None:
    constraint = "* < " + "* " * 20 + ">1000"
    b = bench(overlap)
    ask(b, "gone", constraint)
    for _ in range(8):
        b.step()
    assert b.core.scheduler.running["gone"].num_output > 3
    b.core.abort("gone")
    ask(b, "cut", constraint, 5)
    done = b.run()
    assert done["gone"].tokens == toy_reference(PROMPT, 1, constraint=constraint)
    assert done["cut"].tokens == toy_reference(PROMPT, 5, constraint=constraint)
    assert end(b, "cut").type == "length" and done["cut"].last.constraint_complete is False


def test_a_retreat_costs_one_row_of_one_token_beside_what_is_sampled_anew() -> None:
    """Nothing before the value is computed again but the last token, whose logits are wanted."""
    b = bench()
    ask(b, "it", GUARDED)
    b.step()
    request = b.core.scheduler.running["it"]
    b.run()
    assert request.grammar is not None and len(request.grammar.retreats) > 2
    assert spent(b, "it").replayed_tokens == len(request.grammar.retreats)
    assert spent(b, "it").computed_prompt_tokens == len(PROMPT)


# --- forced runs -------------------------------------------------------------------------------------------------

SURE = "* + + + * + + 1|3 + +"
"""Whatever is chosen, a run follows."""
UNSURE = "* + + * * * + + *"
"""A run follows the first choice and the last but one."""


@pytest.mark.parametrize(
    ("constraint", "sync", "overlap"), [(SURE, 3, 3), (UNSURE, 5, 5), ("1 2 3 * 4 4", 1, 1), ("~ 1 2 3", 21, 21)]
)
def test_forced_tokens_cost_no_forward_pass_of_their_own(constraint: str, sync: int, overlap: int) -> None:
    """One pass a choice. With overlap as well where the choices are few: their row waits for the run behind them."""
    elements = constraint.split()
    for mode, passes in ((False, sync), (True, overlap)):
        b = bench(mode, next_token=lambda f: END_MANY if f % 23 == 0 else script(f))
        ask(b, "it", constraint, 60)
        b.run()
        assert end(b, "it").type == "stop"
        free = sum(element in ("*", "1|3") for element in elements)
        many = len(b.done["it"].tokens) - len(elements) + 1 if "~" in elements else 0
        assert spent(b, "it").forced_tokens == len(b.done["it"].tokens) - free - many
        if "~" not in elements:
            assert spent(b, "it").forward_passes == passes
        else:  # many choices: with overlap a row is planned for each, and the run costs one more
            assert spent(b, "it").forward_passes - many in ((0,) if not mode else (0, 1))


@pytest.mark.parametrize("overlap", [False, True])
def test_without_jump_forward_every_token_is_sampled_and_the_output_is_the_same(overlap: bool) -> None:
    for constraint in (SURE, UNSURE, GUARDED):
        outputs = []
        for jumps in (True, False):
            b = bench(overlap, config={"jump_forward": jumps})
            ask(b, "it", constraint)
            b.run()
            outputs.append((b.done["it"].tokens, end(b, "it"), spent(b, "it").resampled_tokens))
            assert (spent(b, "it").forced_tokens > 0) == jumps
            if not jumps:
                assert spent(b, "it").masks_filled >= len(outputs[0][0])
        assert outputs[0] == outputs[1]


@pytest.mark.parametrize("overlap", [False, True])
def test_penalties_count_forced_tokens_of_requests_that_share_a_row(overlap: bool) -> None:
    """The scripted worker refuses to sample for a row that counts another output than it has."""
    b = bench(overlap)
    for i in range(3):
        ask(b, f"r{i}", SURE, sampling={"presence_penalty": 0.5})
    done = b.run()
    assert all(done[f"r{i}"].tokens == toy_reference(PROMPT, 40, constraint=SURE) for i in range(3))


# --- masks that exclude each other -------------------------------------------------------------------------------


@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_masks_that_leave_nothing_end_the_request_naming_both(overlap: bool, jumps: bool) -> None:
    """Provable at the first token: refused. Later: an end that says so, whether the token was forced or sampled."""
    b = bench(overlap, config={"jump_forward": jumps})
    banned = {"stop_token_ids": (2,), "min_new_tokens": 5}
    ask(b, "first", "1|2 *", sampling={"allowed_token_ids": (3, 4)})
    ask(b, "first stop", "2 * *", sampling=banned)
    ask(b, "later", "* * 7 *", sampling={"allowed_token_ids": (0, 1, 2, 3, 4)})
    ask(b, "later stop", "* * 2 *", sampling=banned)
    b.run()
    assert end(b, "first").code == end(b, "first stop").code == "constraint_refused"
    assert "allowed_token_ids" in end(b, "first").message and "min_new_tokens" in end(b, "first stop").message
    assert end(b, "later").code == end(b, "later stop").code == "sampling"
    for name in ("later", "later stop"):
        assert "masked" in end(b, name).message and len(b.done[name].tokens) == 2


# --- closing in time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("n", [5, 6, 11, 30])
def test_closing_makes_the_text_whole_within_the_limit(overlap: bool, n: int) -> None:
    constraint = "* ~ + < * 1|2|3 >2"
    want = toy_outcome(PROMPT, n, constraint=constraint, close=True)
    for chunk in (None, 1):
        b = bench(overlap, chunk_size=chunk)
        ask(b, "closed", constraint, n, sampling={"on_limit": "close"})
        ask(b, "cut", constraint, n)
        done = b.run()
        assert done["closed"].tokens == want.tokens and len(want.tokens) <= n
        last, cut = done["closed"].last, done["cut"].last
        assert last is not None and cut is not None
        assert last.constraint_complete is True and last.constraint_filled == []
        assert cut.constraint_complete is False and cut.constraint_filled is None
        assert end(b, "cut").type == "length"


@pytest.mark.parametrize("n", [1, 3, 4, 6])
def test_trying_to_close_does_so_where_it_can_and_else_cuts_the_text_off(n: int) -> None:
    """The shortest text has 4 tokens."""
    b = bench()
    ask(b, "tried", "* ~ + *", n, sampling={"on_limit": "try_close"})
    ask(b, "same", "* ~ + *", n, sampling={"on_limit": "close" if n >= 4 else "stop"})
    done = b.run()
    assert done["tried"].tokens == done["same"].tokens and len(done["tried"].tokens) <= n
    tried, same = done["tried"].last, done["same"].last
    assert tried is not None and same is not None
    assert tried.constraint_complete is same.constraint_complete is (n >= 4)


def test_a_limit_below_the_shortest_text_is_refused_with_its_length() -> None:
    b = bench()
    ask(b, "it", "* ~ + *", 3, sampling={"on_limit": "close"})
    b.run()
    assert end(b, "it").code == "constraint_refused" and "max_new_tokens>=4" in end(b, "it").message


# --- the reasoning gate ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_constraint_begins_after_the_reasoning(overlap: bool, jumps: bool) -> None:
    free = reference(script, PROMPT, 60)
    at = next(i for i in range(59) if free[i : i + 2] == [2, 3]) + 2
    for budget, thoughts in ((None, free[:at]), (at, free[:at]), (1, [free[0], 2, 3])):
        b = bench(overlap, config={"jump_forward": jumps})
        ask(b, "it", "7 * + < * * >5", 80, constraint_after=(2, 3), reasoning_budget=budget)
        tokens = b.run()["it"].tokens
        if budget == 1 and free[0] == 2:
            continue
        assert tokens[: len(thoughts)] == thoughts
        assert tokens[len(thoughts) :] == toy_reference([*PROMPT, *thoughts], 80, constraint="7 * + < * * >5")
        assert end(b, "it").type == "stop"


@pytest.mark.parametrize("overlap", [False, True])
def test_closing_leaves_room_for_the_text_after_the_reasoning(overlap: bool) -> None:
    for n in (6, 9):
        b = bench(overlap)
        ask(b, "it", "7 ~ 8", n, constraint_after=(6,), sampling={"on_limit": "close"})
        ask(b, "short", "7 ~ 8", 3, constraint_after=(6,), sampling={"on_limit": "close"})
        done = b.run()
        tokens = done["it"].tokens
        assert len(tokens) == n and tokens[n - 4 :] == [6, 7, END_MANY, 8]
        assert done["it"].last is not None and done["it"].last.constraint_complete
        assert "max_new_tokens>=4" in end(b, "short").message


@pytest.mark.parametrize("question", ["fill", "accept", "forced", "retreat"])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_constraint_that_fails_at_run_time_ends_its_own_request_only(overlap: bool, question: str) -> None:
    for calls in range(4):
        b = bench(overlap)
        ask(b, "bad", "< * + 1|3 + >4 + * * < 2 2 >3")
        ask(b, "good", GUARDED)
        compiler = b.core._compiler
        assert isinstance(compiler, ToyCompiler)
        matcher, left = compiler.matchers[0], [calls]
        works = getattr(matcher, question)

        def fails(*arguments: Any, left: list[int] = left, works: Any = works) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise RecursionError("a bug")
            return works(*arguments)

        setattr(matcher, question, fails)
        done = b.run()
        assert done["good"].tokens == toy_reference(PROMPT, 40, constraint=GUARDED)
        assert left[0] >= 0 or (end(b, "bad").code == "internal" and "RecursionError: a bug" in end(b, "bad").message)


# --- nobody waits ------------------------------------------------------------------------------------------------


def test_a_step_that_waits_for_a_mask_is_counted_as_late() -> None:
    b = bench(threads=True)
    ask(b, "it", "* * * * *")
    matcher = b.core._compiler.matchers[0]
    fill = matcher.fill

    def slowly(mask: np.ndarray) -> bool:
        time.sleep(0.15 if len(matcher.taken) == 2 else 0)
        return fill(mask)

    matcher.fill = slowly
    b.run()
    b.core.close()
    assert b.core.statistics()["late_steps"] == 1
    assert spent(b, "it").masks_filled == 5 and spent(b, "it").mask_ms >= 150


def test_what_a_request_needs_of_a_compiled_constraint_is_made_where_it_is_compiled() -> None:
    """The shortest text, the matcher and its first mask: on the thread of the compiler, and the loop is told."""
    compiler = ToyCompiler(slow=True)
    b = bench(compiler=compiler)
    threads: list[threading.Thread] = []

    class Compiled:
        def shortest_tokens(self) -> int:
            threads.append(threading.current_thread())
            return 1

        def matcher(self, **options: Any) -> Any:
            threads.append(threading.current_thread())
            raise ValueError("no matcher")

    request = GenerateRequest(
        request_id="it",
        token_ids=PROMPT,
        sampling=SamplingParams(on_limit="close"),
        constraint=ConstraintSpec.regex("x"),
    )
    b.core.add(request)
    thread = threading.Thread(target=compiler.pending[0][1].set_result, args=(Compiled(),))
    thread.start()
    thread.join()
    outputs = b.core.step()
    assert threads == [thread, thread]
    assert outputs[0].finish_reason is not None and "no matcher" in str(outputs[0].finish_reason.message)


def test_a_token_sampled_again_is_another_attempt() -> None:
    """Else it would be the same draw, and fail in the same way for ever."""
    b = bench()
    ask(b, "it", "< * * 2 >1000", 40)
    b.run()
    assert end(b, "it").code == "constraint_unsatisfied"
    tasks = [task for step in b.worker.steps for task in step.samples if task.position == len(PROMPT) - 1]
    attempts = [task.attempt for task in tasks]
    assert attempts == sorted(set(attempts)) and len(attempts) > 5


def test_a_constraint_that_finds_too_many_before_it_is_told_to_come_again() -> None:
    class Busy(ToyCompiler):
        def submit(self, spec: ConstraintSpec) -> Any:
            future: Future[Any] = Future()
            future.set_exception(CompilerBusy("7 constraints wait to be compiled; try again later"))
            return future

    b = bench(compiler=Busy())
    ask(b, "it", "* *")
    b.run()
    assert (end(b, "it").code, end(b, "it").message) == (
        "queue_full",
        "7 constraints wait to be compiled; try again later",
    )
