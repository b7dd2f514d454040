"""Sequences as handles: forks and scores compute nothing twice, hints arrive, and what nobody holds is let go."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sequence_engines import LETTERS, ScriptedEngine, held, scripted_engine, some_ids, text_folder
from tiny_engines import settles, threads_of_engines

from sglite.runtime.protocol import GenerateRequest

PLAIN = {"max_new_tokens": 5, "ignore_eos": True}
PROMPT = [*LETTERS]
PAGE = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("text"))


@pytest.fixture(params=[True, False], ids=["overlap", "sync"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[ScriptedEngine]:
    with scripted_engine(folder, disable_overlap_schedule=not request.param) as engine:
        yield engine


# --- scores and forks ---------------------------------------------------------------------------------------------


def test_scores_are_admitted_together_and_one_step_computes_prompt_and_continuations(engine: ScriptedEngine) -> None:
    sequence = engine.open_sequence("p", PROMPT)
    found = [g.result() for g in sequence.score([[50, 51], [52], [53, 54, 55], [50, 51, 44]])]
    assert engine.num_steps == 1 and len(engine.worker.steps) == 1
    assert [len(f["meta_info"]["input_token_logprobs"]) for f in found] == [2, 1, 3, 3]
    assert max(engine.worker.computed.values()) == 1, "the prompt, once"
    assert len(engine.worker.computed) == len(PROMPT) + 2 + 1 + 3 + 1
    assert sequence.token_ids == PROMPT and engine.get_server_info()["pins"] == 0
    sequence.close()


def test_a_prompt_that_ends_inside_a_page_is_computed_once_too(engine: ScriptedEngine) -> None:
    """What branches off inside a page needs a copy of it, and a copy is made of what an earlier step computed."""
    sequence = engine.open_sequence("p", PROMPT[: PAGE + 1])
    for generation in sequence.score([[50], [51, 52], [53]]):
        generation.result()
    assert engine.num_steps <= 2 and max(engine.worker.computed.values()) == 1
    sequence.close()


def test_a_fork_is_computed_once_and_again_for_nothing(engine: ScriptedEngine) -> None:
    sequence = engine.open_sequence("story", PROMPT)
    branches = sequence.fork(3)
    assert engine.num_steps == 1 and len(engine.worker.computed) == len(PROMPT)
    branches += sequence.fork(2)
    twigs = branches[0].fork(2)
    assert engine.num_steps == 1, "nothing is left to compute"
    assert engine.get_server_info()["pins"] == 2, "of the trunk, and of the branch that was forked"
    cost = engine.get_program_info("story")
    assert cost is not None and (cost["computed_prompt_tokens"], cost["forward_passes"]) == (len(PROMPT), 1)
    for index, branch in enumerate((*branches, *twigs)):
        branch.extend([60 + index])
        meta = branch.generate(PLAIN).result()["meta_info"]
        assert meta["cached_tokens"] == len(PROMPT) and meta["computed_prompt_tokens"] == 1
    assert max(engine.worker.computed.values()) == 1
    for one in (sequence, *branches, *twigs):
        one.close()


def test_a_fork_after_an_output_computes_its_last_token_only(engine: ScriptedEngine) -> None:
    sequence = engine.open_sequence("p", PROMPT)
    sequence.generate(PLAIN).result()
    before = engine.num_steps
    sequence.fork(2)
    assert engine.num_steps - before == 1 and len(engine.worker.steps[-1].rows[0].token_ids) == 1
    sequence.close()


def test_a_fork_of_a_sequence_that_generates_has_what_was_committed(engine: ScriptedEngine) -> None:
    sequence = engine.open_sequence("p", PROMPT)
    with held(engine):
        generation = sequence.generate(PLAIN)
        (branch,) = sequence.fork(1)
    assert branch.token_ids == PROMPT
    generation.result()
    assert branch.generate(PLAIN).result()["output_ids"] == generation.result()["output_ids"]
    assert max(engine.worker.computed.values()) == 1
    with pytest.raises(ValueError, match="at least one branch"):
        sequence.fork(0)


# --- what travels with a request ----------------------------------------------------------------------------------


def test_hints_tell_the_scheduler_where_a_request_stands(engine: ScriptedEngine) -> None:
    seen: list[GenerateRequest] = []

    def spy(core: Any) -> None:
        add = core.add
        core.add = lambda request: (seen.append(request), add(request))[1]

    engine.client.call(spy).result()
    hints = {"node": "0.1/3", "group": "0/2", "group_size": 4, "upcoming": 2}
    sequence, alone = engine.open_sequence("p", PROMPT), engine.open_sequence("", PROMPT)
    sequence.generate(PLAIN, hints=hints).result()
    sequence.chain([50], PLAIN, hints={"node": "0.1/5"}).result()
    sequence.score([[51]], hints={**hints, "node": "0.1/7"})[0].result()
    sequence.generate(PLAIN).result()
    alone.generate(PLAIN, hints=hints).result()
    places = [r.program and (r.program.node_id, r.program.group_id, r.program.group_size) for r in seen]
    assert places == [("0.1/3", "0/2", 4), ("0.1/5", "", 1), ("0.1/7", "0/2", 4), ("", "", 1), None]
    assert [r.program and getattr(r.program, "upcoming", None) for r in seen] == [2, 0, 2, 0, None]
    assert {r.program.program_id for r in seen[:4] if r.program} == {"p"}


def test_parking_tells_the_core_whose_pin_may_go(engine: ScriptedEngine) -> None:
    sequence = engine.open_sequence("p", PROMPT)
    sequence.generate(PLAIN).result()
    parked: list[Any] = []
    engine.client.call(lambda core: setattr(core, "park", lambda *a: parked.append(a))).result()
    sequence.park()
    sequence.park(2.5)
    engine.get_server_info()
    assert parked == [(sequence._handle.name, None), (sequence._handle.name, 2.5)]
    with pytest.raises(ValueError, match="expected_s=-1"):
        sequence.park(-1)


def test_an_explicit_none_is_the_rest_of_the_context(engine: ScriptedEngine) -> None:
    sequence = engine.open_sequence("p", PROMPT)
    with held(engine):
        first = sequence.generate({"max_new_tokens": 9, "ignore_eos": True})
        rest = sequence.chain([50], {"max_new_tokens": None, "ignore_eos": True})
    assert len(first.result()["output_ids"]) == 9
    event = rest.result(30)
    assert event["meta_info"]["finish_reason"]["type"] == "length"
    assert len(sequence) == engine.config.context_length == len(PROMPT) + 9 + 1 + len(event["output_ids"])


def test_what_is_left_out_bends_to_the_context_that_is_left_then(engine: ScriptedEngine) -> None:
    """A chained generation's room is what it is when its turn comes."""
    sequence = engine.open_sequence("p", [50] * 500)
    with held(engine):
        first, rest = sequence.generate(PLAIN), sequence.chain([51], {"ignore_eos": True})
    assert len(first.result()["output_ids"]) == 5 and len(rest.result()["output_ids"]) == 512 - 506


# --- handles ------------------------------------------------------------------------------------------------------


def at_rest(engine: ScriptedEngine) -> bool:
    info = engine.get_server_info()
    return (info["open_sequences"], info["pins"]) == (0, 0)


def test_what_nobody_holds_is_let_go(engine: ScriptedEngine) -> None:
    """Also by its own, finished generations: whoever keeps a result keeps no memory of the engine."""
    sequence = engine.open_sequence("p", PROMPT)
    kept = [sequence.generate(PLAIN), sequence.chain([50], PLAIN)]
    kept[-1].result()
    branches = sequence.fork(2)
    assert engine.get_server_info()["open_sequences"] == 3
    del sequence, branches
    gc.collect()
    assert settles(lambda: at_rest(engine), 2.0)
    assert [len(g.result()["output_ids"]) for g in kept] == [5, 5]


def test_an_open_generation_keeps_its_sequence(engine: ScriptedEngine) -> None:
    with held(engine):
        generation = engine.open_sequence("p", PROMPT).chain([50], PLAIN)
        gc.collect()
        assert len(engine._handles) == 1
    assert len(generation.result()["output_ids"]) == 5
    gc.collect()
    assert settles(lambda: at_rest(engine), 2.0)


def test_a_sequence_keeps_its_engine_and_letting_it_go_does_not(folder: Path) -> None:
    before = threads_of_engines()
    engine: Any = scripted_engine(folder)
    sequence = engine.open_sequence("p", PROMPT)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    generation = sequence.generate(PLAIN)
    assert len(generation.result()["output_ids"]) == 5 and gone() is not None
    del sequence
    gc.collect()
    assert gone() is None and settles(lambda: threads_of_engines() <= before)
    assert len(generation.result()["output_ids"]) == 5


def test_everything_comes_back(engine: ScriptedEngine) -> None:
    """Random use of many sequences, some closed, some only dropped: no page, pin, handle or request stays."""
    total = engine.get_server_info()["pages"]["total"]
    rng = random.Random(1)
    for _ in range(6):
        live = [engine.open_sequence("p", some_ids(rng) or [44]) for _ in range(4)]
        for _ in range(30):
            one = rng.choice(live)
            kind = rng.choice(["chain", "chain", "fork", "score", "rewind", "close", "abort"])
            if kind == "chain":
                one.chain(some_ids(rng), {**PLAIN, "n": rng.choice([1, 1, 2])})
            elif kind == "abort":
                one.chain([50], PLAIN).abort()
            elif kind == "fork" and len(one) and len(live) < 12:
                live += one.fork(2)
            elif kind == "score" and len(one):
                one.score([[50], [51, 52]])
            elif kind == "rewind":
                one.rewind(len(one) // 2)
                one.extend([45])
            elif kind == "close" and len(live) > 1:
                one.close()
                live.remove(one)
        for one in live[::2]:
            one.close()
        del live, one
    gc.collect()
    info = engine.rest()
    assert settles(lambda: at_rest(engine), 2.0), info
    assert engine.rest()["pages"] == {"free": total, "held": 0, "cached": 0, "total": total}
    assert info["page_mismatches"] == 0 and not engine.client._handlers
