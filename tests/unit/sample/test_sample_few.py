"""Sampling among few tokens is sampling among all of them: the same results, bit for bit."""

from __future__ import annotations

import functools
import random

import pytest
import torch

from sglite.runtime.backend import cpu_sample, few
from sglite.runtime.protocol import LogprobOptions
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.sample.penalties import TokenCounts
from sglite.runtime.sample.sampler import Sampler, SampleResult, SampleRow

WIDTHS = (1, 33, 257, 5000)


def random_row(rng: random.Random, width: int) -> SampleRow:
    def some(most: int) -> list[int]:
        return [rng.randrange(width) for _ in range(rng.randrange(most + 1))]

    params = SamplingParams(
        temperature=rng.choice([0.0, 1e-3, 0.7, 1.0, 5.0]),
        top_k=rng.choice([-1, -1, 1, 3, 50]),
        top_p=rng.choice([1.0, 1.0, 0.9, 0.3]),
        min_p=rng.choice([0.0, 0.0, 0.1]),
        repetition_penalty=rng.choice([1.0, 1.3, 0.8]),
        presence_penalty=rng.choice([0.0, 0.5]),
        logit_bias={i: rng.uniform(-5, 5) for i in some(4)},
        allowed_token_ids=tuple(some(40)) or None if rng.random() < 0.3 else None,
        min_new_tokens=rng.choice([0, 4]),
    )
    return SampleRow(
        params=params,
        seed=rng.randrange(2**64),
        position=rng.randrange(2**20),
        attempt=rng.randrange(3),
        num_output=rng.randrange(6),
        banned_until_min=tuple(some(3)),
        counts=TokenCounts(some(20), some(20)),
        logprobs=LogprobOptions(top_n=2) if rng.random() < 0.3 else None,
    )


def random_mask(rng: random.Random, rows: int, width: int) -> torch.Tensor:
    """Rows of every kind: no constraint, one token, few, most, none."""
    mask = torch.full((rows, -(-width // 32)), -1, dtype=torch.int32)
    for row in mask:
        kind = rng.choice(["all", "one", "few", "few", "most", "none"])
        if kind == "all":
            continue
        count = {"one": 1, "few": rng.randrange(1, 60), "most": width, "none": 0}[kind]
        ids = {rng.randrange(width) for _ in range(count)}
        words = [0] * len(row)
        for i in ids:
            words[i // 32] |= 1 << i % 32
        row[:] = torch.tensor([word - 2**32 if word >= 2**31 else word for word in words], dtype=torch.int32)
    return mask


def over_all_tokens(
    monkeypatch: pytest.MonkeyPatch, logits: torch.Tensor, rows: list[SampleRow], mask: torch.Tensor | None
) -> list[SampleResult]:
    with monkeypatch.context() as patch:
        patch.setattr(few, "FEW", -1)
        return Sampler().sample(logits, rows, mask)


@pytest.mark.parametrize("width", WIDTHS)
def test_few_tokens_give_what_all_tokens_give(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    rng = random.Random(width)
    for trial in range(150):
        rows = [random_row(rng, width) for _ in range(rng.randrange(1, 6))]
        mask = None if rng.random() < 0.1 else random_mask(rng, len(rows), width)
        logits = torch.randn(len(rows), width, generator=torch.Generator().manual_seed(trial)) * 3
        logits = rng.choice([logits, logits.round(), logits.bfloat16()])
        if rng.random() < 0.1:
            logits[0, rng.randrange(width)] = rng.choice([float("nan"), float("inf"), -float("inf")])
        before = logits.clone()
        got = Sampler().sample(logits, rows, mask)
        assert got == over_all_tokens(monkeypatch, logits, rows, mask)
        assert torch.equal(logits.nan_to_num(), before.nan_to_num()), "the logits given are never written"
        alone = [
            Sampler().sample(logits[i : i + 1], [row], None if mask is None else mask[i : i + 1])[0]
            for i, row in enumerate(rows)
        ]
        assert alone == got, "a row does not depend on its batch"


def test_one_token_left_needs_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_draw(*_: object) -> None:
        raise AssertionError("drew among one token")

    monkeypatch.setattr("sglite.runtime.backend.cpu_sample.draw", no_draw)
    mask = torch.zeros(2, 4, dtype=torch.int32)
    mask[0, 1], mask[1, 3] = 1 << 3, -(2**31)
    rows = [SampleRow(params=SamplingParams(), seed=i, position=0) for i in range(2)]
    assert [r.token_id for r in Sampler().sample(torch.zeros(2, 128), rows, mask)] == [35, 127]


def test_a_batch_of_few_tokens_makes_no_copy_and_asks_for_no_mask() -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a mask was applied over the vocabulary")

    mask = torch.full((3, 100), -1, dtype=torch.int32)
    mask[1] = 0
    mask[1, :30] = 7
    rows = [SampleRow(params=SamplingParams(temperature=0), seed=0, position=0)] * 3
    sampler = Sampler(functools.partial(cpu_sample.sample, apply=refuse))
    results = sampler.sample(torch.arange(3200.0).repeat(3, 1), rows, mask)
    assert [r.token_id for r in results] == [3199, 29 * 32 + 2, 3199]


def test_misfits_are_named_among_few_tokens_too() -> None:
    logits, mask = torch.zeros(1, 70), torch.tensor([[1, 0, 0]], dtype=torch.int32)
    for params, counts, message in (
        ({"logit_bias": {70: 1.0}}, None, "logit_bias has token id 70, but the logits have 70 columns"),
        ({"allowed_token_ids": (3, 70)}, None, "allowed_token_ids has token id 70, but the logits have 70 columns"),
        ({"repetition_penalty": 1.5}, TokenCounts([70]), "token id 70 was counted"),
    ):
        row = SampleRow(params=SamplingParams(**params), seed=0, position=0, counts=counts)  # type: ignore[arg-type]
        with pytest.raises(IndexError, match=message):
            Sampler().sample(logits, [row], mask)
    bare = SampleRow(params=SamplingParams(repetition_penalty=1.5), seed=0, position=0)
    with pytest.raises(ValueError, match="row 0 has penalties but no token counts"):
        Sampler().sample(logits, [bare], mask)
