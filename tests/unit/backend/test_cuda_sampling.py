"""Sampling on the GPU: the token is exactly the one that ``cpu_sample`` defines, given the weights.

What can differ is ``exp`` in its last place. So it is shown in three steps: weights are those of the host within
2**-22; the definition, written down once more with whole numbers (``token_of``), gives what ``draw`` gives when it has
the host's weights; and what the device draws is what it gives with the device's.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import triton
import triton.language as tl
from cuda_device import DEVICE
from torch import Tensor

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cpu_sample import UNIT, _weight_at, draw
from sglite.runtime.backend.draws import Draws, Sampled
from sglite.runtime.backend.kernels.drawing import weight_of
from sglite.runtime.backend.kernels.sampling import MAX_VOCAB, TILE, on_device, sample
from sglite.runtime.sample.draw import uniform

INF = torch.inf
MIXES = [*itertools.product((1.0, 0.6, 1.7), (0, 1, 7, 300), (1.0, 0.9, 0.3), (0.0, 0.1))]
EDGES = [*itertools.product((0.01, 40.0), (0, 2, 10**6), (1.0, 0.999, 1e-5), (0.0, 1.0))]


Mix = tuple[float, int, float, float]
"""Temperature, top-k, top-p, min-p."""


@triton.jit
def _weights(distances, weights, n, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(weights + index, weight_of(tl.load(distances + index, mask=index < n, other=0.0)), mask=index < n)


def device_weights(distances: Tensor) -> Tensor:
    """Of the device's arithmetic, on the host."""
    flat = distances.contiguous().view(-1).to(DEVICE)
    found = torch.empty(len(flat), dtype=torch.int64, device=DEVICE)
    _weights[(triton.cdiv(len(flat), 4096),)](flat, found, len(flat), BLOCK=4096, enable_fp_fusion=False)
    return found.cpu().view(distances.shape)


def distances(logits: Tensor, temperatures: Tensor) -> Tensor:
    return (logits.amax(1, keepdim=True) - logits) / temperatures.clamp(min=1e-6).unsqueeze(1)


def token_of(logits: Tensor, weights: Tensor, t: float, k: int, p: float, m: float, u: float) -> int:
    """The definition: logits and whole-number weights [V] of one row, and the row's numbers."""
    best = int((logits == logits.max()).nonzero()[0]) if not logits.max().isnan() else 0
    if t == 0.0 or not logits.max().isfinite():
        return best
    order = [*range(len(logits))]
    if k > 0 or p < 1.0:
        order = torch.sort(logits, descending=True, stable=True).indices.tolist()[: k or None]
    own = weights.tolist()
    kept, before, total = [], 0, sum(own[i] for i in order)
    reach = min(math.ceil(total * p), total) if p < 1.0 else total
    for i in order:
        if before < reach and own[i] >= math.ceil(m * UNIT):
            kept.append(i)
        before += own[i]
    total = sum(own[i] for i in kept)
    number, before = min(math.floor(u * total), total - 1), 0
    for i in kept:
        before += own[i]
        if before > number:
            return i
    raise AssertionError("nothing kept")


def draws_of(mixes: list[Mix], seed: int = 5) -> Draws:
    t, k, p, m = zip(*mixes, strict=True)
    uniforms = torch.tensor([uniform(seed, place, 0) for place in range(len(mixes))], dtype=torch.float64)
    shares, least = torch.tensor(p, dtype=torch.float64), torch.tensor(m, dtype=torch.float64)
    return Draws(torch.tensor(t), torch.tensor(k, dtype=torch.int32), shares, least, uniforms)


def parts(draws: Draws) -> tuple[Tensor, ...]:
    return draws.temperatures, draws.top_k, draws.top_p, draws.min_p, draws.uniforms


def rows_of(draws: Draws, rows: slice) -> Draws:
    return Draws(*(part[rows] for part in parts(draws)))


def expected(logits: Tensor, draws: Draws, weights: Tensor) -> list[int]:
    return [token_of(*row) for row in zip(logits, weights, *(part.tolist() for part in parts(draws)), strict=True)]


def sampled(logits: Tensor, draws: Draws, bitmask: Tensor | None = None, **known: bool) -> Sampled:
    mask = None if bitmask is None else bitmask.to(DEVICE)
    found = sample(logits.clone().to(DEVICE), on_device(draws, DEVICE), mask, **known)
    return Sampled(*(part.cpu() for part in found))


def assert_drawn(logits: Tensor, mixes: list[Mix]) -> list[int]:
    draws = draws_of(mixes)
    found = sampled(logits, draws).ids.tolist()
    assert found == expected(logits, draws, device_weights(distances(logits, draws.temperatures)))
    return found


def test_weights_are_those_of_the_host() -> None:
    """All the way down to nothing, closely by 0 and by the halves of powers of 2, where the reduction changes."""
    steps = torch.arange(0, 28, 0.0003)
    halves = (torch.arange(41) + 0.5) * math.log(2)
    near = torch.cat([halves * (1 + place * 2**-24) for place in range(-40, 41)])
    x = torch.cat((steps, near, torch.logspace(-38, 0, 500), torch.tensor([0.0, 27.0, 28.0, 90.0, INF, torch.nan])))
    found, host = device_weights(x), _weight_at(x.nan_to_num(nan=INF))
    assert (found - host).abs().le(host * 2.0**-22 + 1).all()
    assert found[-6] == UNIT == found.max() and not found[-4:].any() and found.min() == 0


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_the_definition_with_the_weights_of_the_host_is_that_of_the_host(ties: bool) -> None:
    torch.manual_seed(int(ties))
    logits = torch.randn(3 * len(MIXES), 500) * 3
    logits = logits.round() if ties else logits
    draws = draws_of(MIXES * 3)
    weights = _weight_at(distances(logits, draws.temperatures))
    assert draw(logits, draws).tolist() == expected(logits, draws, weights)


ALL = pytest.mark.slow


@pytest.mark.parametrize("mixes", [MIXES[::5], pytest.param(MIXES, marks=ALL)], ids=["some", "all"])
def test_tokens_are_those_of_the_definition(mixes: list[Mix]) -> None:
    """Half of the rows have many equal logits, a third has many that are -inf."""
    torch.manual_seed(1)
    logits = torch.randn(len(mixes), 700) * 3
    logits[::2] = (logits[::2] * 2).round() / 2
    logits[:, 100:130] = -0.0
    logits[:, 130:140] = 0.0
    logits[::3, 300:] = -INF
    assert len(set(assert_drawn(logits, mixes))) > len(mixes) / 4


@pytest.mark.parametrize("mixes", [MIXES[::17], pytest.param(MIXES[::5], marks=ALL)], ids=["some", "more"])
def test_rows_of_several_tiles(mixes: list[Mix]) -> None:
    torch.manual_seed(3)
    logits = torch.randn(len(mixes), 2 * TILE + 2077) * 2.5
    logits[::2] = logits[::2].bfloat16().float()
    assert len({token // TILE for token in assert_drawn(logits, mixes)}) > 1


@pytest.mark.parametrize("mixes", [EDGES[::5], pytest.param(EDGES, marks=ALL)], ids=["some", "all"])
def test_extreme_numbers(mixes: list[Mix]) -> None:
    torch.manual_seed(4)
    assert_drawn(torch.randn(len(mixes), 300) * 10, mixes)


LEVEL = [(1.0, 0, 0.7, 0.0), (1.0, 600, 1.0, 0.0), (2.0, 900, 0.5, 0.5), (1e6, 0, 0.3, 0.0)]


@pytest.mark.parametrize("step", [0.0, 2.0**-22], ids=["equal", "nearly"])
@pytest.mark.parametrize("width", [1100, pytest.param(TILE + 20, marks=ALL)])
def test_rows_of_equal_tokens(width: int, step: float) -> None:
    """A piece is the whole row then; or logits differ in a last place."""
    assert_drawn((3.0 + torch.arange(width) % 7 * step).repeat(2, 1), LEVEL[:2] if step else LEVEL[2:])


def test_greedy_rows_and_peaks() -> None:
    torch.manual_seed(5)
    logits = torch.randn(6, TILE + 10).bfloat16().float()
    mixes = [(0.0, 5, 0.5, 0.1), (1.0, 0, 1.0, 0.0)] * 3
    found = sampled(logits, draws_of(mixes))
    assert found.ids[::2].tolist() == [int((row == row.max()).nonzero()[0]) for row in logits[::2]]
    assert torch.equal(found.peaks, logits.amax(1)) and torch.equal(found.left, found.peaks)
    assert found.ids.dtype == torch.int64 and found.peaks.dtype == found.left.dtype == torch.float32


def masks(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Words, which end before the vocabulary, and the ids that they allow [rows, width]."""
    words = torch.randint(-(2**31), 2**31, (rows, width // 32), dtype=torch.int64).to(torch.int32)
    bits = (words.unsqueeze(2) >> torch.arange(32, dtype=torch.int32)) & 1
    return words, torch.nn.functional.pad(bits.flatten(1).bool(), (0, width - width // 32 * 32))


def test_masks_come_before_anything_is_drawn() -> None:
    torch.manual_seed(6)
    mixes = MIXES[::10]
    logits = torch.randn(len(mixes), 1010) * 2
    words, left = masks(*logits.shape)
    words[0], left[0, :992] = -1, True
    words[1], left[1] = 0, False
    words[2, 1:], left[2, 32:] = 0, False
    masked = logits.masked_fill(~left, -INF)
    draws = draws_of(mixes)
    found = sampled(logits, draws, words)
    assert torch.equal(found.peaks, logits.amax(1)) and torch.equal(found.left, masked.amax(1))
    weights = device_weights(distances(masked, draws.temperatures))
    drawn, wanted = found.ids.tolist(), expected(masked, draws, weights)
    assert drawn[0] == wanted[0] and drawn[2:] == wanted[2:] and found.left[1] == -INF


def test_rows_that_cannot_be_drawn_from_say_so_and_leave_the_others_alone() -> None:
    torch.manual_seed(7)
    several = [(1.0, 0, 1.0, 0.0), (1.0, 5, 1.0, 0.0), (1.0, 0, 0.5, 0.1), (0.0, 0, 1.0, 0.0)]
    logits = torch.randn(16, 90)
    logits[0:4, 40], logits[4:8, 50], logits[8:12] = torch.nan, INF, -INF
    draws = draws_of(several * 4)
    found = sampled(logits, draws)
    assert found.peaks.isnan().tolist() == [True] * 4 + [False] * 12
    assert found.peaks[4:12].tolist() == found.left[4:12].tolist() == [INF] * 4 + [-INF] * 4
    assert ((found.ids >= 0) & (found.ids < 90)).all()
    wanted = expected(
        logits[12:], draws_part(draws, 12), device_weights(distances(logits[12:], draws.temperatures[12:]))
    )
    assert found.ids[12:].tolist() == wanted


def draws_part(draws: Draws, first: int) -> Draws:
    numbers = (draws.temperatures, draws.top_k, draws.top_p, draws.min_p, draws.uniforms)
    return Draws(*(part[first:] for part in numbers))


def test_what_is_masked_may_be_anything() -> None:
    logits = torch.zeros(2, 64)
    logits[0, 3], logits[1, 3] = torch.nan, INF
    words = torch.tensor([[~(1 << 3), 0]] * 2, dtype=torch.int32)
    found = sampled(logits, draws_of([(1.0, 0, 0.9, 0.0), (1.0, 0, 1.0, 0.0)]), words)
    assert found.peaks[0].isnan() and found.peaks[1] == INF and found.left.tolist() == [0.0, 0.0]
    assert (found.ids < 32).all() and (found.ids != 3).all()


def test_a_row_is_drawn_as_it_is_alone() -> None:
    torch.manual_seed(8)
    mixes = [*MIXES[3::27], (0.0, 0, 1.0, 0.0)]
    logits, draws = torch.randn(len(mixes), 600) * 2, draws_of(mixes)
    whole = sampled(logits, draws).ids.tolist()
    several = (slice(i, i + 1) for i in range(len(mixes)))
    assert whole == [sampled(logits[one], rows_of(draws, one)).ids.item() for one in several]


def test_what_is_known_of_all_rows_changes_nothing() -> None:
    torch.manual_seed(9)
    logits = torch.randn(8, 500)
    plain = draws_of([(2.0, 0, 1.0, 0.0), (2.0, 0, 1.0, 0.2), (0.0, 0, 1.0, 0.0), (2.0, 0, 1.0, 0.4)] * 2)
    greedy = draws_of([(0.0, 3, 0.5, 0.0)] * 8)
    for draws, known in ((plain, {"searching": False}), (greedy, {"drawing": False})):
        found, wanted = sampled(logits, draws, **known), sampled(logits, draws)
        assert all(map(torch.equal, found, wanted))
        assert found.ids.tolist() == expected(logits, draws, device_weights(distances(logits, draws.temperatures)))


def test_numbers_go_to_the_device_as_they_are() -> None:
    draws = draws_of(MIXES[:5])
    moved = on_device(draws, DEVICE)
    for there, here in zip(parts(moved), parts(draws), strict=True):
        assert there.device.type == DEVICE.type and there.dtype == here.dtype and torch.equal(there.cpu(), here)


def test_no_rows_and_what_is_refused() -> None:
    nobody = rows_of(draws_of(MIXES[:1]), slice(0))
    assert sample(torch.zeros(0, 40, device=DEVICE), nobody).ids.shape == (0,)
    with pytest.raises(BackendError, match=f"at most {MAX_VOCAB}"):
        sample(torch.zeros(0, MAX_VOCAB + 1, device=DEVICE), nobody)
    with pytest.raises(BackendError, match=r"float16 with strides \(40, 1\)"):
        sample(torch.zeros(0, 40, device=DEVICE).half(), nobody)
    with pytest.raises(BackendError, match=r"strides \(1, 3\); give torch.float32 with dense rows"):
        sample(torch.zeros(40, 3, device=DEVICE).T, nobody)
    with pytest.raises(BackendError, match="for 0 rows of logits"):
        sample(torch.zeros(0, 40, device=DEVICE), nobody, torch.zeros(1, 2, dtype=torch.int32, device=DEVICE))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_tokens_of_a_whole_vocabulary(seed: int) -> None:
    torch.manual_seed(seed)
    mixes = MIXES[seed::12] + EDGES[seed::12]
    logits = torch.randn(len(mixes), 151_936) * 2.5
    logits[::2] = logits[::2].bfloat16().float()
    assert_drawn(logits, mixes)
