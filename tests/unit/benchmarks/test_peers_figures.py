"""The comparison with peers: its arithmetic, what counts as disturbed, what is asked of everybody."""

from __future__ import annotations

import pytest

from benchmarks.peers.figures import LOAD, METRICS, Column, Sample, Shot, ahead, column, disturbances, table
from benchmarks.peers.machine import Clock, between
from benchmarks.peers.parity import SHOT, is_fatal, sequences, verdict
from benchmarks.peers.workloads import HIGHEST_ID, LOWEST_ID, WORKLOADS

BY_NAME = {f"{metric.workload} {metric.label}": metric for metric in METRICS}


def w1(peer: str, number: int, whole: float, first: float, **told: float) -> Sample:
    shots = {kind: Shot(wall=wall, cpu=2 * wall, tokens=11) for kind, wall in (("whole", whole), ("first", first))}
    return Sample(peer=peer, round=number, workload="W1", shots=shots, **told)


def value(name: str, sample: Sample) -> float:
    return BY_NAME[name].value(sample)


def test_a_step_is_what_the_tokens_after_the_first_took() -> None:
    sample = w1("sglite", 0, whole=1.2, first=0.2)
    assert value("W1 ms a token", sample) == pytest.approx(100)
    assert value("W1 CPU ms a step", sample) == pytest.approx(200)
    assert value("W1 first token, s", sample) == 0.2


def test_ratios_are_taken_round_by_round_and_the_median_of_them() -> None:
    # Medians of the columns are 2 and 4, whose ratio no round has.
    own, other = Column({0: 2.0, 1: 1.0, 2: 8.0}), Column({0: 10.0, 1: 3.0, 2: 4.0})
    assert ahead(own, other, less=True) == 3.0
    assert ahead(own, other, less=False) == pytest.approx(1 / 3)


def test_only_rounds_that_both_have_are_compared() -> None:
    assert ahead(Column({0: 1.0, 1: 5.0}), Column({1: 10.0, 2: 1.0}), less=True) == 2.0
    assert ahead(Column({0: 1.0}), Column({1: 1.0}), less=True) is None
    assert ahead(Column(), Column({1: 1.0}), less=True) is None


def test_the_last_column_is_against_the_best_peer() -> None:
    samples = [w1(peer, 0, whole, 0.0) for peer, whole in (("sglite", 1.0), ("vllm", 3.0), ("openvino", 2.0))]
    line = next(line for line in table(["sglite", "vllm", "openvino"], samples) if "ms a token" in line)
    assert line == "| W1 ms a token | 100.00 | 300.00 3.00x | 200.00 2.00x | 2.00x |"


def test_a_peer_without_a_figure_has_a_dash_and_no_ratio() -> None:
    samples = [w1("sglite", 0, 1.0, 0.0), w1("vllm", 0, 2.0, 0.0)]
    lines = table(["sglite", "transformers", "vllm"], samples)
    assert "| W1 ms a token | 100.00 | – | 200.00 2.00x | 2.00x |" in lines
    assert not any(line.startswith("| W2") for line in lines)


def test_a_row_that_takes_over_tokens_needs_fewer_passes() -> None:
    whole = Shot(wall=4.0, cpu=4.0, tokens=80, rows=8, passes=4.0, mask_ms=2.0)
    free = Shot(wall=5.0, cpu=5.0, tokens=80, rows=8)
    sample = Sample(peer="sglite", round=0, workload="W5", shots={"whole": whole, "free": free})
    assert value("W5 tokens/s, JSON", sample) == 20
    assert value("W5 tokens/s, free", sample) == 16
    assert value("W5 passes a token", sample) == pytest.approx(0.4)
    assert value("W5 ms more a pass, JSON", sample) == pytest.approx(1000 - 500)
    assert value("W5 ms of masks a pass", sample) == pytest.approx(0.5)


def test_what_a_peer_does_not_count_is_no_number_in_the_table() -> None:
    shot = Shot(wall=4.0, cpu=4.0, tokens=80, rows=8)
    sample = Sample(peer="vllm", round=0, workload="W5", shots={"whole": shot, "free": shot})
    assert column(BY_NAME["W5 passes a token"], "vllm", [sample]).values == {0: 1.0}
    assert column(BY_NAME["W5 ms of masks a pass"], "vllm", [sample]).values == {}


def test_start_and_memory_stand_in_the_table() -> None:
    samples = [Sample(peer="sglite", round=r, workload=LOAD, start=2.0 + r, memory=3 * 10**9) for r in range(3)]
    lines = table(["sglite"], samples)
    assert "| load to the first token, s | 3.00 (2.00 to 4.00) |  |" in lines
    assert "| load peak memory, GB | 3.00 (3.00 to 3.00) |  |" in lines


def clock(wall: float, busy: float, stolen: float, own: float) -> Clock:
    return Clock(wall, busy, stolen, own)


def test_foreign_time_is_what_was_busy_without_ones_own() -> None:
    window = between(clock(10, 100, 5, 50), clock(20, 118, 6, 66), cores=2)
    assert window.wall == 10
    assert window.foreign == pytest.approx(2 / 20)
    assert window.stolen == pytest.approx(1 / 20)


def test_rounding_of_ticks_makes_no_negative_share() -> None:
    assert between(clock(0, 10, 0, 10), clock(1, 10.99, 0, 11), cores=2).foreign == 0


@pytest.mark.parametrize("told", [{"foreign": 0.06}, {"stolen": 0.06}])
def test_a_disturbed_sample_is_marked_and_told(told: dict[str, float]) -> None:
    samples = [w1("sglite", 0, 1.0, 0.0), w1("sglite", 1, 1.0, 0.0, **told)]
    assert "100.00 (100.00 to 100.00)*" in "\n".join(table(["sglite"], samples))
    assert disturbances(samples, [1e10])[0].startswith("disturbed: in 1 of 2 samples (*)")


def test_a_quiet_run_says_nothing() -> None:
    samples = [w1("sglite", 0, 1.0, 0.0, foreign=0.05, stolen=0.05)]
    assert disturbances(samples, [1.0e10, 1.05e10]) == []
    assert "*" not in "\n".join(table(["sglite"], samples))


def test_bandwidth_that_differs_between_rounds_is_told() -> None:
    assert disturbances([], [1.0e10, 1.0e10, 0.85e10]) == [
        "disturbed: the memory's bandwidth differed by 15% between rounds"
    ]


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_has_the_sizes_it_says_and_never_repeats_a_prompt(name: str) -> None:
    work = WORKLOADS[name]
    shots = [work.shot(kind, seed) for kind in work.shots for seed in ("0 0", "0 1")]
    prompts = [tuple(ids) for shot in shots for ids in shot["prompts"]]
    assert len(set(prompts)) == len(prompts) == work.prompts * len(shots)
    assert {len(ids) for ids in prompts} == {work.shared + work.own}
    assert all(LOWEST_ID <= token < HIGHEST_ID for ids in prompts for token in ids)
    for shot in shots:
        assert len({tuple(ids[: work.shared]) for ids in shot["prompts"]}) == 1
    assert len({tuple(shot["prompts"][0][:8]) for shot in shots}) == len(shots)


def test_everybody_gets_the_same_prompts() -> None:
    assert WORKLOADS["W4"].shot("whole", "1 0") == WORKLOADS["W4"].shot("whole", "1 0")


def test_each_request_has_a_schema_of_its_own_and_the_free_ones_none() -> None:
    schemas = WORKLOADS["W5"].shot("whole", "0")["schemas"]
    assert len({str(schema) for schema in schemas}) == 8
    assert WORKLOADS["W5"].shot("free", "0")["schemas"] is None


def test_a_short_run_keeps_the_kinds_of_shots() -> None:
    short = WORKLOADS["W2"].shortened(8)
    assert (short.own, short.max_new) == (256, 1)
    short = WORKLOADS["W4"].shortened(8)
    assert (short.shared, short.own, short.max_new, short.prompts) == (128, 8, 4, 16)


def test_a_token_below_the_first_choice_counts_against_a_peer() -> None:
    right, near, wrong = verdict([[0.0] * 20]), verdict([[0.0] * 19 + [0.3]]), verdict([[0.0] * 19 + [4.0]])
    assert (near.first, near.below) == (0.95, 0.3)
    assert [found.agrees("bf16") for found in (right, near, wrong)] == [True, True, False]
    assert not verdict([[0.1] * 5 + [0.0] * 15]).agrees("bf16")
    assert is_fatal("sglite", wrong, "bf16")
    assert not is_fatal("vllm", wrong, "bf16")


def test_the_judge_is_told_where_the_outputs_begin() -> None:
    asked = sequences([[1, 2]] * len(SHOT["prompts"]))
    assert asked["starts"] == [len(ids) for ids in SHOT["prompts"]]
    assert [ids[start:] for ids, start in zip(asked["sequences"], asked["starts"], strict=True)] == [[1, 2]] * 4
