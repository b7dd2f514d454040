"""``Backend.sample`` with native kernels, of every instruction set that the processor has, against plain torch.

Both draw by whole numbers; they differ where e^x rounds otherwise, by about 2^-22 of a weight. A token is right that
plain torch draws too, or would draw if the row's number, or what cuts the row, were that little larger or smaller.
"""

from __future__ import annotations

import functools
import itertools
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from native_kernels import NATIVE, backend_of
from torch import Tensor

from sglite.runtime.backend import cpu_sample
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.draws import Draws, Sampled

NARROW, WIDE = (1, 5, 16, 17, 63, 257, 5000), 151_936
NEAR = 2.0**-20
INF = float("inf")


@pytest.fixture(scope="module", params=["torch", *NATIVE])
def backend(request: pytest.FixtureRequest) -> CPUBackend:
    """Plain torch as a backend has it, and every instruction set."""
    return backend_of(request.param)


def draws(rows: int, seed: int) -> Draws:
    """Rows of every kind."""
    rng = random.Random(seed)

    def some(values: list[float]) -> Tensor:
        return torch.tensor([rng.choice(values) for _ in range(rows)], dtype=torch.float64)

    return Draws(
        temperatures=some([0.0, 1e-3, 0.5, 1.0, 1.0, 1.3, 100.0]).float(),
        top_k=some([0, 0, 0, 1, 3, 40, 1000, 2**31 - 1]).to(torch.int32),
        top_p=some([1.0, 1.0, 1.0, 0.95, 0.8, 0.3, 1e-9]),
        min_p=some([0.0, 0.0, 0.0, 1e-3, 0.1, 1.0]),
        uniforms=torch.tensor([rng.choice([rng.random(), rng.random(), 0.0, 1 - 2.0**-53]) for _ in range(rows)],
                              dtype=torch.float64),
    )  # fmt: skip


def bitmask(rows: int, width: int, seed: int) -> Tensor:
    """Rows of every kind: no constraint, one token, few, half of them, most, none."""
    generator = np.random.default_rng(seed)
    share = generator.choice([2.0, 0.0, 20 / width, 0.5, 0.97, 0.0], (rows, 1))
    bits = generator.random((rows, -(-width // 32) * 32), dtype=np.float32) < share
    bits[::2, generator.integers(width)] = True
    return torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view("<i4"))


def neighbours(logits: Tensor, one: Draws, mask: Tensor | None) -> set[int]:
    """The tokens of plain torch, for a row's number and cuts and for those close by."""
    found = set()
    for number, top_p, min_p in itertools.product(
        (-NEAR, 0.0, NEAR), (1 - NEAR, 1.0, 1 + NEAR), (1 - NEAR, 1.0, 1 + NEAR)
    ):
        near = Draws(
            one.temperatures, one.top_k, one.top_p if one.top_p >= 1 else one.top_p * top_p, one.min_p * min_p,
            (one.uniforms + number).clamp(0.0, 1 - 2.0**-53),
        )  # fmt: skip
        found.add(int(cpu_sample.sample(logits, near, mask).ids))
    return found


class Case(NamedTuple):
    """A step and what plain torch makes of it."""

    logits: Tensor
    draws: Draws
    mask: Tensor | None
    wanted: Sampled


def case(logits: Tensor, given: Draws, mask: Tensor | None) -> Case:
    return Case(logits, given, mask, cpu_sample.sample(logits, given, mask))


def assert_right(backend: CPUBackend, step: Case) -> None:
    """The backend does what plain torch does, and leaves the logits as they are."""
    logits, given, mask, wanted = step
    before = logits.clone()
    found = backend.sample(logits, given, mask)
    assert torch.equal(logits, before)
    for got, want in ((found.peaks, wanted.peaks), (found.left, wanted.left)):
        assert got.dtype == torch.float32 and torch.equal(got, want)
    assert found.ids.dtype == torch.int64 and bool(((found.ids >= 0) & (found.ids < logits.shape[1])).all())
    for index in ((found.ids != wanted.ids) & wanted.left.isfinite()).nonzero().flatten().tolist():
        part = slice(index, index + 1)
        own = given.of(torch.tensor([index]))
        assert int(found.ids[index]) in neighbours(logits[part], own, None if mask is None else mask[part]), index


@functools.lru_cache
def every_kind(width: int) -> list[Case]:
    cases = []
    for trial, spread in enumerate((0.0, 0.05, 1.0, 4.0, 30.0)):
        logits = torch.randn(32, width, generator=torch.Generator().manual_seed(trial)) * spread
        logits[::3] = (logits[::3] * 2).round() / 2
        logits[5::7, width // 3 :] = -INF
        cases += [case(logits, draws(32, trial), mask) for mask in (None, bitmask(32, width, trial))]
    return cases


@pytest.mark.parametrize("width", NARROW)
def test_rows_of_every_kind(backend: CPUBackend, width: int) -> None:
    for step in every_kind(width):
        assert_right(backend, step)


@functools.lru_cache
def wide(spread: float) -> list[Case]:
    logits = torch.randn(8, WIDE, generator=torch.Generator().manual_seed(1)) * spread
    logits[1::2] = logits[1::2].bfloat16().float()
    return [case(logits, draws(8, int(spread)), mask) for mask in (None, bitmask(8, WIDE, 1))]


@pytest.mark.parametrize("spread", [0.01, 2.0, 8.0])
def test_wide_rows(backend: CPUBackend, spread: float) -> None:
    for step in wide(spread):
        assert_right(backend, step)


def shapes(width: int) -> Tensor:
    """Rows that a search finds hard: [n, width]."""
    ramp = torch.arange(width).float()
    return torch.stack([
        ramp / 64, -ramp / 64, ramp % 2, -(ramp % 3), torch.where(ramp % 5 == 0, 0.0, -0.0), ramp * 1e-42,
        -ramp * ramp, torch.where(ramp == width - 1, 20.0, 0.0), torch.where(ramp < width // 2, -INF, ramp % 7 / 8),
        -(ramp + 1).log(), -(ramp + 1).log() * 1.2, (ramp - width).exp2(), torch.full((width,), -3e38),
        torch.where(ramp % 64 == 32, -9.0, -((ramp * 0.37) % 8)), torch.where(ramp % 3 == 0, 3e38, -3e38),
    ])  # fmt: skip


@functools.lru_cache
def hard(width: int) -> list[Case]:
    logits = shapes(width)
    return [case(logits, draws(len(logits), trial), None) for trial in range(8)]


@pytest.mark.parametrize("width", [2048, 4099])
def test_rows_that_are_hard_to_search(backend: CPUBackend, width: int) -> None:
    for step in hard(width):
        assert_right(backend, step)


@functools.lru_cache
def unrounded(width: int, rows: int) -> list[Case]:
    logits = torch.zeros(rows, width)
    logits[::3, ::2], logits[1::3, : width // 2] = -INF, -1e9
    return [case(logits, draws(rows, width), mask) for mask in (None, bitmask(rows, width, 2))]


@pytest.mark.parametrize(("width", "rows"), [(33, 48), (5000, 48), (WIDE, 12)])
def test_where_no_weight_is_rounded_the_tokens_are_the_same(backend: CPUBackend, width: int, rows: int) -> None:
    """Equals, and tokens without any weight: also where sums do not fit a double."""
    for logits, given, mask, wanted in unrounded(width, rows):
        found = backend.sample(logits, given, mask)
        able = wanted.left > -INF
        assert torch.equal(found.ids[able], wanted.ids[able])


def test_a_row_does_not_depend_on_the_others_nor_on_who_computes_it(backend: CPUBackend) -> None:
    logits = torch.randn(40, 3001, generator=torch.Generator().manual_seed(5)) * 3
    given, mask = draws(40, 5), bitmask(40, 3001, 5)
    together = backend.sample(logits, given, mask)
    for index in range(40):
        place = torch.tensor([index])
        alone = backend.sample(logits[place], given.of(place), mask[place])
        assert [int(alone.ids), float(alone.left)] == [int(together.ids[index]), float(together.left[index])]
    some = torch.arange(39, -1, -3)
    again = backend.sample(logits[some], given.of(some), mask[some])
    assert torch.equal(again.ids, together.ids[some])


def test_numbers_that_are_not_finite_are_told_and_stay_in_their_row(backend: CPUBackend) -> None:
    for width in (40, 4096):
        logits = torch.randn(8, width, generator=torch.Generator().manual_seed(6))
        given = Draws(
            torch.tensor([0.0, 0.7] * 4), torch.zeros(8, dtype=torch.int32), torch.full((8,), 0.9).double(),
            torch.zeros(8).double(), torch.rand(8, generator=torch.Generator().manual_seed(1)).double(),
        )  # fmt: skip
        good = backend.sample(logits, given)
        for place in (0, width // 2, width - 1):
            broken = logits.clone()
            broken[1, place], broken[2, place], broken[3] = float("nan"), INF, -INF
            found = backend.sample(broken, given)
            assert [str(peak) for peak in found.peaks[1:4].tolist()] == ["nan", "inf", "-inf"]
            kept = [0, 4, 5, 6, 7]
            assert torch.equal(found.ids[kept], good.ids[kept]) and torch.equal(found.left[kept], good.left[kept])


def test_a_mask_hides_from_what_is_left_but_not_from_the_peak(backend: CPUBackend) -> None:
    logits = torch.arange(70.0).repeat(3, 1)
    logits[1, 69] = float("nan")
    mask = torch.tensor([[6, 0, 0], [6, 0, 0], [0, 0, 0]], dtype=torch.int32)
    given = Draws(*(torch.zeros(3, dtype=kind) for kind in (torch.float32, torch.int32)),
                  *(torch.full((3,), value).double() for value in (1.0, 0.0, 0.5)))  # fmt: skip
    found = backend.sample(logits, given, mask)
    assert int(found.ids[0]) == 2 and found.left.tolist() == [2.0, 2.0, -INF]
    assert float(found.peaks[0]) == 69.0 and bool(found.peaks[1].isnan())
    short = backend.sample(logits[:1], given.of(torch.tensor([0])), torch.full((1, 2), -1, dtype=torch.int32))
    assert int(short.ids) == 63, "ids beyond the words are forbidden"


def test_rows_with_gaps_between_them(backend: CPUBackend) -> None:
    logits = torch.randn(6, 200, generator=torch.Generator().manual_seed(7))[::2, 4:100]
    assert_right(backend, case(logits, draws(3, 1), None))
