"""In which order programs run: fork groups together, attained service, rows by their prefix tree."""

from __future__ import annotations

import random
import threading
import time

import pytest
from engines import Bench, Clock, InlineExecutor, ToyCompiler, script, toy_logprobs, toy_reference

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.cache.node import RadixNode
from sglite.runtime.cache.paths import merge, split
from sglite.runtime.engine.client import EngineThread
from sglite.runtime.engine.core import CoreConfig, EngineCore
from sglite.runtime.engine.groups import MAX_GROUPS, PATIENCE_S, Groups
from sglite.runtime.engine.programs import AGING_STEPS, MAX_LEVEL, MAX_PROGRAMS, QUANTUM_TOKENS, Programs
from sglite.runtime.engine.row_order import RowOrder, depth_first
from sglite.runtime.executor.scripted import ScriptedWorker
from sglite.runtime.protocol import GenerateRequest, LogprobOptions, ProgramRef, RequestOutput
from sglite.runtime.sample.params import SamplingParams

PROMPT = [i * 3 % 5 for i in range(20)]


def member(size: int, program: str = "p", **fields: object) -> ProgramRef:
    return ProgramRef(program_id=program, group_id="fork", group_size=size, **fields)  # type: ignore[arg-type]


def started_in(b: Bench) -> dict[str, int]:
    """The step in which each request got its slot."""
    return {new.request_id: step.step_id for step in b.worker.steps for new in step.new_rows}


# --- fork groups -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [False, True])
def test_the_members_of_a_group_start_in_one_step(overlap: bool) -> None:
    """They come one step apart; the first ones wait for the last, and nobody else waits for them."""
    b = Bench(overlap=overlap, clock=Clock())
    for i in range(4):
        b.add(f"m{i}", [*PROMPT, i], 3, program=member(4, node_id=f"{i}"))
        b.step()
    b.add("other", [4, 4], 3)
    done = b.run()
    started = started_in(b)
    assert len({started[f"m{i}"] for i in range(4)}) == 1
    for i in range(4):
        assert done[f"m{i}"].tokens == toy_reference([*PROMPT, i], 3)


def test_a_group_that_stays_incomplete_waits_for_its_patience_and_no_longer() -> None:
    clock = Clock()
    b = Bench(clock=clock)
    b.add("early", PROMPT, 2, program=member(2, node_id="0"))
    b.add("other", [4, 4], 9)
    b.step()
    clock.now = 0.9 * PATIENCE_S
    b.step()
    assert set(started_in(b)) == {"other"} and not b.core.is_idle
    clock.now = PATIENCE_S
    b.step()
    assert "early" in started_in(b)
    b.add("late", [*PROMPT, 1], 2, program=member(2, node_id="1"))
    b.step()
    assert "late" in started_in(b), "a late member waits for nobody"
    b.run()


@pytest.mark.parametrize("end", ["aborted", "refused"])
def test_members_that_come_and_end_count_as_there(end: str) -> None:
    b = Bench(clock=Clock())
    b.add("gone", PROMPT if end == "aborted" else [], 2, program=member(2, node_id="0"))
    b.core.abort("gone")
    b.add("there", [*PROMPT, 1], 2, program=member(2, node_id="1"))
    b.step()
    assert set(started_in(b)) == {"there"}
    b.run()


def test_outputs_of_one_branch_are_one_member_and_repeated_requests_wait_for_nobody() -> None:
    b = Bench(clock=Clock())
    for i in range(2):
        b.add(f"a{i}", PROMPT, 1, program=member(2, node_id="a"))
    b.step()
    assert not b.worker.steps
    b.add("b", PROMPT, 1, program=member(2, node_id="b"))
    b.step()
    assert set(started_in(b)) == {"a0", "a1", "b"}
    b.add("again", [*PROMPT, 2], 1, program=member(2, node_id="a"))
    b.step()
    assert "again" in started_in(b)
    b.run()


def test_a_member_whose_constraint_compiles_holds_nobody_up() -> None:
    compiler = ToyCompiler(slow=True)
    b = Bench(clock=Clock(), compiler=compiler)
    b.add("compiles", PROMPT, 2, program=member(2, node_id="0"), constraint=ConstraintSpec.regex("* *"))
    b.add("ready", PROMPT, 2, program=member(2, node_id="1"))
    b.step()
    assert set(started_in(b)) == {"ready"}
    compiler.release()
    b.run()


def test_members_take_the_place_of_the_first() -> None:
    """With a slot for one at a time: the group's members follow each other, the request between them comes after."""
    b = Bench(max_running=1, clock=Clock())
    b.add("m0", [0, *PROMPT], 2, program=member(2, node_id="0"))
    b.add("between", [1, *PROMPT], 2)
    b.add("m1", [2, *PROMPT], 2, program=member(2, node_id="1"))
    b.run()
    assert sorted(started_in(b), key=started_in(b).__getitem__) == ["m0", "m1", "between"]


def test_an_idle_engine_neither_spins_nor_sleeps_while_a_group_is_incomplete() -> None:
    steps: list[float] = []

    class Counting(EngineCore):
        def step(self) -> list[RequestOutput]:
            steps.append(time.perf_counter())
            return super().step()

    def core(wake: object) -> EngineCore:
        config = CoreConfig(num_pages=64, page_size=4, max_context=500, vocab_size=64)
        return Counting(InlineExecutor(ScriptedWorker(script, 64, 4)), config)  # type: ignore[arg-type]

    thread = EngineThread(core)
    ended = threading.Event()
    wire = GenerateRequest(
        request_id="alone", token_ids=PROMPT, sampling=SamplingParams(max_new_tokens=1, ignore_eos=True),
        program=member(2, node_id="0"),
    )  # fmt: skip
    begun = time.perf_counter()
    thread.submit(wire, lambda output: ended.set() if output.finish_reason else None)
    assert ended.wait(5)
    took = time.perf_counter() - begun
    thread.close()
    assert PATIENCE_S <= took < PATIENCE_S + 0.1
    assert len(steps) < 20, "it looks about once a millisecond"


def test_groups_that_never_come_together_do_not_pile_up() -> None:
    groups = Groups()
    for i in range(MAX_GROUPS + 5):
        assert groups.join(member(2, program=f"p{i}"), "r", i, 0.0) is not None
    assert len(groups._known) == MAX_GROUPS


# --- attained service ----------------------------------------------------------------------------------------------


def test_levels_are_powers_of_two_of_the_service() -> None:
    program = Programs(levelled=True).enter("p")
    for level in range(MAX_LEVEL + 3):
        program.service = (2**level - 1) * QUANTUM_TOKENS
        assert program.level == min(level, MAX_LEVEL)
        program.service -= 1
        assert program.level == min(max(0, level - 1), MAX_LEVEL)


def serve(b: Bench, program: str, tokens: int) -> None:
    """Let a program have at least so much service, in a prompt of its own."""
    b.add(f"{program}-history", [60] * tokens, 0, program=ProgramRef(program_id=program))
    b.run()


@pytest.mark.parametrize(("policy", "first"), [("program", "short"), ("fcfs", "long0")])
def test_a_short_program_does_not_wait_behind_a_long_one(policy: str, first: str) -> None:
    b = Bench(num_pages=1024, max_running=1, max_step_tokens=4096, policy=policy)
    serve(b, "long", QUANTUM_TOKENS)
    b.add("busy", [3] * 5, 5)
    b.step()
    for i in range(5):
        b.add(f"long{i}", [i, *PROMPT], 3, program=ProgramRef(program_id="long"))
    b.add("short", [4, *PROMPT], 3, program=ProgramRef(program_id="short"))
    b.run()
    order = sorted(started_in(b), key=started_in(b).__getitem__)
    assert order[order.index("busy") + 1] == first


def test_open_requests_count_as_service() -> None:
    """The first request of a program is still running when its second comes: by then it has had a lot."""
    b = Bench(num_pages=1024, max_running=2, max_step_tokens=4096)
    b.add("open", [60] * QUANTUM_TOKENS, 500, program=ProgramRef(program_id="long"))
    b.add("busy", [3] * 5, 5)
    b.step()
    b.add("second", [0, *PROMPT], 3, program=ProgramRef(program_id="long"))
    b.add("plain", [1, *PROMPT], 3)
    for _ in range(30):
        b.step()
    assert started_in(b)["plain"] < started_in(b)["second"]


@pytest.mark.parametrize("service", [1, 3, 15, 200])
@pytest.mark.parametrize("overlap", [False, True])
def test_nobody_starves_under_a_stream_of_newcomers(service: int, overlap: bool) -> None:
    """A request waits for ``AGING_STEPS`` steps a level, then for those that came before its turn, and no longer."""
    length = 4
    b = Bench(num_pages=4096, page_size=16, max_running=1, max_step_tokens=4096, overlap=overlap)
    for _ in range(service // 4 + 1):
        b.core.programs.enter("long").service += min(service, 4) * QUANTUM_TOKENS
    level = b.core.programs.enter("long").level
    b.add("busy", [3] * 5, length)
    b.step()
    b.add("patient", PROMPT, length, program=ProgramRef(program_id="long"))
    per_request = length + 2
    bound = AGING_STEPS * level + 2 * per_request
    for i in range(bound + 1):
        b.add(f"new{i}", [i % 60, i // 60, 1], length, program=ProgramRef(program_id=f"short{i}"))
        b.step()
        if "patient" in started_in(b):
            break
    assert b.core.num_steps <= bound
    assert level == 0 or overlap or b.core.num_steps > AGING_STEPS * (level - 1), "service does not count"


def test_without_programs_the_default_order_is_that_of_arrival() -> None:
    orders = []
    for policy in ("program", "fcfs"):
        rng = random.Random(4)
        b = Bench(max_running=2, policy=policy)
        for i in range(40):
            prompt = [rng.randrange(60) for _ in range(rng.randrange(1, 60))]
            b.add(f"r{i}", prompt, rng.randrange(1, 9), priority=rng.randrange(2))
        b.run()
        orders.append([step.rows for step in b.worker.steps])
    assert orders[0] == orders[1]


@pytest.mark.parametrize("overlap", [False, True])
def test_who_lacks_pages_takes_them_from_the_program_that_has_had_most(overlap: bool) -> None:
    """Of three that run, the second belongs to a long program: it gives way, though the third came last."""
    b = Bench(num_pages=24, page_size=4, overlap=overlap)
    b.core.programs.enter("long").service = 3 * QUANTUM_TOKENS
    for name, program in (("first", "a"), ("second", "long"), ("third", "b")):
        b.add(name, [ord(name[0]) % 60, *PROMPT[:10]], 30, program=ProgramRef(program_id=program))
    done = b.run()
    preempted = {name: d.last.accounting.preemptions for name, d in done.items() if d.last}
    assert preempted["first"] == 0 and preempted["second"] > 0
    b = Bench(num_pages=24, page_size=4, overlap=overlap, policy="fcfs")
    for name in ("first", "second", "third"):
        b.add(name, [ord(name[0]) % 60, *PROMPT[:10]], 30)
    done = b.run()
    assert done["third"].last is not None and done["third"].last.accounting.preemptions > 0


def test_an_owner_becomes_as_urgent_as_who_waits_for_it() -> None:
    """A long program computes a prefix that a short one needs: its rows come first, as those of the short one would."""
    b = Bench(max_step_tokens=9, chunk_size=4, max_running=4, num_pages=256)
    b.core.programs.enter("long").service = 10 * QUANTUM_TOKENS
    long = [i * i % 5 for i in range(60)]
    b.add("owner", long, 1, program=ProgramRef(program_id="long"))
    b.add("plain", [4] * 60, 1)
    b.step()
    b.step()
    assert b.worker.steps[-1].rows[0].token_ids == [4] * 4
    b.add("short", [*long, 1], 1, program=ProgramRef(program_id="short"))
    b.step()
    b.step()
    assert b.worker.steps[-1].rows[0].token_ids != [4] * 4
    b.run()


def test_the_sums_of_a_program_are_those_of_its_requests() -> None:
    b = Bench(policy="fcfs")
    for i in range(4):
        b.add(f"r{i}", [*PROMPT, i], i, program=ProgramRef(program_id=f"p{i % 2}"))
    b.add("refused", [], 1, program=ProgramRef(program_id="p1"))
    done = b.run()
    for name, members in (("p0", ("r0", "r2")), ("p1", ("r1", "r3"))):
        known = b.core.programs.get(name)
        assert known is not None
        for counter in ("prompt_tokens", "cached_tokens", "computed_prompt_tokens", "completion_tokens"):
            assert getattr(known, counter) == sum(getattr(done[r].last.accounting, counter) for r in members)  # type: ignore[union-attr]
        assert b.core.programs.enter(name).num_open == 1, "all others have left"
    assert b.core.programs.get("p2") is None


def test_programs_with_open_requests_are_remembered_and_the_others_bounded() -> None:
    programs = Programs(levelled=True)
    programs.enter("open").service = 7
    for i in range(3 * MAX_PROGRAMS):
        program = programs.enter(f"p{i}")
        program.leave(program.accounting)
    assert programs.enter("open").service == 7
    assert programs.get("p0") is None and programs.get(f"p{3 * MAX_PROGRAMS - 1}") is not None
    assert len(programs._known) <= MAX_PROGRAMS + 1


# --- rows ----------------------------------------------------------------------------------------------------------


def test_scores_and_samples_follow_their_rows() -> None:
    b = Bench(max_step_tokens=200)
    prompts = {"a": [*PROMPT, 1], "x": [4, 4, 4], "c": [*PROMPT, 2]}
    b.add("trunk", PROMPT, 0)
    b.run()
    for name, prompt in prompts.items():
        b.add(name, prompt, 2, logprobs=LogprobOptions(start_len=1))
    done = b.run()
    rows = [len(row.token_ids) for row in b.worker.steps[1].rows]
    assert rows == [21, 1, 3], "not as they came, and what two score in common is computed by one"
    for name, prompt in prompts.items():
        scored = [row for row in done[name].prompt_logprobs if row.logprob is not None]
        assert scored == toy_logprobs(b.worker, prompt, 1)
        assert done[name].tokens == toy_reference(prompt, 2)


def random_tree(rng: random.Random) -> list[RadixNode]:
    nodes = [RadixNode(None, [], 0)]
    for i in range(rng.randrange(1, 40)):
        parent = rng.choice(nodes)
        nodes.append(RadixNode(parent, [i], parent.end))
    return nodes


@pytest.mark.parametrize("seed", range(50))
def test_places_that_share_a_prefix_stand_side_by_side_and_first_comes_first(seed: int) -> None:
    rng = random.Random(seed)
    nodes = random_tree(rng)
    places = [rng.choice(nodes) for _ in range(rng.randrange(1, 30))]
    order = depth_first(places)
    assert sorted(order) == [*range(len(places))] and order[0] == 0
    for node in nodes:
        inside = [node in path_of(places[index]) for index in order]
        first, last = (inside.index(True), len(inside) - inside[::-1].index(True)) if any(inside) else (0, 0)
        assert all(inside[first:last])
    if all(path_of(a)[-2:-1] != path_of(b)[-2:-1] for i, a in enumerate(places) for b in places[:i]):
        assert order == [*range(len(places))]


@pytest.mark.parametrize("seed", range(30))
def test_an_order_that_is_remembered_is_that_of_a_walk(seed: int) -> None:
    """Over steps between which rows come, go and move on, and nodes are split and joined anew."""
    rng = random.Random(seed)
    nodes = [RadixNode(None, [], 0)]
    for i in range(30):
        parent = rng.choice(nodes)
        nodes.append(RadixNode(parent, [i] * 4, parent.end))
        parent.children[i] = nodes[-1]
    places, row_order = rng.sample(nodes, 9), RowOrder()
    for _ in range(60):
        assert row_order.of(list(places)) == depth_first(places)
        node = rng.choice(nodes[1:])
        if len(node.tokens) > 1 and rng.random() < 0.5:
            upper = split(node, node.start + 1, 4)
            if len(upper.children) == 1 and rng.random() < 0.5:
                upper.ready = upper.end
                merge(upper, 1)
        elif rng.random() < 0.3:
            places[rng.randrange(len(places))] = rng.choice(nodes)


def path_of(node: RadixNode | None) -> list[RadixNode]:
    path = []
    while node is not None:
        path.append(node)
        node = node.parent
    return path


def test_ordering_the_rows_of_a_full_batch_takes_microseconds() -> None:
    root = RadixNode(None, [], 0)
    trunks = [RadixNode(root, [i] * 10, 0) for i in range(8)]
    places = [RadixNode(trunks[i % 8], [i], 10) for i in range(64)]
    best = min(timed(places) for _ in range(20))
    assert best < 200e-6, f"{best * 1e6:.0f} us"


def timed(places: list[RadixNode]) -> float:
    begun = time.perf_counter()
    depth_first(places)
    return time.perf_counter() - begun
