"""Engines on a device that works on its own: what goes wrong in a step is known when the next is under way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from staged_backend import StagedBackend, staged
from tiny_engines import is_idle, settles, some_prompts, tiny_engine
from tiny_models import make_checkpoint

from sglite.runtime.backend.draws import Draws, Sampled
from sglite.runtime.config import ConfigError
from sglite.runtime.engine.generation import EngineError

PROMPTS = some_prompts(3, seed=8)
PARAMS = [{"temperature": 1.0, "seed": 30 + i, "max_new_tokens": 12, "ignore_eos": True} for i in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("staged") / "model")


def test_decoding_is_captured_and_steps_are_launched_ahead(folder: Path) -> None:
    with staged() as backend:
        engine = tiny_engine(folder, cuda_graph_max_bs=4)
    with engine:
        results = engine.generate(input_ids=PROMPTS, sampling_params=PARAMS)
        assert backend.captured == len(engine.config.graph_sizes) == 3
        assert engine.config.device == "staged"
    with tiny_engine(folder, cpu_kernels="torch") as engine:
        expected = engine.generate(input_ids=PROMPTS, sampling_params=PARAMS)
    assert [result["output_ids"] for result in results] == [result["output_ids"] for result in expected]


@pytest.mark.parametrize(("fails", "takes"), [(False, "4,096"), (True, "more")])
def test_a_model_that_leaves_no_room_for_a_step_does_not_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fails: bool, takes: str
) -> None:
    """Whether the step was tried and took what is free, or more than that."""
    with staged() as backend:
        plain, tried = backend.peak_memory, []

        def peak(run: Callable[[], None]) -> int:
            tried.append(True)
            if fails:
                raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
            return plain(run)

        monkeypatch.setattr(backend, "peak_memory", peak)
        monkeypatch.setattr(backend, "available_memory", lambda: 4096 if tried else 2**40)
        message = rf"4,096 bytes of the device are free .* a step of 512 tokens takes {takes}; .*max_prefill_tokens"
        with pytest.raises(ConfigError, match=message):
            tiny_engine(folder, max_prefill_tokens=512)


def test_a_row_that_cannot_be_sampled_ends_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its token, which is none, is in the next step by then."""
    with tiny_engine(folder, cpu_kernels="torch") as engine:
        expected = [engine.generate(input_ids=ids, sampling_params=p) for ids, p in zip(PROMPTS, PARAMS, strict=True)]
    sample, times = StagedBackend.sample, [0]

    def nothing_left(self: Any, logits: torch.Tensor, draws: Draws, bitmask: torch.Tensor | None = None) -> Sampled:
        found = sample(self, logits, draws, bitmask)
        if len(found.ids) == 3 and bitmask is None:
            times[0] += 1
            if times[0] == 3:
                found.ids[1], found.left[1] = -1, -torch.inf
        return found

    monkeypatch.setattr(StagedBackend, "sample", nothing_left)
    with staged():
        engine = tiny_engine(folder, cuda_graph_max_bs=4)
    with engine:
        pairs = zip(PROMPTS, PARAMS, strict=True)
        streams = [engine.generate(input_ids=ids, sampling_params=params, stream=True) for ids, params in pairs]
        with pytest.raises(EngineError, match="every token"):
            list(streams[1])
        found = {place: list(streams[place])[-1] for place in (0, 2)}
        assert settles(lambda: is_idle(engine))
        info = engine.get_server_info()
        assert info["page_mismatches"] == info["failed_steps"] == 0
    assert times[0] >= 3
    for place, last in found.items():
        assert last["output_ids"] == expected[place]["output_ids"]


def test_an_argument_for_another_device_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "sglite"), tiny_engine(folder, cuda_graph_max_bs=4):
        assert "cuda_graph_max_bs=4 has no effect on cpu" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", "sglite"), tiny_engine(folder, disable_cuda_graph=True):
        assert "no effect" not in caplog.text
