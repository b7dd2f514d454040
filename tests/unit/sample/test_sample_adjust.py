"""Bias, penalties and masks, seen through greedy rows and against formulas and transformers' own processors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from sglite.runtime.sample.adjust import adjust
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.sample.penalties import TokenCounts
from sglite.runtime.sample.sampler import Sampler, SampleRow

INF = float("inf")
V = 70
WORDS = 3


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 3


def row(
    counts: TokenCounts | None = None, num_output: int = 0, ban: tuple[int, ...] = (), **params: object
) -> SampleRow:
    sampling = SamplingParams(**{"temperature": 0, **params})  # type: ignore[arg-type]
    return SampleRow(params=sampling, seed=0, position=3, num_output=num_output, banned_until_min=ban, counts=counts)


def bitmask(*allowed: list[int] | None) -> torch.Tensor:
    """One row per argument: the ids allowed, or None for all."""
    mask = torch.full((len(allowed), WORDS), -1, dtype=torch.int32)
    for index, ids in enumerate(allowed):
        if ids is not None:
            words = [sum(1 << (i % 32) for i in ids if i // 32 == word) for word in range(WORDS)]
            mask[index] = torch.tensor([w - 2**32 if w >= 2**31 else w for w in words], dtype=torch.int32)
    return mask


ids = st.lists(st.integers(0, V - 1), max_size=30)


@given(
    ids,
    ids,
    st.floats(0.1, 2.0),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100)),
)
def test_adjusting_is_the_formula(
    prompt: list[int], output: list[int], repetition: float, frequency: float, presence: float, bias: dict[int, float]
) -> None:
    logits = logits_of(3)
    before = logits.clone()
    middle = row(
        TokenCounts(prompt, output),
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        logit_bias=bias,
    )
    got = adjust(logits, [row(), middle, row()])
    want = logits.double()
    for i in range(V):
        value = want[1, i] + bias.get(i, 0.0)
        if i in prompt or i in output:
            value = value / repetition if value > 0 else value * repetition
        count = output.count(i)
        want[1, i] = value - frequency * count - presence * (count > 0)
    assert torch.allclose(got.double(), want, atol=1e-3, rtol=1e-5)
    assert torch.equal(got[[0, 2]], logits[[0, 2]]) and torch.equal(logits, before)


def test_repetition_penalty_is_that_of_transformers() -> None:
    logits = logits_of(2)
    seen = [[1, 5, 5, 9], [2, 2, 2, 3]]
    want = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor(seen), logits.clone())
    rows = [row(TokenCounts(s[:2], s[2:]), repetition_penalty=1.3) for s in seen]
    assert torch.equal(adjust(logits, rows), want)


@given(ids, ids, st.integers(0, 30))
def test_counts_grow_to_what_they_would_have_been(prompt: list[int], output: list[int], cut: int) -> None:
    grown, whole = TokenCounts(prompt, output[:cut]), TokenCounts(prompt, output)
    for token_id in output[cut:]:
        grown.add([token_id])
    assert grown.ids.tolist() == whole.ids.tolist()
    assert grown.counts.tolist() == whole.counts.tolist() == [float(output.count(i)) for i in whole.ids.tolist()]
    assert set(whole.ids.tolist()) == set(prompt) | set(output)


def test_counts_beyond_their_first_capacity() -> None:
    counts = TokenCounts()
    counts.add(range(1000))
    counts.add(range(500))
    assert counts.ids.tolist() == list(range(1000))
    assert counts.counts.tolist() == [2.0] * 500 + [1.0] * 500


def test_penalties_before_anything_was_seen() -> None:
    logits = logits_of(1)
    assert torch.equal(adjust(logits, [row(TokenCounts(), frequency_penalty=2.0)]), logits)


def test_penalties_of_the_impossible_leave_it_impossible() -> None:
    logits = logits_of(1)
    logits[0, 5] = -INF
    full = row(TokenCounts([5], [5]), repetition_penalty=0.5, frequency_penalty=-2.0, logit_bias={5: 100.0})
    assert adjust(logits, [full])[0, 5] == -INF


@given(st.sets(st.integers(0, V - 1)), st.sets(st.integers(0, V - 1)), st.sets(st.integers(0, V - 1)))
def test_masks_intersect_and_an_empty_intersection_is_an_error(
    allowed: set[int], banned: set[int], grammar: set[int]
) -> None:
    logits = logits_of(2)
    params = {"allowed_token_ids": tuple(allowed) or None, "min_new_tokens": 4}
    rows = [row(num_output=3, ban=tuple(banned), **params), row()]
    result, other = Sampler().sample(logits, rows, bitmask(sorted(grammar), None))
    left = (allowed or set(range(V))) - banned & set(range(V))
    left = left & grammar
    if left:
        assert result.error is None and result.token_id == max(left, key=lambda i: (logits[0, i].item(), -i))
    else:
        assert result.token_id == -1 and result.error is not None
        assert "the grammar" in result.error and ("allowed_token_ids" in result.error) == bool(allowed)
        assert ("min_new_tokens=4" in result.error) == bool(banned)
    assert other.token_id == logits[1].argmax().item() and other.error is None


def test_every_bit_is_its_token() -> None:
    logits = torch.zeros(V, V)
    mask = bitmask(*([i] for i in range(V)))
    assert [r.token_id for r in Sampler().sample(logits, [row()] * V, mask)] == list(range(V))
    drawn = Sampler().sample(logits, [row(temperature=1.0)] * V, mask)
    assert [r.token_id for r in drawn] == list(range(V))


def test_the_stop_ban_ends_with_the_minimum() -> None:
    logits = torch.zeros(2, V)
    logits[:, 7] = 5.0
    rows = [row(num_output=n, ban=(7,), min_new_tokens=3) for n in (2, 3)]
    assert [r.token_id for r in Sampler().sample(logits, rows)] == [0, 7]


def test_bias_is_applied_before_the_penalty() -> None:
    logits = torch.full((1, V), -1.0)
    got = adjust(logits, [row(TokenCounts([4]), logit_bias={4: 5.0}, repetition_penalty=2.0)])
    assert got[0, 4] == 2.0


def test_an_emptied_row_says_by_whom() -> None:
    (only,) = Sampler().sample(logits_of(1), [row()], bitmask([]))
    assert only.error == "every token is masked at position 3: the grammar leaves none to sample; relax one of them"


def test_misfits_are_named() -> None:
    logits = logits_of(1)
    with pytest.raises(ValueError, match=r"the bitmask is torch.int32 \[1, 2\]; int32 with 1 rows of 70 bits"):
        Sampler().sample(logits, [row()], bitmask(None)[:, :2])
    with pytest.raises(ValueError, match=r"the bitmask is torch\.int64"):
        Sampler().sample(logits, [row()], bitmask(None).long())
    with pytest.raises(IndexError, match="logit_bias has token id 70, but the logits have 70 columns"):
        Sampler().sample(logits, [row(logit_bias={70: 1.0})])
    with pytest.raises(IndexError, match="token id 70 was counted"):
        Sampler().sample(logits, [row(TokenCounts([70]), repetition_penalty=1.5)])
    with pytest.raises(ValueError, match="row 0 has penalties but no token counts"):
        Sampler().sample(logits, [row(repetition_penalty=1.5)])
    with pytest.raises(ValueError, match=r"logits \[1, 70\] for 2 rows"):
        Sampler().sample(logits, [row(), row()])
