"""The tensors of a GGUF model by the names and in the form of the checkpoint that it was converted from.

    blk.3.attn_q.weight      Q4_K [4096, 4096]      ──▶  model.layers.3.self_attn.q_proj.weight, rows in order
    blk.3.ffn_up_exps.weight Q8_0 [128, 768, 2048]  ──▶  model.layers.3.mlp.experts.N.up_proj.weight, N = 0 .. 127

Files are mapped; a tensor is unpacked when it is read, an expert at a time where experts are stacked.
Tensors in types that are codes as we have them (``CODINGS``) can be read as those.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sglite.runtime.gguf import GGUFError, GGUFTensor, open_gguf
from sglite.runtime.model.checkpoint import FLOAT_TYPES, TensorInfo
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.gguf_config import ROPE_DIVISORS
from sglite.runtime.model.gguf_layouts import WHOLE, Form, Layout, layout_of
from sglite.runtime.quant.codes import Codes, Coding
from sglite.runtime.quant.gguf import CODINGS, in_codes, unpacked

_LAYER = re.compile(r"(blk\.\d+\.)(.+)")


@dataclass(frozen=True)
class _Rows:
    """``count`` rows of a tensor from ``first``, as a tensor of ``shape``."""

    tensor: GGUFTensor
    first: int
    count: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Piece:
    """A tensor of ours: what it is made of, and how (``None``: it is that)."""

    sources: tuple[_Rows, ...]
    shape: tuple[int, ...]
    make: Callable[..., Tensor] | None = None
    by_rows: bool = True
    """It puts rows in another order, or nothing."""

    @property
    def coding(self) -> Coding | None:
        """How it is coded, where its codes can be had; ``None``: it is not."""
        return CODINGS.get(self.sources[0].tensor.type.name) if self.by_rows and len(self.shape) == 2 else None


@dataclass(frozen=True)
class GGUFSource:
    """See ``TensorSource``."""

    folder: Path
    """The file."""
    tensors: Mapping[str, TensorInfo]
    pieces: Mapping[str, _Piece]

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, in the order in which they lie in the files, as float32."""
        mapped = {path: _mapped(path) for path in {s.tensor.path for n in names for s in self.pieces[n].sources}}
        for name in sorted(names, key=lambda name: _place(self.pieces[name].sources[0])):
            piece = self.pieces[name]
            parts = [_read(mapped[source.tensor.path], source) for source in piece.sources]
            yield name, parts[0] if piece.make is None else piece.make(*parts)

    @property
    def quantised(self) -> Set[str]:
        """See ``CodedSource``."""
        stored = {name: {source.tensor.type.name for source in piece.sources} for name, piece in self.pieces.items()}
        return {name for name, types in stored.items() if not types.issubset(FLOAT_TYPES)}

    @property
    def codings(self) -> Mapping[str, Coding]:
        """See ``CodedSource``."""
        return {name: coding for name, piece in self.pieces.items() if (coding := piece.coding) is not None}

    def read_codes(self, names: set[str]) -> Iterator[tuple[str, Codes]]:
        """See ``CodedSource``."""
        for name in sorted(names, key=lambda name: _place(self.pieces[name].sources[0])):
            piece = self.pieces[name]
            (rows,) = piece.sources
            codes = in_codes(rows.tensor.type.name, _packed(_mapped(rows.tensor.path), rows))
            if piece.make is not None:
                codes = replace(codes, values=piece.make(codes.values), scales=piece.make(codes.scales))
            yield name, codes


def open_gguf_source(path: Path, config: ModelConfig) -> GGUFSource:
    """The tensors of a GGUF model. ModelError: the file cannot be read or followed."""
    try:
        file = open_gguf(path)
    except GGUFError as error:
        raise ModelError(str(error)) from None
    tensors = {name: tensor for name, tensor in file.tensors.items() if name != ROPE_DIVISORS}
    layout = layout_of(config)
    pieces = dict(_formed(tensors, layout))
    formed = {source.tensor.name for piece in pieces.values() for source in piece.sources}
    for name, tensor in tensors.items():
        if name not in formed:
            pieces.update(_renamed(tensor, layout))
    return GGUFSource(path, {name: _info(piece) for name, piece in pieces.items()}, pieces)


def _formed(tensors: Mapping[str, GGUFTensor], layout: Layout) -> Iterator[tuple[str, _Piece]]:
    """The tensors that have another form here, where all that one is made of is there."""
    layers = dict.fromkeys(found[1] for name in tensors if (found := _LAYER.fullmatch(name)))
    places = [("", "", form) for form in layout.whole_forms]
    places += [(layer, f"model.layers.{layer[4:]}", form) for layer in layers for form in layout.forms]
    for theirs, ours, form in places:
        sources = [tensors.get(theirs + name) for name in form.sources]
        present = tuple(_whole(tensor) for tensor in sources if tensor is not None)
        if len(present) == len(sources):
            yield ours + form.name, _made(form, present)


def _made(form: Form, sources: tuple[_Rows, ...]) -> _Piece:
    try:
        made = form.make(*(torch.empty(source.shape, device="meta") for source in sources))
    except (RuntimeError, IndexError):
        said = " and ".join(f"{source.tensor.name} {list(source.shape)}" for source in sources)
        raise ModelError(
            f"{sources[0].tensor.path}: {form.name} cannot be made of {said}; do the metadata belong to the tensors?"
        ) from None
    return _Piece(sources, tuple(made.shape), form.make, form.by_rows)


def _renamed(tensor: GGUFTensor, layout: Layout) -> Iterator[tuple[str, _Piece]]:
    """What a tensor holds by our names; by its own where the architecture has no such tensor."""
    stem, _, kind = tensor.name.rpartition(".")
    found = _LAYER.fullmatch(stem)
    layer, part = (f"model.layers.{found[1][4:]}", found[2]) if found else ("", "")
    if part in layout.experts and kind == "weight" and len(tensor.shape) == 3:
        experts, rows, length = tensor.shape
        for expert in range(experts):
            piece = _Rows(tensor, expert * rows, rows, (rows, length))
            yield f"{layer}{layout.experts[part].format(expert)}.weight", _Piece((piece,), piece.shape)
        return
    known = f"{layer}{layout.layer[part]}" if part in layout.layer else WHOLE.get(stem)
    yield tensor.name if known is None else f"{known}.{kind}", _Piece((_whole(tensor),), tensor.shape)


def _whole(tensor: GGUFTensor) -> _Rows:
    return _Rows(tensor, 0, math.prod(tensor.shape[:-1]), tensor.shape)


def _place(rows: _Rows) -> tuple[Path, int, int]:
    return rows.tensor.path, rows.tensor.offset, rows.first


def _info(piece: _Piece) -> TensorInfo:
    tensor = piece.sources[0].tensor
    kind = tensor.type.name if tensor.type.name in FLOAT_TYPES else "F32"
    return TensorInfo(tensor.path.name, piece.shape, kind, tensor.name)


def _mapped(path: Path) -> Tensor:
    """The bytes of a file, none of which is read before it is needed."""
    size = path.stat().st_size
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)


def _read(mapped: Tensor, rows: _Rows) -> Tensor:
    return unpacked(rows.tensor.type.name, _packed(mapped, rows)).view(rows.shape)


def _packed(mapped: Tensor, rows: _Rows) -> Tensor:
    """[rows, bytes]"""
    kind = rows.tensor.type
    row = rows.tensor.shape[-1] // kind.block * kind.size
    first = rows.tensor.offset + rows.first * row
    if first + rows.count * row > len(mapped):
        raise ModelError(f"{rows.tensor.path}: the file has become shorter while it was read; try again")
    return mapped[first : first + rows.count * row].view(rows.count, row)
