"""How much memory a step takes on the device beside weights and caches: found out by running the largest one, which
also has its kernels compiled before anybody waits for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend, BatchLayout, ForwardContext
from sglite.runtime.backend.draws import Draws
from sglite.runtime.executor.worker import Model
from sglite.runtime.protocol import GroupSpec

PAGE = 16


def step_bytes(model: Model, backend: Backend, groups: Sequence[GroupSpec], tokens: int, rows: int) -> int:
    """Bytes of a step of ``tokens`` tokens in one row, of which ``rows`` have logits that are drawn from (0: the model
    has no head); 0 where the device's memory is the host's."""
    if not backend.guarantees.asynchronous:
        return 0  # nor is anything compiled
    pages = -(-tokens // PAGE)
    pool = backend.allocate_pool(groups, num_pages=pages, page_size=PAGE, num_states=1)
    layout = BatchLayout(
        query_starts=[0, tokens],
        starts=[0],
        seq_lens=[tokens],
        positions=range(tokens),
        slot_mapping=range(tokens),
        page_tables=[range(pages)],
        page_size=PAGE,
        state_slots=[{group.name: 0 for group in groups if group.kind == "state"}],
    )

    def run() -> None:
        context = ForwardContext(backend, backend.plan(layout), pool)
        hidden = model.forward(backend.stage([0] * tokens), backend.stage(layout.positions), context)
        if rows:
            _sample(model, backend, hidden[:rows])

    with torch.inference_mode():
        return backend.peak_memory(run)


def _sample(model: Model, backend: Backend, hidden: Tensor) -> None:
    """Both ways in which tokens are chosen, the second with masks and everything that is sorted or searched for."""
    rows = len(hidden)
    model.greedy(hidden)
    logits = model.logits(hidden)
    half = torch.full((rows,), 0.5, dtype=torch.float64)
    draws = Draws(
        temperatures=torch.ones(rows), top_k=torch.zeros(rows, dtype=torch.int32), top_p=half, min_p=half, uniforms=half
    )
    backend.sample(logits, draws, torch.full((rows, -(-logits.shape[1] // 32)), -1, dtype=torch.int32))
