"""The view of a source whose weights lie in parts: right whatever the order of reading, a weight at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from quantised_checkpoints import FORMATS, write_folder
from torch import Tensor

from sglite.runtime.model.checkpoint import TensorInfo, held, open_checkpoint
from sglite.runtime.quant.dequantise import dequantised
from sglite.runtime.quant.packed import PackedWeight, Unpacked


class OneBuffer:
    """A source that hands out the same memory for every tensor, in the order of ``values``."""

    folder = Path("somewhere")

    def __init__(self, values: Mapping[str, float]) -> None:
        self.values = values
        self.tensors = {name: TensorInfo("file", (4,), "F32", name) for name in values}
        self.given: list[weakref.ref[Tensor]] = []

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        buffer = torch.empty(4)
        for name, value in self.values.items():
            if name in names:
                tensor = buffer.fill_(value).view(4)
                self.given.append(weakref.ref(tensor))
                yield name, tensor
                del tensor


def sums(names: list[str]) -> dict[str, PackedWeight]:
    parts = {name: {"one": f"{name}.a", "two": f"{name}.b"} for name in names}
    return {name: PackedWeight((4,), parts[name], lambda p: p["one"] + 10 * p["two"]) for name in names}


def test_parts_are_kept_though_their_memory_is_used_again() -> None:
    source = OneBuffer({"x.a": 1.0, "y.b": 2.0, "plain": 3.0, "x.b": 4.0, "y.a": 5.0})
    view = Unpacked(source, sums(["x", "y"]), set())
    assert view.tensors.keys() == {"x", "y", "plain"}
    assert {name: float(tensor[0]) for name, tensor in view.read({"x", "y", "plain"})} == {"plain": 3, "x": 41, "y": 25}
    assert {name: float(tensor[0]) for name, tensor in view.read({"y"})} == {"y": 25}


def test_parts_are_let_go_once_their_weight_is_made() -> None:
    names = [f"w{i}" for i in range(20)]
    source = OneBuffer({f"{name}.{part}": 1.0 for name in names for part in "ab"})
    for _, _ in Unpacked(source, sums(names), set()).read(set(names)):
        assert sum(given() is not None for given in source.given) <= 1


def test_files_that_are_held_may_go(tmp_path: Path) -> None:
    stored, weight = FORMATS["gptq"].quantise(torch.randn(64, 96, generator=torch.Generator().manual_seed(0)))
    write_folder(tmp_path, {}, {f"q_proj.{part}": tensor for part, tensor in stored.items()})
    with held(dequantised(open_checkpoint(tmp_path), FORMATS["gptq"].config)) as source:
        (tmp_path / "model.safetensors").unlink()
        assert all(torch.equal(tensor, weight) for _, tensor in source.read({"q_proj.weight"}))
