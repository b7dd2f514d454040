"""The recurrent calls on a GPU against the specification, and against the rule token by token where that is hard."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch
from cuda_device import DEVICE
from never_waits import never_waits
from torch import Tensor

from sglite.runtime.backend.base import BatchLayout
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.kernels.delta import causal_conv, gated_delta_rule
from sglite.runtime.backend.kernels.delta_chunks import MOST
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import GroupSpec, StateTensor

PLAIN = CPUBackend()
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
SLOTS = 14
LENGTHS = [1, 2, 7, MOST, MOST + 1, 65, 1]
"""On both sides of every change of the way in which rows are computed."""


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def layout(lengths: Sequence[int], slots: Sequence[int]) -> BatchLayout:
    """Rows that store no keys."""
    ends = list(itertools.accumulate(lengths, initial=0))
    return BatchLayout(
        query_starts=ends,
        starts=[0] * len(lengths),
        seq_lens=list(lengths),
        positions=[0] * ends[-1],
        slot_mapping=[-1] * ends[-1],
        page_tables=[[0] * n for n in lengths],
        page_size=1,
        state_slots=[{"m": slot} for slot in slots],
    )


def some_slots(lengths: Sequence[int]) -> list[int]:
    return random.Random(3).sample(range(SLOTS), len(lengths))


def states_of(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> KVPool:
    """States in two layers, the last shape's float32."""
    names = [str(dtype).removeprefix("torch.")] * (len(shapes) - 1) + ["float32"]
    tensors = tuple(StateTensor(shape, name) for shape, name in zip(shapes, names, strict=True))
    group = GroupSpec(name="m", kind="state", layout="recurrent", num_layers=2, state_tensors=tensors)
    pool = PLAIN.allocate_pool([group], num_pages=1, page_size=1, num_states=SLOTS)
    for tensor in (tensor for layer in pool.states["m"] for tensor in layer):
        tensor.normal_()
    return pool


def whole(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


def places(lengths: Sequence[int], slots: Sequence[int]) -> tuple[Tensor, Tensor, int]:
    """What kernels are told of rows."""
    return whole(list(itertools.accumulate(lengths, initial=0))), whole(slots), max(lengths)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    bound = ROUNDING[dtype] * max(1.0, expected.abs().max().item())
    assert (found.double() - expected.double()).abs().max().item() <= bound


def rule_inputs(tokens: int, heads: tuple[int, int], dims: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """q, k, v as parts of wider rows, decays and betas."""
    (few, many), (k_dim, v_dim) = heads, dims
    mixed = torch.randn(tokens, 2 * few * k_dim + many * v_dim + 3).to(dtype)
    sizes = [few * k_dim, few * k_dim, many * v_dim, 3]
    q, k, v = (part.view(tokens, n, -1) for part, n in zip(mixed.split(sizes, 1)[:3], (few, few, many), strict=True))
    return [q, k, v, (-2 * torch.randn(tokens, 2 * many).abs())[:, ::2], torch.rand(tokens, many)]


def check_rule(lengths: Sequence[int], heads: tuple[int, int], dims: tuple[int, int], dtype: torch.dtype) -> None:
    pool = states_of((1, 1), (heads[1], *dims))
    slots, inputs = some_slots(lengths), rule_inputs(sum(lengths), heads, dims, dtype)
    states = pool.states["m"][1][1].to(DEVICE, copy=True)
    found = gated_delta_rule(*(part.to(DEVICE) for part in inputs), states, *places(lengths, slots))
    expected = PLAIN.gated_delta_rule(*inputs, pool, "m", 1, PLAIN.plan(layout(lengths, slots)))
    assert_near(found.cpu(), expected, dtype)
    assert_near(states.cpu(), pool.states["m"][1][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_all_lengths_follow_the_rule_and_leave_their_states(dtype: torch.dtype) -> None:
    check_rule(LENGTHS, (1, 2), (8, 5), dtype)


@pytest.mark.parametrize("heads", [(2, 2), (1, 3)])
@pytest.mark.parametrize("dims", [(16, 16), (24, 48)])
def test_heads_of_other_shapes_follow_the_rule(heads: tuple[int, int], dims: tuple[int, int]) -> None:
    check_rule([1, 3, MOST + 4, 1], heads, dims, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "dims"), [((1, 2), (128, 128)), ((2, 4), (64, 100)), ((2, 6), (8, 5))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rows_follow_the_rule(heads: tuple[int, int], dims: tuple[int, int], dtype: torch.dtype) -> None:
    check_rule([*LENGTHS, 64, 130, 3, 128, 300], heads, dims, dtype)


def test_a_row_gives_the_same_in_one_piece_and_in_many() -> None:
    inputs = [part.to(DEVICE) for part in rule_inputs(90, (1, 1), (8, 16), torch.float32)]
    begin = torch.randn(3, 1, 8, 16)
    results = []
    for cuts in ([0, 90], [0, 1, 2, 20, 86, 90]):
        states = begin.to(DEVICE, copy=True)
        parts = [
            gated_delta_rule(*(part[first:last] for part in inputs), states, *places([last - first], [1]))
            for first, last in itertools.pairwise(cuts)
        ]
        results.append((torch.cat(parts).cpu(), states.cpu()))
    for found, expected in zip(*results, strict=True):
        assert_near(found, expected)
    assert torch.equal(results[0][1][[0, 2]], begin[[0, 2]])


def test_keys_that_are_all_the_same_lose_nothing() -> None:
    """Every token replaces what the one before wrote: powers of A are as large as they can be, its inverse is not."""
    count = 64
    key = torch.randn(1, 1, 8).expand(count, 1, 8)
    v = torch.randn(count, 1, 16)
    inputs = [part.to(DEVICE) for part in (key, key, v, torch.zeros(count, 1), torch.ones(count, 1))]
    states = torch.zeros(1, 1, 8, 16, device=DEVICE)
    found = gated_delta_rule(*inputs, states, *places([count], [0]))
    assert_near(found.cpu(), v * 8**-0.5)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize(("channels", "width"), [(7, 4), (70, 2)])
def test_a_convolution_sees_the_last_inputs_of_its_own_row(
    dtypes: tuple[torch.dtype, torch.dtype], channels: int, width: int
) -> None:
    check_convolution(LENGTHS, channels, width, *dtypes)


def test_states_of_a_convolution_may_be_rounded() -> None:
    check_convolution([1, 2, 3, 5, 1], 9, 4, torch.bfloat16, torch.bfloat16)
    check_convolution([1, 1, 1], 9, 4, torch.bfloat16, torch.bfloat16)
    check_convolution([1, 2, 3], 9, 4, torch.float32, torch.bfloat16)


def check_convolution(lengths: Sequence[int], channels: int, width: int, dtype: torch.dtype, kept: torch.dtype) -> None:
    pool = states_of((channels, width - 1), (1, 1, 1), dtype=kept)
    slots, x = some_slots(lengths), torch.randn(sum(lengths), channels + 5).to(dtype)[:, 3 : channels + 3]
    weight, states = torch.randn(channels, width).to(dtype), pool.states["m"][0][0].to(DEVICE, copy=True)
    found = causal_conv(x.to(DEVICE), weight.to(DEVICE), states, *places(lengths, slots))
    expected = PLAIN.causal_conv(x, weight, pool, "m", 0, PLAIN.plan(layout(lengths, slots)))
    assert_near(found.cpu(), expected, dtype)
    assert torch.equal(states.cpu(), pool.states["m"][0][0])


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 64, 300])
@pytest.mark.parametrize("width", [2, 3, 4, 8])
def test_convolutions_of_many_sizes(channels: int, width: int) -> None:
    for lengths in ([1] * 9, LENGTHS):
        check_convolution(lengths, channels, width, torch.float32, torch.float32)


@pytest.mark.parametrize("lengths", [[1, 1, 1, 1], [1, MOST + 2, 1, 1]], ids=["decode", "mixed"])
def test_padding_reads_and_stores_nothing(lengths: Sequence[int]) -> None:
    slots = [3, 1, -1, -1]
    tokens = sum(lengths)
    inputs = rule_inputs(tokens, (1, 2), (8, 5), torch.float32)
    x, weight = torch.randn(tokens, 7), torch.randn(7, 4)
    for part in (*inputs, x):
        part[-2:] = torch.nan
    for count in (4, 2):  # the first rows alone give the same
        rows = places(lengths[:count], slots[:count])
        end = sum(lengths[:count])
        memory, kept = torch.ones(5, 2, 8, 5, device=DEVICE), torch.ones(5, 7, 3, device=DEVICE)
        parts = (part[:end].to(DEVICE) for part in inputs)
        read = gated_delta_rule(*parts, memory, *rows).cpu()
        seen = causal_conv(x[:end].to(DEVICE), weight.to(DEVICE), kept, *rows).cpu()
        results = [read[: tokens - 2], seen[: tokens - 2], memory.cpu(), kept.cpu()]
        if count == 4:
            padded = results
            assert torch.equal(read[-2:], torch.zeros(2, 2, 5)) and torch.equal(seen[-2:], torch.zeros(2, 7))
    assert all(torch.equal(*pair) for pair in zip(padded, results, strict=True))
    assert torch.equal(memory.cpu()[[0, 2, 4]], torch.ones(3, 2, 8, 5))


def test_rubbish_in_one_row_does_not_reach_another() -> None:
    lengths, slots = [1, 1, MOST + 2, MOST + 3], [0, 1, 2, 3]
    rows, inputs = places(lengths, slots), rule_inputs(sum(lengths), (1, 2), (8, 5), torch.float32)
    results = []
    for rubbish in (0.5, torch.nan):
        states = torch.ones(4, 2, 8, 5)
        states[[0, 2]] = rubbish
        results.append(gated_delta_rule(*(part.to(DEVICE) for part in inputs), states.to(DEVICE), *rows).cpu())
    mine = [1, *range(MOST + 4, sum(lengths))]
    assert torch.equal(results[0][mine], results[1][mine])
    assert results[1][0].isnan().all() and results[1][2 : MOST + 4].isnan().all()


def test_nothing_waits_for_the_device() -> None:
    lengths = [1, MOST + 1]
    inputs = [part.to(DEVICE) for part in rule_inputs(sum(lengths), (1, 1), (8, 8), torch.float32)]
    rows, states, kept = places(lengths, [0, 1]), torch.zeros(2, 1, 8, 8).to(DEVICE), torch.zeros(2, 7, 3).to(DEVICE)
    x, weight = torch.randn(sum(lengths), 7).to(DEVICE), torch.randn(7, 4).to(DEVICE)
    with never_waits():
        gated_delta_rule(*inputs, states, *rows)
        causal_conv(x, weight, kept, *rows)
