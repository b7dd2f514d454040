"""Log probabilities are those of the raw logits, whatever else a row asks for; scoring gives the same numbers."""

from __future__ import annotations

import math

import pytest
import torch

from sglite.runtime.backend.order import largest, top
from sglite.runtime.protocol import LogprobOptions
from sglite.runtime.sample.logprobs import LogitsNotFinite
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.sample.penalties import TokenCounts
from sglite.runtime.sample.sampler import Sampler, SampleRow

INF = float("inf")


def logits_of(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3


def test_output_logprobs_ignore_bias_penalties_masks_and_temperature() -> None:
    logits = logits_of(1, 50)
    options = LogprobOptions(top_n=4, token_ids=(7, 3, 7))
    params = SamplingParams(
        temperature=0.3, top_k=5, logit_bias={3: 50.0}, allowed_token_ids=(3, 4), frequency_penalty=1.0
    )
    row = SampleRow(params=params, seed=1, position=9, counts=TokenCounts([3], [3, 4]), logprobs=options)
    (result,) = Sampler().sample(logits, [row])
    raw = torch.log_softmax(logits, dim=1)[0]
    assert result.logprob is not None and result.token_id == result.logprob.token_id == 3
    assert result.logprob.logprob == raw[3].item()
    assert result.logprob.given == [(i, raw[i].item()) for i in (7, 3, 7)]
    assert result.logprob.top == [(int(i), raw[i].item()) for i in raw.argsort(descending=True)[:4]]
    assert Sampler().score(logits, [3], options) == [result.logprob]


def test_scores_are_a_float64_log_softmax_within_rounding() -> None:
    logits = logits_of(40, 333) + 1e4
    targets = [(i * 37) % 333 for i in range(40)]
    want = torch.log_softmax(logits.double(), dim=1)[range(40), targets]
    got = [entry.logprob for entry in Sampler().score(logits, targets, LogprobOptions())]
    assert torch.allclose(torch.tensor(got, dtype=torch.float64), want, atol=2e-6)


def test_scoring_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = logits_of(23, 101), list(range(23))
    options = LogprobOptions(top_n=3, token_ids=(5,))
    whole = Sampler().score(logits, targets, options)
    monkeypatch.setattr("sglite.runtime.sample.logprobs.BLOCK", 5 * 101)
    assert Sampler().score(logits, targets, options) == whole


def test_rows_ask_for_different_things() -> None:
    logits = logits_of(3, 20)
    options = [LogprobOptions(top_n=2), None, LogprobOptions(token_ids=(1,))]
    rows = [SampleRow(params=SamplingParams(temperature=0), seed=0, position=0, logprobs=o) for o in options]
    first, second, third = Sampler().sample(logits, rows)
    assert first.logprob is not None and third.logprob is not None
    assert len(first.logprob.top) == 2 and first.logprob.given == []
    assert second.logprob is None
    assert third.logprob.top == [] and [token for token, _ in third.logprob.given] == [1]


def test_equal_tokens_are_listed_by_id_and_impossible_ones_left_out() -> None:
    logits = torch.tensor([[1.0, 2.0, -INF, 2.0, 1.0, 1.0]])
    (entry,) = Sampler().score(logits, [2], LogprobOptions(top_n=6, token_ids=(2,)))
    assert [token for token, _ in entry.top] == [1, 3, 0, 4, 5]
    assert entry.logprob == -INF and entry.given == [(2, -INF)]
    (entry,) = Sampler().score(logits, [2], LogprobOptions(top_n=3))
    assert [token for token, _ in entry.top] == [1, 3, 0]
    (entry,) = Sampler().score(logits, [2], LogprobOptions(top_n=10**6))
    assert len(entry.top) == 5
    assert math.isclose(sum(math.exp(value) for _, value in entry.top), 1.0, abs_tol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_scoring_logits_that_are_not_finite_says_so(bad: float) -> None:
    logits = logits_of(3, 8)
    logits[1, 4] = bad
    with pytest.raises(LogitsNotFinite, match=r"logits are not finite: .* \(row 1 of 3 scored\)"):
        Sampler().score(logits, [0, 0, 0], LogprobOptions())


def test_ids_outside_the_logits_are_refused_before_they_reach_the_device() -> None:
    with pytest.raises(IndexError, match="token ids 8 to 8 asked of logits with 8 columns"):
        Sampler().score(logits_of(1, 8), [8], LogprobOptions())
    with pytest.raises(IndexError):
        Sampler().score(logits_of(1, 8), [0], LogprobOptions(token_ids=(0, 9)))


@pytest.mark.parametrize("width", [64, 1000, 1024])
@pytest.mark.parametrize("k", [1, 3, 7, 63, 64])
def test_the_top_is_that_of_a_stable_descending_sort(k: int, width: int) -> None:
    generator = torch.Generator().manual_seed(k)
    values = torch.randint(0, 60, (50, width), generator=generator).float()
    values[5:9] = 3.0
    for kind in (values, values.bfloat16(), values.double()):
        want = torch.sort(kind, dim=1, descending=True, stable=True)
        found, ids = top(kind, k)
        assert torch.equal(ids, want.indices[:, :k]) and torch.equal(found, want.values[:, :k])


@pytest.mark.parametrize("width", [64, 1024])
def test_the_top_of_a_row_with_few_entries_is_filled_up_with_nothing(width: int) -> None:
    values = torch.full((3, width), -torch.inf)
    values[0, 7], values[0, 63], values[1, 5] = 1.0, 2.0, -3e38
    found, ids = top(values, 4)
    assert found[0].tolist() == [2.0, 1.0, -torch.inf, -torch.inf] and ids[0, :2].tolist() == [63, 7]
    assert found[1, 0] == values[1, 5] and ids[1, 0] == 5 and (found[2] == -torch.inf).all()


@pytest.mark.parametrize("width", [1, 40, 256, 1000, 4096])
def test_the_largest_has_the_lowest_id_among_equals(width: int) -> None:
    values = torch.randint(-9, 9, (200, width), generator=torch.Generator().manual_seed(width)).float()
    values[3] = -torch.inf
    for kind in (values, values.bfloat16()):
        peaks, ids = largest(kind)
        assert torch.equal(peaks, kind.amax(dim=1)) and ids.tolist() == [row.index(max(row)) for row in kind.tolist()]
    values[7, width // 2] = torch.nan
    peaks, _ = largest(values)
    assert peaks.isnan().nonzero().flatten().tolist() == [7]
