"""Attention by FlashInfer gives the numbers of the specification and is told of a batch as the package wants it.

The package is a stand-in in plain torch (``flashinfer_standin``) that is as strict as its sources; on a GPU where it is
installed, the same tests run it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cuda_batches import PLAIN, Row, close, layout_of, moved, pool_of
from cuda_device import DEVICE
from flashinfer_standin import WRAPPERS, Log, refused_calls, stand_in
from torch import Tensor

from sglite.runtime.backend.base import AttentionMetadata, BatchLayout
from sglite.runtime.backend.cuda_plan import Planner, own
from sglite.runtime.backend.flashinfer import FlashInfer, Kind, Pages, Wrapper
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import GroupSpec

INSTALLED = importlib.util.find_spec("flashinfer") is not None
REAL = pytest.mark.skipif(DEVICE.type != "cuda" or not INSTALLED, reason="FlashInfer and a GPU are not there")
BATCHES: dict[str, list[Row]] = {
    "decode": [Row(0), Row(200), Row(63), Row(64)],
    "prompts": [Row(0, 7), Row(0, 130), Row(100, 20), Row(0, 1), Row(5, 0), Row(0, 0)],
    "mixed": [Row(200), Row(40, 33), Row(9), Row(90, 16)],
    "chains": [Row(150, 3, [-1, 0]), Row(80)],
}
Heads = tuple[int, int, int]
"""KV heads, heads a KV head, numbers of a head."""
USUAL: Heads = (2, 2, 64)


@pytest.fixture(params=["stand-in", pytest.param("installed", marks=[REAL, pytest.mark.gpu])])
def log(request: pytest.FixtureRequest) -> Iterator[Log | None]:
    """What is called of the stand-in; ``None``: the package itself is called."""
    torch.manual_seed(0)
    with stand_in() if request.param == "stand-in" else nullcontext() as found:
        yield found


@pytest.fixture
def flash(log: Log | None) -> FlashInfer:
    return FlashInfer(DEVICE)


def group_of(heads: Heads, window: int | None = None) -> GroupSpec:
    count, _, size = heads
    return GroupSpec(name="a", num_kv_heads=count, head_dim=size, v_head_dim=size, dtype="bfloat16", window=window)


def queries(layout: BatchLayout, heads: Heads, padding: int = 0) -> Tensor:
    """As a part of something wider."""
    count = layout.query_starts[-1] + padding
    return torch.randn(count, heads[0] * heads[1] + 2, heads[2]).to(torch.bfloat16)[:, 1:-1]


def attended(meta: AttentionMetadata, pool: KVPool, q: Tensor, window: int | None) -> Tensor:
    other = own(meta).other
    assert other is not None
    return other.attend(q.to(DEVICE), moved(pool), 0, scale=0.2, window=window)


def exact(layout: BatchLayout, pool: KVPool, q: Tensor, window: int | None) -> Tensor:
    return PLAIN.attention(q.float(), pool, 0, PLAIN.plan(layout), scale=0.2, window=window)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("window", [None, 1, 20, 1000])
def test_every_query_attends_to_what_it_sees(flash: FlashInfer, batch: str, window: int | None) -> None:
    layout = layout_of(BATCHES[batch], 16)
    pool, q = pool_of(layout, group_of(USUAL)), queries(layout, USUAL)
    meta = flash.step(Planner(DEVICE).plan(layout))
    close(attended(meta, pool, q, window), exact(layout, pool, q, window), torch.bfloat16)


@pytest.mark.parametrize("heads", [(1, 1, 128), (3, 3, 64), (2, 4, 64), (1, 5, 256), (1, 8, 128)], ids=str)
@pytest.mark.parametrize("page_size", [1, 5, 64])
def test_heads_and_pages_of_other_sizes(flash: FlashInfer, log: Log | None, heads: Heads, page_size: int) -> None:
    """Rows of one token whose KV heads are read by few are computed without tensor cores."""
    for rows in ([Row(100), Row(3)], [Row(100), Row(30, 3), Row(10, 18)]):
        layout = layout_of(rows, page_size)
        pool, q = pool_of(layout, group_of(heads)), queries(layout, heads)
        meta = flash.step(Planner(DEVICE).plan(layout))
        for window in (None, 9):
            close(attended(meta, pool, q, window), exact(layout, pool, q, window), torch.bfloat16)
    if log is not None:
        assert [made.tensor_cores for made in log.made if made.kind == "decode"] == [heads[1] > 3] * 2


def test_layers_of_a_kind_share_a_plan(flash: FlashInfer) -> None:
    """One for every window and step; a step that comes back after another is planned anew."""
    with stand_in() as log:
        flash = FlashInfer(DEVICE)
        steps = [layout_of(rows, 16) for rows in ([Row(50), Row(7)], [Row(9), Row(90)], [Row(40, 9), Row(3)])]
        pools = [pool_of(layout, group_of(USUAL)) for layout in steps]
        metas = [flash.step(Planner(DEVICE).plan(layout)) for layout in steps]
        expected = 0
        for i in (0, 1, 0, 2):
            q = queries(steps[i], USUAL)
            for window in (None, 20, None, 20):
                close(attended(metas[i], pools[i], q, window), exact(steps[i], pools[i], q, window), torch.bfloat16)
            expected += 2
            assert len(log.plans) == expected and len(log.runs) == 2 * expected
        assert len(log.made) == 4
        assert {kind for kind, _ in log.plans} == {"decode", "ragged"}


def test_a_plan_waits_for_the_copy_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashInfer writes both to the same pinned memory, and starts a copy of it."""
    said: list[str] = []

    class Made:
        def plan(self, *arrays: Tensor, **options: object) -> None:
            said.append(f"plan {arrays[0]}")

    class Event:
        def record(self, stream: object) -> None:
            said.append(f"copied on {stream}")

        def synchronize(self) -> None:
            said.append("wait")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"{device}'s")
    wrapper = Wrapper(Made(), torch.device("cuda", 0))
    kind = Kind(4, 2, 64, torch.bfloat16, 16, False, 0.1, None)
    for number in ("one", "two", "three"):
        wrapper.plan(number, number, kind=kind)  # type: ignore[arg-type]
        assert wrapper.planned_for == number
    one, two, three = ([f"plan {number}", "copied on cuda:0's"] for number in ("one", "two", "three"))
    assert said == [*one, "wait", *two, "wait", *three]


def test_a_plan_that_fails_leaves_none() -> None:
    class Made:
        def plan(self, *arrays: Tensor, **options: object) -> None:
            if len(arrays) == 5:
                raise ValueError("no")

    wrapper, kind = Wrapper(Made(), torch.device("cpu")), Kind(4, 2, 64, torch.bfloat16, 16, False, 0.1, None)
    wrapper.plan("batch", kind=kind)
    with pytest.raises(ValueError, match="no"):
        wrapper.plan("other", torch.zeros(1), kind=kind)
    assert wrapper.planned_for is None


def framed(layout: BatchLayout, window: int) -> BatchLayout:
    """Frames are other pages; there are none for what no query sees any more."""
    tables = [
        [-1 if (i + 1) * layout.page_size <= start - window + 1 else page + 1 for i, page in enumerate(table)]
        for table, start in zip(layout.page_tables, layout.starts, strict=True)
    ]
    return replace(layout, frame_mapping=[-1] * len(layout.slot_mapping), frame_tables=tables)


@pytest.mark.parametrize("rows", [[Row(100), Row(3), Row(61)], [Row(100, 7), Row(3), Row(0, 30)]], ids=["one", "many"])
def test_frames_are_read_where_they_are(flash: FlashInfer, rows: list[Row]) -> None:
    window = 18
    layout = framed(layout_of(rows, 4), window)
    inside = replace(layout, page_tables=layout.frame_tables or [], frame_tables=None, frame_mapping=None)
    pool = replace(pool_of(layout, group_of(USUAL, window), num_frames=99, tables=layout.frame_tables))
    meta, q = flash.step(Planner(DEVICE).plan(layout)), queries(layout, USUAL)
    seen = Pages.of(own(meta).within(True).rows, window)
    assert seen.chosen is not None and min(seen.chosen) > 0 and len(seen.chosen) == seen.starts[-1]
    plain = PLAIN.attention(q.float(), pool, 0, PLAIN.plan(layout), scale=0.2, window=window)
    assert inside.page_tables[0][0] == -1
    close(attended(meta, pool, q, window), plain, torch.bfloat16)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("heads", [USUAL, (1, 4, 64)], ids=str)
def test_a_graphs_batch_is_planned_when_it_is_filled(flash: FlashInfer, heads: Heads, window: int | None) -> None:
    """Rows that are not there give zeros, and nothing of an earlier step is left."""
    batch = flash.fixed(Planner(DEVICE).fixed(6, 30, 4))
    meta = batch.metas[0]
    first = layout_of([Row(2)], 4)
    attended(meta, pool_of(first, group_of(heads)), queries(first, heads, 5), window)  # before it is captured
    for lengths in ([9, 100, 3, 40], [7], [], [119] * 6):
        layout = layout_of([Row(n) for n in lengths], 4)
        pool, q = pool_of(layout, group_of(heads)), queries(layout, heads, 6 - len(lengths))
        assert batch.fill(layout) == 0
        found = attended(meta, pool, q, window)
        assert (found[len(lengths) :] == 0).all()
        if lengths:
            close(found[: len(lengths)], exact(layout, pool, q[: len(lengths)], window), torch.bfloat16)


def test_a_graphs_buffers_stay_where_they_are() -> None:
    """A plan a step for each kind of layer, in the buffers of the wrapper that was captured."""
    with stand_in() as log:
        flash = FlashInfer(DEVICE)
        batch = flash.fixed(Planner(DEVICE).fixed(3, 20, 4, frames=True))
        group = group_of(USUAL, 9)
        seen = []
        for step, lengths in enumerate(([9, 40], [17], [60, 3, 30])):
            layout = framed(layout_of([Row(n) for n in lengths], 4), 9)
            batch.fill(layout)
            q = queries(layout, USUAL, 3 - len(lengths))
            for pool, window in (
                (pool_of(layout, group_of(USUAL)), None),
                (pool_of(layout, group, num_frames=99, tables=layout.frame_tables), 9),
            ):
                found = attended(batch.metas[0], pool, q, window)
                close(found[: len(lengths)], exact(layout, pool, q[: len(lengths)], window), torch.bfloat16)
            assert len(log.made) == 2 and len(log.plans) == 2 * (step + 1)
            seen.append([[buffer.data_ptr() for buffer in made.buffers.values()] for made in log.made])
            assert seen[step] == seen[0]
        assert all(plan["graph"] and plan["rows"] == 3 for _, plan in log.plans)


def test_shared_pages_are_left_to_the_graph_that_reads_them_once(flash: FlashInfer) -> None:
    batch = flash.fixed(Planner(DEVICE).fixed(8, 300, 16))
    assert [own(meta).other is None for meta in batch.metas] == [False, True]
    assert batch.fill(layout_of([Row(4100, shared=256)] * 4, 16)) == 1
    assert batch.fill(layout_of([Row(70)] * 3, 16)) == 0


@pytest.mark.parametrize("window", [None, 1, 4, 5, 17])
def test_no_more_pages_are_named_than_are_seen(window: int | None) -> None:
    layout = layout_of([Row(0), Row(30), Row(31, 6), Row(64, 0), Row(0, 9)], 4)
    pages = Pages.of(Planner(DEVICE).plan(layout).rows, window)
    for r, (start, end) in enumerate(zip(layout.starts, layout.seq_lens, strict=True)):
        first = 0 if window is None else max(0, start - window + 1) // 4
        table = list(layout.page_tables[r])[first:]
        assert pages.starts[r + 1] - pages.starts[r] == len(table)
        assert pages.chosen is None or list(pages.chosen[pages.starts[r] : pages.starts[r + 1]]) == table
        assert not table or 4 * (first + len(table) - 1) + pages.last[r] == end


@pytest.mark.skipif(not INSTALLED, reason="FlashInfer is not there")
def test_the_installed_package_takes_the_calls() -> None:
    """By the signatures in its sources, without importing it."""
    spec = importlib.util.find_spec("flashinfer")
    assert spec is not None and spec.origin is not None
    with stand_in() as log:
        flash = FlashInfer(DEVICE)
        layout = layout_of([Row(5), Row(9)], 16)
        pool, q = pool_of(layout, group_of(USUAL)), queries(layout, USUAL)
        ragged = layout_of([Row(5, 3)], 16)
        attended(flash.step(Planner(DEVICE).plan(layout)), pool, q, 3)
        attended(flash.fixed(Planner(DEVICE).fixed(2, 4, 16)).metas[0], pool, q, None)
        attended(flash.step(Planner(DEVICE).plan(ragged)), pool_of(ragged, group_of(USUAL)), queries(ragged, USUAL), 3)
    assert {call[:2] for call in log.calls} == {(w.__name__, name) for w in WRAPPERS for name in ("plan", "run")}
    assert refused_calls(Path(spec.origin).parent, log) == []
