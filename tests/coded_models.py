"""Logits of models with coded weights, and how far they are from those of the numbers that the codes stand for."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from native_kernels import backend_of
from paged_runner import Extend, PagedRunner
from quantised_checkpoints import write_folder, write_quantised
from safetensors.torch import load_file
from torch import Tensor

from sglite.runtime.backend.base import Backend
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.loader import LoadedModel, load_model

PROMPT = [5, 9, 77, 200, 31, 8, 150, 41, 12, 99, 301, 7] * 3


def logits(loaded: LoadedModel, backend: Backend) -> Tensor:
    """Of a prompt in two chunks."""
    runner = PagedRunner(loaded, backend)
    return torch.cat([runner.step([Extend("a", part)])[0] for part in (PROMPT[:20], PROMPT[20:21], PROMPT[21:])])


def reference(loaded: LoadedModel, folder: Path, out: Path, backend: Backend) -> Tensor:
    """Logits of a plain model, in float32, with the numbers that the weights of ``loaded`` stand for."""
    with loaded.weights.plain(backend, loaded.weights.parts):
        numbers = {name: loaded.weights.numbers(name).float().clone() for name in loaded.weights.parts}
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    plain = CPUBackend()
    return logits(load_model(write_folder(out, config, numbers), backend=plain, dtype="float32"), plain)


def divergence(found: Tensor, expected: Tensor) -> float:
    """Mean over positions of the Kullback-Leibler divergence of ``found`` from ``expected``."""
    target = expected.log_softmax(-1)
    return float((target.exp() * (target - found.log_softmax(-1))).sum(-1).mean())


def agreement(found: Tensor, expected: Tensor) -> float:
    return float((found.argmax(-1) == expected.argmax(-1)).float().mean())


def kept_in_codes(folder: Path, name: str, out: Path) -> tuple[LoadedModel, Tensor, Tensor]:
    """The model of ``folder`` in the quantised format ``name``, written to ``out``, all of whose products are kept in
    the file's codes by the kernels; its logits, and those of the numbers that the codes stand for."""
    native, plain = backend_of("auto"), CPUBackend()
    write_quantised(folder, name, out / "quantised", out / "numbers")
    loaded = load_model(out / "quantised", backend=native)
    exact = load_file(out / "numbers" / "model.safetensors")
    assert {key for key in exact if key.endswith("proj.weight")} == set(loaded.weights.coded)
    with loaded.weights.plain(native, loaded.weights.parts):
        assert all(torch.equal(loaded.weights.numbers(key), exact[key]) for key in exact)
    return loaded, logits(loaded, native), logits(load_model(out / "numbers", backend=plain), plain)
