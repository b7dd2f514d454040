"""The recurrent calls of the CPU backend against the rule written out token by token in float64."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sglite.runtime.backend.base import BackendError, BatchLayout
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import GroupSpec, StateTensor

K_HEADS, V_HEADS, K_DIM, V_DIM, CHANNELS, WIDTH = 2, 6, 8, 5, 7, 4
GROUP = GroupSpec(
    name="memory",
    kind="state",
    layout="recurrent",
    num_layers=2,
    state_tensors=(StateTensor((CHANNELS, WIDTH - 1)), StateTensor((V_HEADS, K_DIM, V_DIM))),
)
SLOTS = 12
LENGTHS = [1, 1, 2, 3, 7, 8, 64, 65, 130, 1, 200]


def layout(lengths: Sequence[int], slots: Sequence[int], **more: object) -> BatchLayout:
    """Rows that start somewhere and store no keys, as those do that compute again what is cached."""
    ends = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    fields: dict[str, object] = {
        "query_starts": ends,
        "starts": [5] * len(lengths),
        "seq_lens": [5 + n for n in lengths],
        "positions": [5 + i for n in lengths for i in range(n)],
        "slot_mapping": [-1] * ends[-1],
        "page_tables": [[0] * (5 + n) for n in lengths],
        "page_size": 1,
        "state_slots": [{"memory": slot} for slot in slots],
    }
    return BatchLayout(**{**fields, **more})  # type: ignore[arg-type]


def make_pool(backend: CPUBackend, seed: int = 0) -> KVPool:
    pool = backend.allocate_pool([GROUP], num_pages=1, page_size=1, num_states=SLOTS)
    generator = torch.Generator().manual_seed(seed)
    for tensor in (tensor for layers in pool.states.values() for layer in layers for tensor in layer):
        tensor.normal_(generator=generator)
    return pool


def inputs(count: int, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "q": (K_HEADS, K_DIM),
        "k": (K_HEADS, K_DIM),
        "v": (V_HEADS, V_DIM),
        "decay": (V_HEADS,),
        "beta": (V_HEADS,),
    }
    made = {name: torch.randn((count, *shape), generator=generator) for name, shape in shapes.items()}
    made["decay"] = -2 * made["decay"].abs()
    made["beta"] = made["beta"].sigmoid()
    return made


def by_the_rule(x: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    """One row, one token after the other."""
    q, k, v, decay, beta = (x[name].double() for name in ("q", "k", "v", "decay", "beta"))
    q, k = (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (q, k))
    memory, out = state.double().clone(), torch.empty(v.shape, dtype=torch.float64)
    for t in range(len(v)):
        for head in range(V_HEADS):
            key, query = k[t, head // (V_HEADS // K_HEADS)], q[t, head // (V_HEADS // K_HEADS)] * K_DIM**-0.5
            memory[head] *= decay[t, head].exp()
            memory[head] += torch.outer(key, beta[t, head] * (v[t, head] - memory[head].T @ key))
            out[t, head] = memory[head].T @ query
    return out, memory


def test_rows_of_all_lengths_follow_the_rule_and_leave_their_states() -> None:
    backend = CPUBackend()
    pool, x = make_pool(backend), inputs(sum(LENGTHS))
    slots = random.Random(3).sample(range(SLOTS), len(LENGTHS))
    before = pool.states["memory"][1][1].clone()
    out = backend.gated_delta_rule(*x.values(), pool, "memory", 1, backend.plan(layout(LENGTHS, slots)))
    first = 0
    for length, slot in zip(LENGTHS, slots, strict=True):
        row = slice(first, first + length)
        want, state = by_the_rule({name: part[row] for name, part in x.items()}, before[slot])
        torch.testing.assert_close(out[row].double(), want, atol=2e-5, rtol=0)
        torch.testing.assert_close(pool.states["memory"][1][1][slot].double(), state, atol=2e-5, rtol=0)
        first += length
    (untouched,) = set(range(SLOTS)) - set(slots)
    assert torch.equal(pool.states["memory"][1][1][untouched], before[untouched])
    torch.testing.assert_close(pool.states["memory"][0], make_pool(backend).states["memory"][0], atol=0, rtol=0)


def test_a_convolution_sees_the_last_inputs_of_its_own_row() -> None:
    backend = CPUBackend()
    pool = make_pool(backend)
    x, weight = torch.randn(sum(LENGTHS), CHANNELS), torch.randn(CHANNELS, WIDTH)
    slots = random.Random(4).sample(range(SLOTS), len(LENGTHS))
    before = pool.states["memory"][0][0].clone()
    out = backend.causal_conv(x, weight, pool, "memory", 0, backend.plan(layout(LENGTHS, slots)))
    first = 0
    for length, slot in zip(LENGTHS, slots, strict=True):
        seen = torch.cat((before[slot], x[first : first + length].T), dim=1)
        for t in range(length):
            want = torch.nn.functional.silu((seen[:, t : t + WIDTH] * weight).sum(1))
            torch.testing.assert_close(out[first + t], want, atol=1e-5, rtol=0)
        assert torch.equal(pool.states["memory"][0][0][slot], seen[:, -(WIDTH - 1) :])
        first += length


def test_a_row_gives_the_same_in_one_piece_and_in_many() -> None:
    backend, x, length = CPUBackend(), inputs(150), 150
    conv, weight = torch.randn(length, CHANNELS), torch.randn(CHANNELS, WIDTH)
    results = []
    for cuts in ([0, length], [0, 1, 2, 5, 69, 70, 134, length], list(range(length + 1))):
        pool = make_pool(backend)
        parts = []
        for first, last in itertools.pairwise(cuts):
            meta = backend.plan(layout([last - first], [7]))
            read = backend.gated_delta_rule(*(part[first:last] for part in x.values()), pool, "memory", 0, meta)
            parts.append((read, backend.causal_conv(conv[first:last], weight, pool, "memory", 0, meta)))
        states = [tensor[7] for tensor in pool.states["memory"][0]]
        results.append([*(torch.cat(part) for part in zip(*parts, strict=True)), *states])
    for other in results[1:]:
        for found, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, want, atol=2e-5, rtol=0)


def test_rubbish_in_one_row_does_not_reach_another() -> None:
    backend, lengths = CPUBackend(), [1, 1, 5, 6]
    slots = [0, 1, 2, 3]
    x = inputs(sum(lengths))
    clean = make_pool(backend)
    want = backend.gated_delta_rule(*x.values(), clean, "memory", 0, backend.plan(layout(lengths, slots)))
    pool = make_pool(backend)
    pool.states["memory"][0][1][[0, 2]] = torch.nan
    out = backend.gated_delta_rule(*x.values(), pool, "memory", 0, backend.plan(layout(lengths, slots)))
    assert out[0].isnan().all() and out[2:7].isnan().all()
    assert torch.equal(out[1], want[1]) and torch.equal(out[7:], want[7:])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"parents": [[-1], None]}, "cannot follow the branches of 1 drafts"),
        ({"state_slots": [{"memory": 1}, {"other": 2}]}, "no state slot of group 'memory', only \\['other'\\]"),
        ({"state_slots": None}, "no state slot of group 'memory'"),
    ],
)
def test_rows_without_a_state_of_their_own_are_refused(more: dict[str, object], message: str) -> None:
    backend, x = CPUBackend(), inputs(4)
    pool = make_pool(backend)
    with pytest.raises(BackendError, match=message):
        backend.gated_delta_rule(*x.values(), pool, "memory", 0, backend.plan(layout([2, 2], [1, 2], **more)))
