"""A row's result depends only on that row: bit for bit the same alone, in any batch, at any place in it."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglite.runtime.backend.cpu_sample import weigh
from sglite.runtime.protocol import LogprobOptions
from sglite.runtime.sample.draw import draws_of
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.sample.penalties import TokenCounts
from sglite.runtime.sample.sampler import Sampler, SampleRow

WIDTHS = (1, 2, 31, 64, 257, 1500, 17_001)


@st.composite
def sample_rows(draw: st.DrawFn, width: int) -> SampleRow:
    ids = st.integers(0, width - 1)
    off = draw(st.booleans())
    params = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 1e-3, 0.5, 1.0, 3.0])),
        top_k=draw(st.sampled_from([-1, -1, 1, 5, 50, 2000])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.95, 0.5, 0.01])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.05, 1.0])),
        repetition_penalty=1.0 if off else draw(st.sampled_from([1.0, 1.2, 0.7])),
        frequency_penalty=0.0 if off else draw(st.sampled_from([0.0, 0.5])),
        logit_bias={} if off else draw(st.dictionaries(ids, st.floats(-5, 5), max_size=3)),
        allowed_token_ids=None if off else draw(st.none() | st.lists(ids, min_size=1, max_size=9).map(tuple)),
        min_new_tokens=0 if off else 3,
    )
    logprobs = LogprobOptions(top_n=draw(st.integers(0, 4)), token_ids=tuple(draw(st.lists(ids, max_size=2))))
    return SampleRow(
        params=params,
        seed=draw(st.integers(-(2**63), 2**64 - 1)),
        position=draw(st.integers(0, 2**20)),
        attempt=draw(st.integers(0, 2)),
        num_output=draw(st.integers(0, 5)),
        banned_until_min=() if off else tuple(draw(st.lists(ids, max_size=2))),
        counts=TokenCounts(draw(st.lists(ids, max_size=5)), draw(st.lists(ids, max_size=5))),
        logprobs=draw(st.none() | st.just(logprobs)),
    )


def logits_of(rows: int, width: int, seed: int, coarse: bool, dtype: torch.dtype) -> torch.Tensor:
    logits = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3
    return (logits.round() if coarse else logits).to(dtype)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_row_does_not_depend_on_its_batch(data: st.DataObject) -> None:
    width = data.draw(st.sampled_from(WIDTHS))
    rows = data.draw(st.lists(sample_rows(width), min_size=1, max_size=7))
    n = len(rows)
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    logits = logits_of(n, width, data.draw(st.integers(0, 99)), data.draw(st.booleans()), dtype)
    if data.draw(st.booleans()):
        logits[data.draw(st.integers(0, n - 1)), 0] = data.draw(st.sampled_from([float("nan"), float("-inf")]))
    mask = None
    if data.draw(st.booleans()):
        mask = torch.randint(-(2**31), 2**31, (n, -(-width // 32)), generator=torch.Generator().manual_seed(n))
        mask = mask.to(torch.int32)
        mask[0] = -1
    together = Sampler().sample(logits, rows, mask)
    order = data.draw(st.permutations(range(n)))[: data.draw(st.integers(1, n))]
    again = Sampler().sample(logits[order], [rows[i] for i in order], None if mask is None else mask[order])
    assert again == [together[i] for i in order]
    for i in range(n):
        alone = Sampler().sample(logits[i : i + 1].clone(), [rows[i]], None if mask is None else mask[i : i + 1])
        assert alone == [together[i]]
        if together[i].error is None and mask is not None:
            token = together[i].token_id
            assert (int(mask[i, token // 32]) >> (token % 32)) & 1
            assert token not in rows[i].banned
            assert rows[i].params.allowed_token_ids is None or token in rows[i].params.allowed_token_ids


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(WIDTHS), st.integers(1, 9), st.integers(0, 99), st.sampled_from([0.01, 0.7, 1.0, 5.0]))
def test_weights_are_the_same_bits_alone_and_together(width: int, n: int, seed: int, temperature: float) -> None:
    logits = logits_of(n, width, seed, False, torch.float32)
    rows = [SampleRow(params=SamplingParams(temperature=temperature), seed=0, position=0)] * n
    together = weigh(logits, logits, draws_of(rows))
    for i in range(n):
        one = logits[i : i + 1].clone()
        assert torch.equal(weigh(one, one, draws_of(rows[:1])), together[i : i + 1])
    assert torch.equal(together.amax(dim=1), torch.full((n,), 2**40))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_dropped_token_is_never_drawn(data: st.DataObject) -> None:
    """Whatever the logits, also huge or impossible ones, the token drawn is possible and within the cuts."""
    width = data.draw(st.integers(1, 12))
    value = st.sampled_from([float("-inf"), -1e30, -1e4, -3.0, 0.0, 0.5, 1e4, 1e30])
    values = data.draw(st.lists(value, min_size=width, max_size=width))
    values[data.draw(st.integers(0, width - 1))] = 1.0
    params = SamplingParams(
        top_k=data.draw(st.integers(-1, 14)), top_p=data.draw(st.floats(1e-6, 1.0)), min_p=data.draw(st.floats(0, 1))
    )
    rows = [SampleRow(params=params, seed=1, position=i) for i in range(50)]
    results = Sampler().sample(torch.tensor([values] * 50), rows)
    by_rank = sorted(range(width), key=lambda i: (-values[i], i))
    possible = by_rank[: params.top_k] if params.top_k > 0 else by_rank
    for result in results:
        assert result.error is None
        assert values[result.token_id] > float("-inf") and result.token_id in possible
