"""Decoding steps run in the smallest graph that has room for them, with the results of a step of their own size."""

from __future__ import annotations

import pytest
import torch
from staged_backend import StagedBackend
from tiny_models import make_checkpoint

from sglite.runtime.backend.base import BatchLayout, ForwardContext
from sglite.runtime.executor.graphs import DecodeGraphs
from sglite.runtime.model.loader import LoadedModel, load_model

PAGES = 12


@pytest.fixture(scope="module")
def backend() -> StagedBackend:
    return StagedBackend()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, backend: StagedBackend) -> LoadedModel:
    folder = make_checkpoint(tmp_path_factory.mktemp("graphs") / "model")
    return load_model(folder, backend=backend, dtype="float32")


def decoding(rows: int, tokens: int = 1) -> BatchLayout:
    """Row r has r + 1 tokens and computes the last of them, in page r; with ``tokens`` as many more in the last row."""
    starts = list(range(rows))
    counts = [1] * (rows - 1) + [tokens]
    positions = [s + i for s, count in zip(starts, counts, strict=True) for i in range(count)]
    slots = [row * 16 + s + i for row, (s, count) in enumerate(zip(starts, counts, strict=True)) for i in range(count)]
    return BatchLayout(
        query_starts=[0, *torch.tensor(counts).cumsum(0).tolist()],
        starts=starts,
        seq_lens=[s + count for s, count in zip(starts, counts, strict=True)],
        positions=positions,
        slot_mapping=slots,
        page_tables=[[row] for row in range(rows)],
        page_size=16,
    )


@torch.inference_mode()
def test_a_graph_gives_what_a_step_of_its_own_size_gives(loaded: LoadedModel, backend: StagedBackend) -> None:
    pool, plain = (backend.allocate_pool(loaded.groups, num_pages=PAGES, page_size=16) for _ in range(2))
    for of in (pool, plain):
        for tensor in of.paged(False):
            tensor.normal_(generator=torch.Generator().manual_seed(1))
    before = backend.captured
    graphs = DecodeGraphs(loaded.model, backend, pool, (1, 2, 8), 1)
    assert graphs.sizes == (1, 2, 8) and backend.captured - before == 3
    for of, expected in zip(pool.paged(False), plain.paged(False), strict=True):
        assert torch.equal(of, expected), "capturing stores nothing"
    for rows in (1, 2, 3, 8, 5):
        layout = decoding(rows)
        ids, positions = torch.arange(40, 40 + rows), torch.tensor(layout.positions)
        found = graphs.forward(layout, ids, positions).clone()
        context = ForwardContext(backend, backend.plan(layout), plain)
        torch.testing.assert_close(found, loaded.model.forward(ids, positions, context), rtol=1e-5, atol=1e-5)
        for of, expected in zip(pool.paged(False), plain.paged(False), strict=True):
            torch.testing.assert_close(of, expected, rtol=1e-5, atol=1e-5)
    assert graphs.replays == 5


def test_what_no_graph_has_room_for_is_left_alone(loaded: LoadedModel, backend: StagedBackend) -> None:
    pool = backend.allocate_pool(loaded.groups, num_pages=PAGES, page_size=16)
    graphs = DecodeGraphs(loaded.model, backend, pool, (1, 4), 1)
    assert [graphs.covers(decoding(rows)) for rows in (1, 3, 4, 5)] == [True, True, True, False]
    assert not graphs.covers(decoding(2, tokens=3))
    assert not DecodeGraphs(loaded.model, backend, pool, (), 1).covers(decoding(1))
