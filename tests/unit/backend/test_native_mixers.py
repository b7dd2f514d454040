"""Experts, latent attention and recurrent layers natively, on every instruction set, against the specification.

Bounds as in the tests of the other kernels: some units in 1e-6 in float32, some in 2^-8 in bfloat16, of the largest
number. The specification computes in float32 on the same rounded numbers, so that its own rounding does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from native_kernels import NATIVE, backend_of
from torch import Tensor

from sglite.runtime.backend.base import BackendError, BatchLayout
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.experts import ExpertWeights, Matrices, Routing
from sglite.runtime.backend.weights import Activation
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import GroupSpec, StateTensor

PLAIN = CPUBackend()
DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8}
EXPERTS = 5


@pytest.fixture(scope="module", params=NATIVE)
def native(request: pytest.FixtureRequest) -> CPUBackend:
    """Every instruction set."""
    return backend_of(request.param)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype, steps: float = 2) -> None:
    assert found.shape == expected.shape
    error, size = (found.double() - expected.double()).abs(), expected.double().abs()
    assert (error <= steps * ROUNDING[dtype] * max(1.0, size.max().item() if len(size) else 0.0)).all()


def random_experts(dtype: torch.dtype, hidden: int, inner: int, biases: bool = False) -> ExpertWeights:
    """Of unit gain."""
    gate_up = torch.randn(EXPERTS, 2 * inner, hidden) * hidden**-0.5
    down = torch.randn(EXPERTS, hidden, inner) * inner**-0.5
    several = (Matrices(part.to(dtype)) for part in (gate_up, down))
    shapes = ((EXPERTS, 2 * inner), (EXPERTS, hidden)) if biases else ()
    return ExpertWeights(*several, *(torch.randn(shape).to(dtype) for shape in shapes))


def in_float(experts: ExpertWeights) -> ExpertWeights:
    """The same numbers in float32, not packed."""
    biases = (None if bias is None else bias.float() for bias in (experts.gate_up_bias, experts.down_bias))
    return ExpertWeights(*(Matrices(part.tensor.float()) for part in (experts.gate_up, experts.down)), *biases)


def packed(backend: CPUBackend, experts: ExpertWeights) -> ExpertWeights:
    """A copy that the backend has arranged."""
    several = [Matrices(part.tensor.clone()) for part in (experts.gate_up, experts.down)]
    for each in several:
        backend.pack(each)
    return replace(experts, gate_up=several[0], down=several[1])


def routed(tokens: int, chosen: int, among: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Distinct experts of every token, and their weights."""
    order = torch.rand(tokens, len(among)).argsort(1)[:, :chosen]
    return torch.tensor(among)[order], torch.rand(tokens, chosen)


ROUTINGS = {
    "softmax": Routing("softmax", 8),
    "softmax, as they are": Routing("softmax", 3, renormalize=False, scaling=2.0),
    "sigmoid, best pairs of groups": Routing("sigmoid", 4, num_groups=4, top_groups=2, group_score="top2", scaling=2.5),
    "softmax, best groups": Routing("softmax", 6, num_groups=8, top_groups=3),
    "more than the groups have": Routing("sigmoid", 9, num_groups=8, top_groups=1),
}


@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=ROUTINGS)
@pytest.mark.parametrize("experts", [16, 40, 512, 1040])
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
def test_tokens_find_their_experts(native: CPUBackend, routing: Routing, experts: int, biased: bool) -> None:
    bias = torch.randn(experts) if biased else None
    for tokens in (1, 70):
        logits = torch.randn(tokens, experts) * 3
        (found, weights), (expected, theirs) = (b.route(logits, bias, routing) for b in (native, PLAIN))
        assert found.dtype == torch.int64 and weights.dtype == torch.float32
        places = [ids.argsort(1) for ids in (found, expected)]
        if experts < 72 and routing.top_k == 9:  # some that are not in the best group, whichever
            assert all(len(set(row)) == 9 for row in found.tolist())
            continue
        assert torch.equal(found.gather(1, places[0]), expected.gather(1, places[1]))
        torch.testing.assert_close(weights.gather(1, places[0]), theirs.gather(1, places[1]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=ROUTINGS)
def test_experts_are_distinct_whatever_the_logits(native: CPUBackend, routing: Routing) -> None:
    logits = torch.randn(5, 48)
    logits[0], logits[1, 3:], logits[2], logits[3, ::2] = 0.0, torch.nan, -torch.inf, torch.inf
    ids, _ = native.route(logits, None, routing)
    assert all(len(set(row)) == routing.top_k and 0 <= min(row) <= max(row) < 48 for row in ids.tolist())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "swiglu_oai", "gelu"])
@pytest.mark.parametrize("biases", [False, True], ids=["no biases", "biases"])
def test_experts(native: CPUBackend, dtype: torch.dtype, activation: Activation, biases: bool) -> None:
    """Experts that nobody chooses, one that all do, more tokens than share a stretch of weights."""
    experts = random_experts(dtype, 96, 80, biases)
    arranged, exact = packed(native, experts), in_float(experts)
    assert arranged.gate_up.packed and arranged.down.packed
    for tokens, chosen, among in ((1, 3, range(5)), (7, 2, (0, 3)), (40, 1, (4,)), (250, 4, (0, 1, 2, 4))):
        x = torch.randn(tokens, 110, dtype=dtype)[:, 8:104]
        ids, weights = routed(tokens, chosen, list(among))
        found = native.moe(x, arranged, ids, weights, activation)
        assert found.dtype == dtype
        rounded_in_between = activation == "gelu"  # which is torch's
        expected = PLAIN.moe(x.float(), exact, ids, weights, activation)
        assert_near(found, expected, dtype, steps=4 if rounded_in_between else 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_gets_the_same_of_its_experts_whatever_the_others_are(native: CPUBackend, dtype: torch.dtype) -> None:
    arranged = packed(native, random_experts(dtype, 64, 96))
    x, (ids, weights) = torch.randn(60, 64, dtype=dtype), routed(60, 3, range(EXPERTS))
    whole = native.moe(x, arranged, ids, weights, "silu")
    for first, last in ((0, 1), (3, 5), (10, 27), (30, 60)):
        part = slice(first, last)
        assert torch.equal(native.moe(x[part], arranged, ids[part], weights[part], "silu"), whole[part])


def test_more_tokens_than_there_is_room_for_between_the_phases_take_turns(native: CPUBackend) -> None:
    experts = random_experts(torch.float32, 4096, 16)
    x, (ids, weights) = torch.randn(1100, 4096), routed(1100, 4, range(EXPERTS))
    assert 1100 * 4 * (4096 + 16) > 2**24
    found = native.moe(x, packed(native, experts), ids, weights, "silu")
    assert_near(found, PLAIN.moe(x, experts, ids, weights, "silu"), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("hidden", "inner"), [(64, 24), (40, 32), (64, 20), (33, 7)])
def test_experts_of_other_sizes_stay_with_torch_or_go_one_by_one(
    native: CPUBackend, dtype: torch.dtype, hidden: int, inner: int
) -> None:
    experts = random_experts(dtype, hidden, inner, biases=True)
    x, (ids, weights) = torch.randn(9, hidden, dtype=dtype), routed(9, 2, range(EXPERTS))
    found = native.moe(x, packed(native, experts), ids, weights, "silu")
    assert_near(found, PLAIN.moe(x.float(), in_float(experts), ids, weights, "silu"), dtype, steps=4)


def test_packed_experts_are_unpacked_and_strangers_refused(native: CPUBackend) -> None:
    experts = random_experts(torch.bfloat16, 64, 32)
    arranged = packed(native, experts)
    x, (ids, weights) = torch.randn(3, 64, dtype=torch.bfloat16), routed(3, 2, range(EXPERTS))
    with pytest.raises(BackendError, match="packed by another backend"):
        PLAIN.moe(x, arranged, ids, weights, "silu")
    with pytest.raises(BackendError, match=r"moe of torch.float32 \[3, 64\] with torch.bfloat16"):
        native.moe(x.float(), arranged, ids, weights, "silu")
    native.unpack(arranged.down)
    assert torch.equal(arranged.down.tensor, experts.down.tensor)
    foreign = replace(experts, gate_up=Matrices(experts.gate_up.tensor, object()), down=arranged.gate_up)
    with pytest.raises(BackendError, match="packed by another backend"):
        native.moe(x, foreign, ids, weights, "silu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "outs", "ins"), [(1, 16, 2), (16, 128, 64), (5, 80, 98), (3, 20, 32)])
def test_every_head_by_its_own_matrix(native: CPUBackend, dtype: torch.dtype, count: int, outs: int, ins: int) -> None:
    weights = torch.randn(count, outs, ins, dtype=dtype)
    arranged = Matrices(weights.clone())
    native.pack(arranged)
    assert arranged.packed == (outs % 16 == 0)
    for rows in (0, 1, 3, 17, 230):
        x = torch.randn(rows, count, ins + 10, dtype=dtype)[..., 4 : ins + 4]
        expected = PLAIN.matmul_each(x.double(), Matrices(weights.double()))
        assert_near(native.matmul_each(x, arranged), expected, dtype)
    if arranged.packed:
        with pytest.raises(BackendError, match="matmul_each of"):
            native.matmul_each(torch.randn(2, count, ins + 2, dtype=dtype), arranged)


def ragged(rows: Sequence[tuple[int, int]], page_size: int, **more: Any) -> BatchLayout:
    """Rows (slots before, tokens now) on shuffled pages."""
    needed = [-(-(start + count) // page_size) for start, count in rows]
    pages = torch.randperm(sum(needed)).tolist()
    tables = [[pages.pop() for _ in range(count)] for count in needed]
    ends = torch.tensor([0, *(count for _, count in rows)]).cumsum(0).tolist()
    starts, lens = [start for start, _ in rows], [start + count for start, count in rows]
    return BatchLayout(ends, starts, lens, [0] * ends[-1], [-1] * ends[-1], tables, page_size, **more)


def latents_of(dtype: torch.dtype, dim: int, v_dim: int, layout: BatchLayout) -> KVPool:
    name = str(dtype).removeprefix("torch.")
    group = GroupSpec(name="a", layout="mla", num_kv_heads=1, head_dim=dim, v_head_dim=v_dim, dtype=name)
    pages = sum(map(len, layout.page_tables))
    pool = PLAIN.allocate_pool([group], num_pages=pages, page_size=layout.page_size)
    pool.k[0].normal_()
    return pool


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim", "v_dim"), [(1, 32, 32), (5, 96, 64), (16, 576, 512), (100, 64, 32)])
def test_latent_attention_over_ragged_rows(
    native: CPUBackend, dtype: torch.dtype, heads: int, dim: int, v_dim: int
) -> None:
    rows = [(0, 1), (15, 1), (63, 1), (64, 1), (65, 1), (200, 1), (0, 4), (70, 5), (0, 70), (120, 9)]
    for page_size in (1, 3, 16):
        layout = ragged(rows, page_size)
        pool = latents_of(dtype, dim, v_dim, layout)
        q = torch.randn(layout.query_starts[-1], heads, 2 * dim, dtype=dtype)[..., dim:]
        exact = PLAIN.mla_attention(q.float(), pool, 0, PLAIN.plan(layout), scale=dim**-0.5)
        found = native.mla_attention(q, pool, 0, native.plan(layout), scale=dim**-0.5)
        assert_near(found, exact, dtype, steps=3)


def test_large_scores_and_values_of_other_rows_do_no_harm(native: CPUBackend) -> None:
    layout = ragged([(130, 1), (20, 7)], 4)
    pool = latents_of(torch.float32, 64, 32, layout)
    q = torch.randn(8, 16, 64) * 30
    expected = PLAIN.mla_attention(q, pool, 0, PLAIN.plan(layout), scale=1.0)
    for page in layout.page_tables[1]:
        pool.k[0][4 * page : 4 * page + 4] = torch.nan
    found = native.mla_attention(q, pool, 0, native.plan(layout), scale=1.0)
    assert_near(found[:1], expected[:1], torch.float32) if found[0].isfinite().all() else pytest.fail("NaN")
    assert found[1:].isnan().all()


def test_draft_trees_and_chosen_slots_stay_with_torch(native: CPUBackend) -> None:
    layout = ragged([(9, 4), (30, 1)], 4, parents=[[-1, 0, 0], None])
    pool = latents_of(torch.float32, 64, 32, layout)
    q = torch.randn(5, 4, 64)
    plans = native.plan(layout), PLAIN.plan(layout)
    assert torch.equal(
        *(b.mla_attention(q, pool, 0, p, scale=0.1) for b, p in zip((native, PLAIN), plans, strict=True))
    )
    chosen = torch.randint(0, 12, (5, 6))
    options: dict[str, Any] = {"scale": 0.1, "chosen": chosen}
    assert torch.equal(
        *(b.mla_attention(q, pool, 0, p, **options) for b, p in zip((native, PLAIN), plans, strict=True))
    )


def recurrent(
    dtype: torch.dtype, heads: tuple[int, int], dims: tuple[int, int], channels: int, taps: int
) -> tuple[KVPool, KVPool]:
    """Two pools with the same states."""
    states = (
        StateTensor((channels, taps - 1), str(dtype).removeprefix("torch.")),
        StateTensor((heads[1], *dims)),
    )
    group = GroupSpec(name="m", kind="state", layout="recurrent", num_layers=1, state_tensors=states)
    pools = [PLAIN.allocate_pool([group], num_pages=1, page_size=1, num_states=12) for _ in range(2)]
    for ours, theirs in zip(pools[0].states["m"][0], pools[1].states["m"][0], strict=True):
        theirs.copy_(ours.normal_())
    return pools[0], pools[1]


LENGTHS = [1, 1, 2, 3, 33, 0, 64, 1, 70]
SLOTS = [7, 0, 3, 11, 5, 1, 9, 2, 6]


def rows_of(lengths: Sequence[int], slots: Sequence[int], **more: Any) -> BatchLayout:
    states = [{"m": slot} for slot in slots]
    return ragged([(5, count) for count in lengths], 8, **{"state_slots": states, **more})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "taps"), [(16, 4), (272, 4), (528, 3), (48, 2), (24, 4), (32, 5)])
def test_convolutions(native: CPUBackend, dtype: torch.dtype, channels: int, taps: int) -> None:
    """What comes out, and the inputs that are kept, bit for bit; sizes that stay with torch too."""
    ours, theirs = recurrent(dtype, (1, 1), (16, 16), channels, taps)
    layout = rows_of(LENGTHS, SLOTS)
    x = torch.randn(sum(LENGTHS), channels + 9, dtype=dtype)[:, 9:]
    weight = torch.randn(channels, taps, dtype=dtype)
    found = native.causal_conv(x, weight, ours, "m", 0, native.plan(layout))
    assert_near(found, PLAIN.causal_conv(x, weight, theirs, "m", 0, PLAIN.plan(layout)), dtype)
    assert torch.equal(ours.states["m"][0][0], theirs.states["m"][0][0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "dims"),
    [((1, 1), (16, 16)), ((2, 6), (48, 80)), ((4, 4), (128, 128)), ((1, 2), (256, 144)), ((1, 2), (24, 20))],
)
def test_the_delta_rule(native: CPUBackend, dtype: torch.dtype, heads: tuple[int, int], dims: tuple[int, int]) -> None:
    ours, theirs = recurrent(dtype, heads, dims, 16, 4)
    layout, tokens = rows_of(LENGTHS, SLOTS), sum(LENGTHS)
    widths = [heads[0] * dims[0], heads[0] * dims[0], heads[1] * dims[1]]
    mixed = torch.randn(tokens, sum(widths), dtype=dtype)
    q, k, v = torch.split(mixed, widths, dim=1)
    parts = (q.view(tokens, heads[0], -1), k.view(tokens, heads[0], -1), v.view(tokens, heads[1], -1))
    gates = (-2 * torch.rand(tokens, heads[1]), torch.rand(tokens, heads[1]))
    found = native.gated_delta_rule(*parts, *gates, ours, "m", 0, native.plan(layout))
    expected = PLAIN.gated_delta_rule(*(p.float() for p in parts), *gates, theirs, "m", 0, PLAIN.plan(layout))
    assert_near(found, expected, dtype)
    assert_near(ours.states["m"][0][1], theirs.states["m"][0][1], torch.float32)
    untouched = [slot for slot in range(12) if slot not in SLOTS or slot == SLOTS[LENGTHS.index(0)]]
    assert torch.equal(ours.states["m"][0][1][untouched], theirs.states["m"][0][1][untouched])


def test_recurrent_rows_with_drafts_or_without_a_slot_are_refused(native: CPUBackend) -> None:
    pool, _ = recurrent(torch.float32, (1, 1), (16, 16), 16, 4)
    x, weight = torch.randn(3, 16), torch.randn(16, 4)
    drafts = rows_of([1, 2], [0, 1], parents=[None, [-1]])
    with pytest.raises(BackendError, match="cannot follow the branches of 1 drafts"):
        native.causal_conv(x, weight, pool, "m", 0, native.plan(drafts))
    with pytest.raises(BackendError, match="a row has no state slot of group 'm'"):
        native.causal_conv(x, weight, pool, "m", 0, native.plan(rows_of([3], [0], state_slots=[{}])))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 128, 20])
def test_norms_with_a_gate(native: CPUBackend, dtype: torch.dtype, size: int) -> None:
    weight = torch.randn(size)
    for tokens in (0, 1, 9, 70):
        wide = torch.randn(tokens, 3 * size + 4 + 3 * size, dtype=dtype) * 4
        x, gate = (part.view(tokens, 3, size) for part in (wide[:, : 3 * size], wide[:, 3 * size + 4 :]))
        expected = PLAIN.gated_norm(x.float(), gate.float(), weight, 1e-6)
        assert_near(native.gated_norm(x, gate, weight, 1e-6), expected, dtype, steps=1)
