"""The draw: against a plain reference, against transformers' warpers, and against the exact distribution."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sglite.runtime.backend.cpu_sample import UNIT, weigh
from sglite.runtime.backend.draws import Draws, Sampled
from sglite.runtime.sample.draw import draws_of, uniform
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.sample.sampler import Sampler, SampleRow

INF = float("inf")
GRID = [
    {"temperature": t, "top_k": k, "top_p": p, "min_p": m}
    for t, k, p, m in itertools.product((1.0, 0.6, 1.7), (-1, 3, 7), (1.0, 0.8, 0.3), (0.0, 0.1))
]


def row(position: int = 0, seed: int = 5, attempt: int = 0, **params: object) -> SampleRow:
    return SampleRow(params=SamplingParams(**params), seed=seed, position=position, attempt=attempt)  # type: ignore[arg-type]


def tokens(logits: torch.Tensor, rows: list[SampleRow]) -> list[int]:
    results = Sampler().sample(logits, rows)
    assert all(result.error is None for result in results)
    return [result.token_id for result in results]


def reference(logits: list[float], u: float, **params: float) -> set[int]:
    """The token, by the definitions, one float at a time; both neighbours where ``u`` falls on their border."""
    ids = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    top = max(logits)
    p = {i: math.exp((logits[i] - top) / params["temperature"]) for i in ids}
    if params["top_k"] > 0:
        ids = ids[: int(params["top_k"])]
    total, kept, before = math.fsum(p[i] for i in ids), [], 0.0
    for i in ids:
        if before < params["top_p"] * total and p[i] >= params["min_p"] * p[ids[0]]:
            kept.append(i)
        before += p[i]
    if params["top_k"] <= 0 and params["top_p"] == 1.0:
        kept.sort()  # without a cut by rank, the order of the distribution function is that of the ids
    total, before, found = math.fsum(p[i] for i in kept), 0.0, set()
    for i in kept:
        if before - 1e-6 * total <= u * total < before + p[i] + 1e-6 * total:
            found.add(i)
        before += p[i]
    return found


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_one_token_is_the_reference(ties: bool) -> None:
    generator = torch.Generator().manual_seed(int(ties))
    logits = torch.randn(len(GRID) * 40, 33, generator=generator) * 2
    if ties:
        logits = logits.round()
    rows = [row(position, **params) for position, params in enumerate(GRID * 40)]
    drawn = tokens(logits, rows)
    for one, values, token in zip(rows, logits.tolist(), drawn, strict=True):
        p = one.params
        want = reference(
            values, uniform(5, one.position, 0), temperature=p.temperature, top_k=p.top_k, top_p=p.top_p, min_p=p.min_p
        )
        assert token in want, (one, token, want)


def exact(logits: torch.Tensor, params: dict[str, float]) -> torch.Tensor:
    """The distribution after transformers' own warpers."""
    scores = TemperatureLogitsWarper(params["temperature"])(None, logits.unsqueeze(0))
    if params["top_k"] > 0:
        scores = TopKLogitsWarper(int(params["top_k"]))(None, scores)
    if params["top_p"] < 1.0:
        scores = TopPLogitsWarper(params["top_p"])(None, scores)
    if params["min_p"] > 0.0:
        scores = MinPLogitsWarper(params["min_p"])(None, scores)
    return torch.softmax(scores.double(), dim=-1)[0]


@pytest.mark.parametrize("params", GRID, ids=lambda p: "-".join(str(v) for v in p.values()))
def test_draws_have_the_distribution_of_transformers(params: dict[str, float]) -> None:
    n = 4000
    logits = torch.randn(16, generator=torch.Generator().manual_seed(3)) * 2
    want = exact(logits, params)
    drawn = tokens(logits.expand(n, -1), [row(position, **params) for position in range(n)])
    seen = torch.bincount(torch.tensor(drawn), minlength=16).double()
    assert not seen[want == 0].any(), "a token that the warpers drop was drawn"
    frequent = want * n >= 5
    expected, observed = want[frequent] * n, seen[frequent]
    degrees = int(frequent.sum()) - 1
    chi_square = ((observed - expected) ** 2 / expected).sum().item()
    assert chi_square <= degrees + 4 * math.sqrt(2 * degrees) + 1e-9


def test_the_random_number_is_uniform_and_each_part_of_its_key_matters() -> None:
    n = 20_000
    for key in (lambda i: (i, 0, 0), lambda i: (7, i, 0), lambda i: (7, 1, i)):
        numbers = [uniform(*key(i)) for i in range(n)]
        assert min(numbers) >= 0.0 and max(numbers) < 1.0 and len(set(numbers)) == n
        bins = torch.histc(torch.tensor(numbers), 50, 0, 1)
        assert ((bins - n / 50) ** 2 / (n / 50)).sum() < 49 + 4 * math.sqrt(98)
    assert uniform(-1, 2, 3) == uniform(2**64 - 1, 2, 3) and 0 <= uniform(-(2**63), 2**40, 0) < 1


def test_the_random_number_is_what_it_was() -> None:
    """A seed reproduces across versions: these are the numbers of the first one."""
    assert [uniform(0, 0, 0), uniform(1, 2, 3)] == [0.156742553465558, 0.7069603535111167]


def test_a_resample_differs() -> None:
    logits = torch.zeros(1, 100_000)
    drawn = {tokens(logits, [row(attempt=attempt)])[0] for attempt in range(20)}
    assert len(drawn) == 20


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 1},
        {"top_p": 1e-9},
        {"top_p": 5e-324},
        {"temperature": 0.0},
        {"temperature": 1e-9},
        {"top_k": 2, "top_p": 0.01},
    ],
    ids=str,
)
def test_degenerate_rows_are_greedy_and_take_the_lowest_of_equals(params: dict[str, float]) -> None:
    logits = torch.randint(-3, 4, (200, 50), generator=torch.Generator().manual_seed(1)).float()
    want = [values.index(max(values)) for values in logits.tolist()]
    for kind in (logits, logits.bfloat16(), logits.half(), logits.double()):
        assert tokens(kind, [row(i, **params) for i in range(200)]) == want


@pytest.mark.parametrize("params", [{"temperature": 1e-3}, {"min_p": 1.0}], ids=str)
def test_sharp_rows_take_the_best(params: dict[str, float]) -> None:
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(1))
    logits[:, 9] += 10
    assert tokens(logits, [row(i, **params) for i in range(200)]) == [9] * 200


@pytest.mark.parametrize("params", [{}, {"top_k": 40}, {"top_p": 0.99999}, {"min_p": 1e-12}], ids=str)
def test_huge_and_impossible_logits(params: dict[str, float]) -> None:
    logits = torch.full((300, 64), -INF)
    logits[:, 10], logits[:, 20], logits[:, 30] = 1e4, 1e4, -1e4
    assert set(tokens(logits, [row(i, **params) for i in range(300)])) == {10, 20}
    assert set(tokens(logits * 1e30, [row(i, **params) for i in range(300)])) == {10, 20}


def test_the_hottest_row_is_uniform_over_what_is_possible() -> None:
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(1)).expand(2000, -1).clone()
    logits[:, 3] = -INF
    seen = torch.bincount(torch.tensor(tokens(logits, [row(i, temperature=1e6) for i in range(2000)])), minlength=8)
    assert seen[3] == 0 and seen[[0, 1, 2, 4, 5, 6, 7]].min() > 200


def test_a_wide_nucleus_is_found_in_the_whole_vocabulary() -> None:
    """Flat rows need more tokens than are looked at first; the result is that of sorting everything."""
    logits = torch.randn(8, 40_000, generator=torch.Generator().manual_seed(2))
    logits[4:] *= 8
    rows = [row(i, top_p=0.9 if i % 2 else 0.4) for i in range(8)]
    values = logits.tolist()
    for i, token in enumerate(tokens(logits, rows)):
        p = rows[i].params
        assert token in reference(values[i], uniform(5, i, 0), temperature=1.0, top_k=-1, top_p=p.top_p, min_p=0.0)


def sorted_draw(logits: torch.Tensor, one: SampleRow) -> int:
    """The token of a row by the law, after sorting all of it, in whole numbers."""
    p = one.params
    weights = weigh(logits.unsqueeze(0), logits.unsqueeze(0), draws_of([one]))[0]
    ids = torch.sort(logits, descending=True, stable=True).indices.tolist()[: p.top_k if p.top_k > 0 else None]
    ordered = [weights[i].item() for i in ids]
    reach = min(sum(ordered), math.ceil(sum(ordered) * p.top_p))
    kept = [w if before < reach and w >= math.ceil(p.min_p * UNIT) else 0
            for w, before in zip(ordered, itertools.accumulate(ordered, initial=0), strict=False)]  # fmt: skip
    number = min(int(uniform(one.seed, one.position, one.attempt) * sum(kept)), sum(kept) - 1)
    return ids[next(i for i, upto in enumerate(itertools.accumulate(kept)) if upto > number)]


@pytest.mark.parametrize("crowded", [None, 0, 2, 100], ids=["narrow", "all", "some", "none"])
@pytest.mark.parametrize("width", [300, 4096])
@pytest.mark.parametrize("spread", [0.0, 0.05, 1.0, 4.0, 30.0])
def test_what_is_looked_at_changes_no_draw(
    monkeypatch: pytest.MonkeyPatch, width: int, spread: float, crowded: int | None
) -> None:
    """Nuclei of a few tokens, of most, and of equals that are cut in the middle: as if everything were sorted.

    ``crowded``: rows that are searched, where wide ones are told apart.
    """
    if crowded is not None:
        monkeypatch.setattr("sglite.runtime.backend.cpu_sample.NARROW", 0)
        monkeypatch.setattr("sglite.runtime.backend.cpu_sample.CROWDED", crowded)
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(48, width, generator=generator) * spread
    logits[::3] = (logits[::3] * 2).round()
    logits[7, 40:] = -INF
    grid = itertools.cycle(itertools.product((1.0, 0.5), (-1, 40), (0.999, 0.8, 0.05), (0.0, 0.02)))
    rows = [row(i, temperature=t, top_k=k, top_p=p, min_p=m) for i, (t, k, p, m) in zip(range(48), grid, strict=False)]
    assert tokens(logits, rows) == [sorted_draw(values, one) for values, one in zip(logits, rows, strict=True)]


def test_a_nucleus_that_is_reached_exactly_stops_there() -> None:
    drawn = tokens(torch.zeros(400, 8), [row(i, top_p=0.5) for i in range(400)])
    assert set(drawn) == {0, 1, 2, 3}
    drawn = tokens(torch.zeros(400, 8), [row(i, top_k=6, top_p=0.5) for i in range(400)])
    assert set(drawn) == {0, 1, 2}, "top-p is over what top-k kept, renormalised"


@pytest.mark.parametrize("params", [{}, {"top_k": 5}, {"top_p": 0.9999}], ids=str)
def test_the_ends_of_the_random_number_meet_the_ends_of_the_row(
    monkeypatch: pytest.MonkeyPatch, params: dict[str, float]
) -> None:
    logits = torch.tensor([[-INF, -INF, 2.0, 2.0, -INF, 2.0, -INF]])
    for number, token in ((0.0, 2), (1 - 2.0**-53, 5)):
        monkeypatch.setattr("sglite.runtime.sample.draw.uniform", lambda *key, number=number: number)
        assert tokens(logits, [row(**params)]) == [token]


def test_drawing_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(len(GRID), 64, generator=torch.Generator().manual_seed(4))
    rows = [row(i, **params) for i, params in enumerate(GRID)]
    whole = tokens(logits, rows)
    monkeypatch.setattr("sglite.runtime.backend.cpu_sample.BLOCK", 3 * 64)
    assert tokens(logits, rows) == whole


def test_bad_rows_say_why_and_leave_the_others_alone() -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(6))
    for params in ({}, {"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 4}, {"logit_bias": {1: 1.0}}):
        rows = [row(i, **params) for i in range(6)]
        good = Sampler().sample(logits, rows)
        broken = logits.clone()
        broken[1, 7], broken[2, 7], broken[3] = float("nan"), INF, -INF
        results = Sampler().sample(broken, rows)
        assert [results[i] for i in (0, 4, 5)] == [good[i] for i in (0, 4, 5)]
        for index, what in ((1, "NaN"), (2, "+inf"), (3, "-inf for every token")):
            assert results[index].token_id == -1 and results[index].logprob is None
            error = results[index].error
            assert error is not None and error.startswith(f"logits are not finite: the model gave {what};")


def test_nan_behind_a_mask_is_still_an_error() -> None:
    logits = torch.zeros(1, 40)
    logits[0, 7] = float("nan")
    params = SamplingParams(allowed_token_ids=(1, 2))
    (result,) = Sampler().sample(logits, [SampleRow(params=params, seed=0, position=0)])
    assert result.error is not None and "NaN" in result.error


def test_nothing_to_sample() -> None:
    assert Sampler().sample(torch.zeros(0, 5), []) == []


def test_starting_asks_the_device_and_waits_for_nothing() -> None:
    """Whoever reads a tensor of the device ``meta`` fails."""
    asked: list[tuple[int, ...]] = []

    def ask(logits: torch.Tensor, draws: Draws, mask: torch.Tensor | None) -> Sampled:
        asked.append(tuple(logits.shape))
        nothing = torch.empty(len(logits), device=logits.device)
        return Sampled(nothing.long(), nothing, nothing)

    rows = [row(0), row(1, temperature=0.0), row(2, top_p=0.5, top_k=3), row(3, allowed_token_ids=(1,))]
    pending = Sampler(ask).start(torch.empty(4, 50, device="meta"), rows, torch.full((4, 2), -1, dtype=torch.int32))
    assert asked == [(4, 50)] and pending.ids.device.type == "meta" and pending.ids.shape == (4,)
    with pytest.raises(NotImplementedError):
        pending.results()


def test_the_ids_of_what_was_started_are_those_of_the_results() -> None:
    logits = torch.randn(len(GRID), 64, generator=torch.Generator().manual_seed(4))
    pending = Sampler().start(logits, [row(i, **params) for i, params in enumerate(GRID)])
    assert pending.ids.tolist() == [result.token_id for result in pending.results()]
