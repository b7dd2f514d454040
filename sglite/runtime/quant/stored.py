"""What a format finds in a checkpoint: the parts of its weights, each looked at before anything is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NoReturn

from sglite.runtime.model.checkpoint import FLOAT_TYPES, TensorInfo, TensorSource
from sglite.runtime.model.errors import ModelError
from sglite.runtime.quant.arithmetic import groups_in_order
from sglite.runtime.quant.packed import PackedWeight, Unpacked

CACHE_SCALES = (".k_scale", ".v_scale", ".q_scale", ".kv_scale", ".prob_scale", ".k_zero_point", ".v_zero_point")
"""Ends of names of scales for a quantised cache, of which a cache in floating point has no need."""


class Stored:
    """The tensors of ``source``; ``method`` is the format's name, for messages. Formats add to ``weights`` and
    ``spare``; ``view`` is what comes of it."""

    def __init__(self, source: TensorSource, method: str) -> None:
        self.method = method
        self.weights: dict[str, PackedWeight] = {}
        """Found so far, by the name of the whole weight."""
        self.spare: set[str] = set()
        """Tensors that nobody needs once weights are whole."""
        self._source = source
        self._tensors = source.tensors

    def ending(self, suffix: str, *dtypes: str) -> Iterator[tuple[str, TensorInfo]]:
        """Names without ``suffix`` of the tensors that end in it and have one of ``dtypes``; no dtype: any."""
        for name, info in self._tensors.items():
            if name.endswith(suffix) and (not dtypes or info.dtype in dtypes):
                yield name.removesuffix(suffix), info

    def has(self, name: str) -> bool:
        """There is such a tensor."""
        return name in self._tensors

    def part(self, name: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> TensorInfo:
        """The tensor, of one of ``dtypes`` and ``shapes``; no shape: any. ModelError names it where it is not so."""
        info = self._tensors.get(name)
        if info is None:
            self.refuse(f"{name} is missing")
        if info.dtype not in dtypes:
            self.refuse(f"{name} has type {info.dtype} instead of {' or '.join(dtypes)}")
        if shapes and info.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            self.refuse(f"{name} has shape {list(info.shape)} instead of {wanted}")
        return info

    def matrix(self, name: str, info: TensorInfo) -> tuple[int, int]:
        """Rows and columns of a tensor that must be a matrix."""
        if len(info.shape) != 2 or 0 in info.shape:
            self.refuse(f"{name} has shape {list(info.shape)}; it must be a matrix")
        return info.shape[0], info.shape[1]

    def drop(self, *names: str) -> None:
        """Those of the names that are there are spare."""
        self.spare.update(name for name in names if name in self._tensors)

    def read_small(self, names: set[str]) -> dict[str, list[int]]:
        """Values of small whole-number tensors."""
        return {name: tensor.flatten().tolist() for name, tensor in self._source.read(names)}

    def zero(self, names: set[str]) -> set[str]:
        """Those of the tensors that hold nothing but zeros."""
        return {name for name, tensor in self._source.read(names) if not bool(tensor.any())}

    def in_order(self, sizes: Mapping[str, int]) -> set[str]:
        """Those of the tensors, which name the group of every input, whose groups of these sizes are in order."""
        found = set()
        for name, groups in self._source.read(set(sizes)):
            try:
                if groups_in_order(groups, len(groups), sizes[name]) is None:
                    found.add(name)
            except ValueError:
                continue  # said with the weight's name when that is read
        return found

    def refuse(self, problem: str) -> NoReturn:
        """ModelError: ``problem``, in a checkpoint of this format."""
        raise ModelError(
            f"{self._source.folder}: {problem} (quant_method={self.method}); "
            "check that quantization_config belongs to these weights, or download them again"
        )

    def view(self) -> Unpacked:
        """The source with whole weights. ModelError: nothing in it is quantised."""
        if not self.weights:
            self.refuse("no tensor is quantised, though the configuration says so")
        for suffix in CACHE_SCALES:
            self.drop(*(base + suffix for base, _ in self.ending(suffix, *FLOAT_TYPES)))
        return Unpacked(self._source, self.weights, self.spare)
