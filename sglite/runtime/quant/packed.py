"""A checkpoint whose weights lie in parts, seen as one whose weights are whole.

    in the files      q_proj.qweight, q_proj.qzeros, q_proj.scales          what a format calls parts of a weight
    in this view      q_proj.weight [out, in] float32                       made when it is read, one at a time

Formats say which tensors are parts of what (``PackedWeight``); the view hides these and offers the weights. What no
format has claimed is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from sglite.runtime.model.checkpoint import TensorInfo, TensorSource, held
from sglite.runtime.model.errors import ModelError
from sglite.runtime.quant.codes import Codes, Coding

Made = TypeVar("Made", Tensor, Codes)


@dataclass(frozen=True)
class PackedWeight:
    """A weight that is in the files in parts.

    Args:
        shape: of the weight.
        parts: what the format calls a part -> the tensor that holds it; the first is the weight itself.
        unpack: from the parts to the weight; ValueError: a part holds what it cannot.
        dtype: of what ``unpack`` gives, as the file format names it.
    """

    shape: tuple[int, ...]
    parts: Mapping[str, str]
    unpack: Callable[[Mapping[str, Tensor]], Tensor]
    dtype: str = "F32"
    coding: Coding | None = None
    """The weight is coded so, and products with it may be made of the codes."""
    codes: Callable[[Mapping[str, Tensor]], Codes] | None = None
    """From the parts to these."""


@runtime_checkable
class CodedSource(Protocol):
    """A ``TensorSource`` that has weights in codes."""

    @property
    def quantised(self) -> Set[str]:
        """Weights that are not stored as the numbers they are."""

    @property
    def codings(self) -> Mapping[str, Coding]:
        """How those of them are coded that ``read_codes`` gives as they are."""

    def read_codes(self, names: set[str]) -> Iterator[tuple[str, Codes]]:
        """Some of ``codings`` in any order; see ``TensorSource.read``."""


class Unpacked:
    """``TensorSource`` over another, with ``weights`` in place of their parts and without what is ``spare``.

    Reads go through the other source once, so that each file is opened once; a weight is made as soon as its last part
    is there. What waits for its other parts is copied: of files in the order of their names, that is one weight.
    """

    def __init__(self, source: TensorSource, weights: Mapping[str, PackedWeight], spare: set[str]) -> None:
        hidden = spare.union(*(weight.parts.values() for weight in weights.values()))
        self._source = source
        self._weights = weights
        self._spare = spare
        self._tensors = {name: info for name, info in source.tensors.items() if name not in hidden}
        for name, weight in weights.items():
            main = source.tensors[next(iter(weight.parts.values()))]
            self._tensors[name] = TensorInfo(main.file, weight.shape, weight.dtype, main.name)

    @property
    def folder(self) -> Path:
        """For messages."""
        return self._source.folder

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is, weights as they are once unpacked."""
        return self._tensors

    @contextmanager
    def held(self) -> Iterator[Unpacked]:
        """The same with its files open, see ``Checkpoint.held``."""
        with held(self._source) as opened:
            yield Unpacked(opened, self._weights, self._spare)

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors in any order. ModelError names a weight whose parts hold what they cannot."""
        for name, found in self._read(names):
            yield name, self._made(name, self._weights[name].unpack, found) if isinstance(found, dict) else found

    @property
    def quantised(self) -> Set[str]:
        """See ``CodedSource``."""
        return self._weights.keys()

    @property
    def codings(self) -> Mapping[str, Coding]:
        """See ``CodedSource``."""
        return {name: weight.coding for name, weight in self._weights.items() if weight.coding is not None}

    def read_codes(self, names: set[str]) -> Iterator[tuple[str, Codes]]:
        """See ``CodedSource``."""
        for name, parts in self._read(names):
            make = self._weights[name].codes
            if make is not None and isinstance(parts, dict):
                yield name, self._made(name, make, parts)

    def _read(self, names: set[str]) -> Iterator[tuple[str, Tensor | dict[str, Tensor]]]:
        """The named tensors, of weights their parts."""
        wanted = {name: self._weights[name] for name in names if name in self._weights}
        place = {tensor: (name, part) for name, weight in wanted.items() for part, tensor in weight.parts.items()}
        waiting: dict[str, dict[str, Tensor]] = {}
        for stored, tensor in self._source.read((names - wanted.keys()) | place.keys()):
            if stored not in place:
                yield stored, tensor
                continue
            name, part = place[stored]
            parts = waiting.setdefault(name, {})
            complete = len(parts) + 1 == len(wanted[name].parts)
            parts[part] = tensor if complete else tensor.clone()
            if complete:
                yield name, waiting.pop(name)

    def _made(self, name: str, make: Callable[[Mapping[str, Tensor]], Made], parts: Mapping[str, Tensor]) -> Made:
        try:
            return make(parts)
        except ValueError as error:
            raise ModelError(f"{self.folder}: {name}: {error}; the checkpoint is damaged, download it again") from error
