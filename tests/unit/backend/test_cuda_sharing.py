"""Which steps read once what their rows share: the rule that times lead to, and that plans follow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cuda_batches import Row, layout_of
from cuda_device import DEVICE
from flashinfer_standin import stand_in
from hypothesis import given
from hypothesis import strategies as st

from sglite.runtime.backend import cuda, sharing_choice
from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cuda import CUDABackend
from sglite.runtime.backend.cuda_plan import CUDAMetadata, own
from sglite.runtime.backend.select import backend_for
from sglite.runtime.backend.sharing import ESTIMATED, Point, Sharing, least_saving, never
from sglite.runtime.backend.sharing_choice import OWN
from sglite.runtime.backend.workload import Workload
from sglite.runtime.protocol import GroupSpec

GROUP: dict[str, Any] = {"name": "a", "num_kv_heads": 8, "head_dim": 128, "v_head_dim": 128, "dtype": "bfloat16"}
PAGE = 16
pretended = pytest.mark.skipif(DEVICE.type != "cpu", reason="times are pretended, kernels are not run")


def workload(*groups: GroupSpec, **changes: Any) -> Workload:
    model: dict[str, Any] = {"num_heads": 32, "dtype": torch.bfloat16, "page_size": PAGE, "tokens": 512}
    model |= {"rows": 64, "context": 40960, **changes}
    return Workload(groups=groups or (GroupSpec(**GROUP),), **model)


def points(*gains: float) -> list[Point]:
    """What saves 100, 200, 400 ... slots, and by how much sharing is quicker."""
    return [Point(100 << i, 10.0 + gain, 10.0) for i, gain in enumerate(gains)]


@pytest.mark.parametrize(
    ("gains", "least"),
    [
        ((-3, -1, 1, 5), 400),
        ((1, 2, 3), 100),
        ((-1, -2, -3), None),
        ((0, 0, 0), None),
        ((), None),
        ((-3, 0.2, -1, 1, 5), 800),  # quicker once by chance
        ((-3, 1, -0.1, 2, 5), 200),  # slower once by chance
    ],
)
def test_steps_share_from_where_it_pays(gains: tuple[float, ...], least: int | None) -> None:
    assert least_saving(points(*gains)) == least
    assert least_saving(points(*gains)[::-1]) == least


@given(st.lists(st.integers(-9, 9)))
def test_no_other_rule_is_quicker_over_what_was_measured(gains: list[int]) -> None:
    measured = points(*gains)

    def seconds(least: float) -> float:
        return sum(point.once if point.saved >= least else point.apart for point in measured)

    least = least_saving(measured)
    best = min(seconds(least) for least in [*(point.saved for point in measured), float("inf")])
    assert seconds(float("inf") if least is None else least) == best


def test_a_step_goes_by_the_next_larger_one_that_was_measured() -> None:
    rule = Sharing(((2, 1000), (8, None), (32, 4000)), "measured")
    assert [rule.pays(rows, 999) for rows in (1, 2, 8, 32)] == [False] * 4
    assert [rule.pays(rows, 1000) for rows in (1, 2, 3)] == [True, True, False]
    assert [rule.pays(rows, 10**9) for rows in (3, 8, 9, 32, 1000)] == [False, False, True, True, True]
    assert [rule.pays(rows, 4000 - less) for rows in (9, 1000) for less in (0, 1)] == [True, False] * 2
    assert [rule.ever(rows) for rows in (2, 5, 500)] == [True, False, True]
    assert str(rule).endswith("a step 1000 slots at up to 2 rows, never at up to 8 rows, 4000 slots above (measured)")
    assert str(ESTIMATED) == "shared pages are read once where that saves a step 8192 slots (an estimate)"
    for nothing in (never("why"), Sharing(((2, None), (8, None)), "why")):
        assert str(nothing) == "shared pages are read by every row (why)" and not nothing.pays(8, 10**9)


class Pretended:
    """A device on which attention takes as long as what it reads, and sharing more by the step's rows and the layer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: Callable[[int, int], float]) -> None:
        self.cost = cost
        self.runs: list[tuple[bool, int, int]] = []
        """What was attended: whether shared pages were read once, rows, slots that they share."""
        monkeypatch.setattr(sharing_choice, "DEVICES", ("cpu",))
        monkeypatch.setattr(cuda, "elapsed_on", lambda device: self.timed)
        monkeypatch.setattr(CUDABackend, "attention", self.attention)
        self.now = 0.0

    def attention(self, q: torch.Tensor, pool: Any, layer: int, meta: CUDAMetadata, **_: Any) -> torch.Tensor:
        rows, shared = meta.num_rows, int(meta.seq_lens[0]) - OWN
        once = meta.shared is not None
        if meta.shared is not None:
            assert meta.shared.tiles.tiles[0, 3] == shared - 1, "the step that is timed shares all of it"
        self.runs.append((once, rows, shared))
        read = shared + rows * OWN if once else rows * (shared + OWN)
        self.now += read + (self.cost(rows, layer) if once else 0)
        return q

    def timed(self, run: Callable[[], None]) -> float:
        before = self.now
        run()
        return self.now - before


def shares(backend: CUDABackend, rows: int, pages: int) -> tuple[bool, bool]:
    """Whether a step of so many rows that share so many pages reads them once, by itself and in a graph."""
    layout = layout_of([Row(pages * PAGE + 5, shared=pages)] * rows, PAGE)
    pool = backend.allocate_pool([GroupSpec(**{**GROUP, "num_kv_heads": 1})], num_pages=1, page_size=PAGE)
    batch = backend.fixed_batch(rows, pool, pages + 1)
    assert batch is not None
    return own(backend.plan(layout)).shared is not None, batch.fill(layout) == 1


@pretended
def test_the_rule_is_what_the_device_says_and_steps_follow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the least saving that was measured and paid, for every number of rows; eagerly and in graphs alike."""
    device = Pretended(monkeypatch, lambda rows, _: {2: 3000.0, 8: 100.0, 32: 2500.5, 64: 1e9}[rows])
    backend = CUDABackend("triton")
    backend.settle(workload())
    saved = {
        size: sorted({(size - 1) * shared for _, rows, shared in device.runs if rows == size}) for size in (2, 8, 32)
    }
    assert {rows for _, rows, _ in device.runs} == {2, 8, 32, 64}
    assert saved[2] == [256 << i for i in range(8)], "of 4 KiB each, from 1 MiB to 128"
    least = {2: 4096, 8: saved[8][0], 32: next(slots for slots in saved[32] if slots > 2500.5)}
    expected = Sharing((*least.items(), (64, None)), "measured")
    said = (
        f"4096 slots at up to 2 rows, {least[8]} slots at up to 8 rows, {least[32]} slots at up to 32 rows, never above"
    )
    assert str(expected) in backend.describe() and said in backend.describe()
    for rows, slots in least.items():
        pages = slots // (rows - 1) // PAGE
        assert shares(backend, rows, pages) == (True, True)
        assert shares(backend, rows, pages - 1) == (False, False)
    assert shares(backend, 64, 300) == (False, False)
    pool = backend.allocate_pool([GroupSpec(**GROUP)], num_pages=1, page_size=PAGE)
    kinds = [backend.fixed_batch(rows, pool, 4) for rows in (1, 2, 64)]
    assert [len(batch.metas) for batch in kinds if batch] == [1, 2, 1], "a graph more only where it may be run"


@pretended
def test_what_is_timed_is_what_the_model_may_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every length a few times, both ways in turns; rows no longer than a context, no more of them than may run."""
    device = Pretended(monkeypatch, lambda *_: 0.0)
    CUDABackend("triton").settle(workload(rows=5, context=1000))
    assert {rows for _, rows, _ in device.runs} == {2, 5}
    assert max(shared + OWN for _, _, shared in device.runs) <= 1000
    assert len(device.runs) < 20 * 8 * 2 * 2 and 2 * sum(once for once, _, _ in device.runs) == len(device.runs)
    for changes, said in (
        ({"rows": 1}, "rows are too few or too short"),
        ({"context": 70}, "rows are too few or too short"),
        ({"groups": (GroupSpec(**{**GROUP, "window": 128}),)}, "no layer can read them once"),
        ({"groups": (GroupSpec(**{**GROUP, "layout": "mla"}),)}, "no layer can read them once"),
    ):
        backend, before = CUDABackend("triton"), len(device.runs)
        backend.settle(workload(*changes.pop("groups", ()), **changes))
        assert f"shared pages are read by every row ({said})" in backend.describe() and len(device.runs) == before


@pretended
def test_every_kind_of_layer_counts_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three layers of one kind in which sharing costs little and one in which it costs much: 12,000 for four layers."""
    Pretended(monkeypatch, lambda rows, layer: (1000.0, 9000.0)[layer])
    backend = CUDABackend("triton")
    kinds = [GroupSpec(**{**GROUP, "name": name, "num_layers": layers}) for name, layers in (("a", 3), ("b", 1))]
    backend.settle(workload(*kinds, GroupSpec(**{**GROUP, "name": "w", "window": 128}), rows=2))
    assert "once where that saves a step 4096 slots (measured)" in backend.describe()


@pretended
def test_without_memory_to_measure_the_estimate_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 128.00 MiB")

    Pretended(monkeypatch, lambda *_: 0.0)
    monkeypatch.setattr(CUDABackend, "allocate_pool", full)
    backend = CUDABackend("triton")
    backend.settle(workload())
    assert "saves a step 8192 slots (an estimate: there is no memory to measure)" in backend.describe()


@pretended
def test_sharing_is_compared_with_whoever_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashInfer, where it decodes: what it is given is not shared, and it is left alone with all of it if asked to."""
    with stand_in() as log:
        clock: dict[str, Any] = {"runs": 0, "theirs": 0}

        def timed(run: Callable[[], None]) -> float:
            before = len(log.runs)
            run()
            theirs = len(log.runs) > before
            clock["theirs"] += theirs
            return 1.0 if theirs else 2.0

        monkeypatch.setattr(sharing_choice, "DEVICES", ("cpu",))
        monkeypatch.setattr(sharing_choice, "SAVED", (2**12,))
        monkeypatch.setattr(cuda, "elapsed_on", lambda device: timed)
        small = GroupSpec(**{**GROUP, "num_kv_heads": 1, "head_dim": 64, "v_head_dim": 64})
        model = workload(small, num_heads=1, rows=2, tokens=4, context=128)
        backend = CUDABackend("auto")
        backend.settle(model)
        assert "decoding flashinfer" in backend.describe() and "by every row (measured)" in backend.describe()
        assert clock["theirs"] == 3 * 5
        alone = CUDABackend("flashinfer")
        alone.settle(model)
        assert "by every row (attention_backend='flashinfer')" in alone.describe()


@pretended
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"cascade": "never"}, "by every row (cascade_attention)"),
        ({"cascade": "512"}, "once where that saves a step 512 slots (cascade_attention)"),
        ({"deterministic": True}, "by every row (deterministic)"),
        ({"deterministic": True, "cascade": "never"}, "by every row (deterministic)"),
    ],
)
def test_what_is_fixed_is_not_measured(monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], said: str) -> None:
    device = Pretended(monkeypatch, lambda *_: 0.0)
    backend = backend_for("cuda", **asked)
    assert isinstance(backend, CUDABackend)
    backend.settle(workload())
    assert said in backend.describe() and device.runs == []
    assert shares(backend, 3, 16) == ((True, True) if asked.get("cascade") == "512" else (False, False))
    assert shares(backend, 2, 31) == (False, False)


@pretended
def test_nothing_is_measured_in_the_interpreter() -> None:
    backend = CUDABackend()
    backend.settle(workload())
    assert str(ESTIMATED) in backend.describe()
    assert shares(backend, 2, 512) == (True, True) and shares(backend, 2, 511) == (False, False)


@pytest.mark.parametrize(
    ("asked", "other"),
    [({"deterministic": True}, "enable_deterministic_inference=True"), ({"attention": "flashinfer"}, "flashinfer")],
)
def test_a_saving_is_refused_where_nothing_is_shared(asked: dict[str, Any], other: str) -> None:
    with pytest.raises(BackendError, match=f"cascade_attention='512': .*{other}'? shares nothing; leave one of them"):
        backend_for("cuda", cascade="512", **asked)
