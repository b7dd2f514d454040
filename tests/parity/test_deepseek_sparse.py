"""Sparse attention of DeepSeek V3.2: what is chosen decides, and does not depend on how a sequence is computed."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_families import FAMILIES, random_model
from paged_runner import Extend, PagedRunner, computed_in_chunks
from tiny_models import VOCAB_SIZE
from torch import Tensor

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.loader import LoadedModel, load_model

IDS = random.Random(3).choices(range(3, VOCAB_SIZE), k=80)


def make(folder: Path, **changes: int) -> LoadedModel:
    family = FAMILIES["deepseek_v32"]
    random_model(replace(family, config={**family.config, **changes})).save_pretrained(folder)
    return load_model(folder, backend=CPUBackend())


def logits(loaded: LoadedModel) -> Tensor:
    return PagedRunner(loaded, CPUBackend()).step([Extend("row", IDS)])[0]


def test_as_many_as_there_are_is_attention_without_an_indexer(tmp_path: Path) -> None:
    """Sparse attention differs from the full one from the first query on that sees more than it may look at."""
    sparse = logits(make(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "index_topk": len(IDS)}))
    whole = logits(load_model(tmp_path, backend=CPUBackend()))
    few = config["index_topk"]
    torch.testing.assert_close(sparse[:few], whole[:few], atol=1e-5, rtol=0)
    assert (sparse[few:] - whole[few:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_with_scores_that_tie_chunks_still_equal_the_whole(tmp_path: Path, chunk: int) -> None:
    """Two heads, whose scores are often both 0: the first positions are taken, at every width."""
    loaded = make(tmp_path, index_n_heads=2, index_topk=30)
    runner = PagedRunner(loaded, CPUBackend(), page_size=4)
    parts = computed_in_chunks(runner, {"row": IDS, "other": IDS[:50]}, chunk)
    torch.testing.assert_close(parts["row"], logits(loaded), atol=1e-4, rtol=0)


def test_drafts_choose_on_their_own_path(tmp_path: Path) -> None:
    """Each branch of a draft tree gets the logits of its path alone."""
    loaded = make(tmp_path)
    runner = PagedRunner(loaded, CPUBackend(), page_size=4)
    runner.step([Extend("row", IDS[:50])])
    tree = runner.step([Extend("row", [IDS[50], 7, 8, 9], parents=[-1, 0, 0])])[0]
    for path, node in (([7], 1), ([7, 8], 2), ([7, 9], 3)):
        alone = PagedRunner(loaded, CPUBackend()).step([Extend("row", [*IDS[:51], *path])])[0]
        torch.testing.assert_close(tree[node], alone[-1], atol=1e-4, rtol=0)
