"""Where a model's tensors are born: allocated once, each bound to the checkpoint names that fill it.

Layers ask the table for what they need while the model is built, so the set of names a checkpoint must have is the
set the layers asked for, and nothing else is written down twice. Fused weights are one allocation whose row ranges
are bound to several names:

    qkv [q + k + v, hidden]     rows 0..q <- "...q_proj.weight",  q..q+k <- "...k_proj.weight",  then v_proj

Matrices that the backend alone reads are handed to it once they are filled (``pack``), which may rearrange them in
place; whoever wants their numbers afterwards asks for them (``plain``).

A matrix may be coded (``Codings``): it is filled from numbers, which are coded then, or from a file's codes, and read
as numbers.

Where a checkpoint's tensor has another form than the layer's, a ``Conversion`` says which, and what makes one of the
other. Where checkpoints of a family differ, a layer may ask what this one has (``found``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend
from sglite.runtime.backend.experts import Matrices
from sglite.runtime.backend.weights import Matrix
from sglite.runtime.model.layers.arena import Arena
from sglite.runtime.model.layers.codings import Codings, Role
from sglite.runtime.quant.codes import Codes, Coding, empty


@dataclass(frozen=True)
class Conversion:
    """How a tensor of the checkpoint becomes the layer's: its ``shape`` there, and ``convert`` to ours."""

    shape: tuple[int, ...]
    convert: Callable[[Tensor], Tensor]


class WeightTable:
    """Allocates uninitialised tensors on one device and remembers which name fills which part.

    On the ``meta`` device nothing is allocated, which is how a model's size is known before it is loaded.

    Args:
        dtype: of every tensor that does not ask for another.
        device: where they are.
        found: shapes of the checkpoint's tensors by name; ``None``: there is no checkpoint.
        codings: of matrices.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        found: Mapping[str, tuple[int, ...]] | None = None,
        codings: Codings = Codings(),  # noqa: B008  (frozen)
    ) -> None:
        self.dtype = dtype
        self.device = device
        self._found = found
        self._codings = codings
        self._coded: dict[str, Codes] = {}
        self._arena = Arena(device)
        self._parts: dict[str, Tensor] = {}
        self._tied: dict[str, str] = {}
        self._conversions: dict[str, Conversion] = {}
        self._expert_tokens: list[Tensor] = []
        self._num_bytes = 0
        self._matrices: dict[str, Matrix | Matrices] = {}
        self._several: list[Matrices] = []

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """Checkpoint name -> the view it fills; of coded matrices their values."""
        return self._parts

    def part(self, name: str) -> Tensor | Codes:
        """What ``name`` has filled."""
        return self._coded.get(name, self._parts[name])

    @property
    def coded(self) -> Mapping[str, Coding]:
        """Checkpoint name -> how the part that it fills is coded, of those that are."""
        return {name: codes.coding for name, codes in self._coded.items()}

    @property
    def share_coded(self) -> float:
        """Of all numbers, from 0 to 1."""
        sizes = {name: math.prod(self.shape(name)) for name in self._parts}
        return sum(sizes[name] for name in self._coded) / max(1, sum(sizes.values()))

    @property
    def tied(self) -> Mapping[str, str]:
        """Names that a checkpoint may repeat -> the name whose tensor they share."""
        return self._tied

    @property
    def num_bytes(self) -> int:
        """Memory of everything allocated."""
        return self._num_bytes

    @property
    def expert_tokens(self) -> Sequence[Tensor]:
        """By layer with experts, in their order: how many tokens each expert has had, [E] int64."""
        return self._expert_tokens

    def expert_counter(self, experts: int) -> Tensor:
        """Zeroes for a layer's experts, which count for as long as the model is loaded."""
        self._expert_tokens.append(torch.zeros(experts, dtype=torch.int64, device=self.device))
        return self._expert_tokens[-1]

    def found(self, name: str) -> tuple[int, ...] | None:
        """Shape of the checkpoint's tensor of that name; ``None``: it has none, or there is no checkpoint."""
        return None if self._found is None else self._found.get(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """What the checkpoint's tensor ``name`` must look like."""
        if name in self._conversions:
            return self._conversions[name].shape
        name = self._tied.get(name, name)
        return self._coded[name].shape if name in self._coded else tuple(self._parts[name].shape)

    def converted(self, name: str) -> bool:
        """Whether the layer has the tensor in another form than the checkpoint."""
        return name in self._conversions

    def fill(self, name: str, tensor: Tensor | Codes) -> None:
        """Copy the checkpoint's tensor to its place, in the layer's form and type. Codes: as ``coded`` says."""
        codes, conversion = self._coded.get(name), self._conversions.get(name)
        if isinstance(tensor, Codes):
            self._coded[name].take(tensor)
        elif codes is not None:
            codes.encode(tensor if conversion is None else conversion.convert(tensor))
        else:
            self._parts[name].copy_(tensor if conversion is None else conversion.convert(tensor))

    def numbers(self, name: str, rows: int | None = None) -> Tensor:
        """The first rows of what ``name`` has filled, or all, as numbers."""
        name = self._tied.get(name, name)
        if name not in self._coded:
            return self._parts[name][:rows]
        codes = self._coded[name]
        return codes.rows(0, len(codes.values) if rows is None else rows).numbers()

    def holds(self, name: str, tensor: Tensor) -> bool:
        """Whether filling in ``tensor``, in the checkpoint's form, would change nothing."""
        name = self._tied.get(name, name)
        codes = self._coded.get(name)
        if codes is None:
            return torch.equal(tensor.to(self.dtype), self._parts[name].to(self.dtype).to(tensor.device))
        other = empty(codes.coding, *codes.shape, dtype=codes.dtype)
        other.encode(tensor)
        return codes.equal(other)

    def tensor(
        self, name: str, *shape: int, dtype: torch.dtype | None = None, source: Conversion | None = None
    ) -> Tensor:
        """A tensor that the checkpoint tensor ``name`` fills."""
        whole = self.empty(*shape, dtype=dtype)
        self.bind(name, whole, source)
        return whole

    def stacked(self, rows: Mapping[str, int], *rest: int) -> Tensor:
        """[sum of rows, *rest], filled from several checkpoint tensors, one under the other in the given order."""
        whole = self.empty(sum(rows.values()), *rest)
        self.bind_rows(rows, whole)
        return whole

    def matrix(self, rows: Mapping[str, int], inputs: int, *, role: Role = "layer") -> Matrix:
        """As ``stacked``, [sum of rows, inputs], for the backend alone, which may be coded."""
        coding = self._codings.of(rows, sum(rows.values()), inputs, role)
        matrix = self._plain_matrix(rows, inputs) if coding is None else self._coded_matrix(rows, inputs, coding)
        self._matrices.update(dict.fromkeys(rows, matrix))
        return matrix

    def converted_matrix(
        self, name: str, *shape: int, dtype: torch.dtype | None = None, source: Conversion | None = None
    ) -> Matrix:
        """As ``tensor``, [out, in], for the backend's products alone."""
        matrix = Matrix(self.tensor(name, *shape, dtype=dtype, source=source))
        self._matrices[name] = matrix
        return matrix

    def matrices(self, whole: Tensor) -> Matrices:
        """``whole`` [n, out, in], a tensor of this table or part of one, for the backend's products alone."""
        self._several.append(Matrices(whole))
        return self._several[-1]

    def experts(self, rows: Sequence[Mapping[str, int]], inputs: int) -> Matrices:
        """Matrices of one shape, each as of ``matrix``, filled from names of its own; all in the same codes or none."""
        (outputs,) = {sum(each.values()) for each in rows}
        names = [name for each in rows for name in each]
        coding = self._codings.of(names, outputs, inputs, "expert")
        if coding is None:
            whole = self.empty(len(rows), outputs, inputs)
            for item, each in enumerate(rows):
                self.bind_rows(each, whole[item])
            return self.matrices(whole)
        several, codes = self._coded_experts(names, coding, len(rows), outputs, inputs)
        for item, each in enumerate(rows):
            self._bind_codes(each, codes.rows(item * outputs, outputs))
        return several

    def fused_experts(
        self, name: str, count: int, outputs: int, inputs: int, source: Conversion | None = None
    ) -> Matrices:
        """Matrices that one tensor of the checkpoint fills."""
        coding = self._codings.of([name], outputs, inputs, "expert")
        if coding is None:
            return self.matrices(self.tensor(name, count, outputs, inputs, source=source))
        several, codes = self._coded_experts([name], coding, count, outputs, inputs)
        shape = (count, outputs, inputs) if source is None else source.shape
        self._conversions[name] = Conversion(
            shape, lambda stored: (stored if source is None else source.convert(stored)).reshape(-1, inputs)
        )
        self._bind_codes({name: count * outputs}, codes)
        return several

    def _coded_experts(
        self, names: Iterable[str], coding: Coding, count: int, outputs: int, inputs: int
    ) -> tuple[Matrices, Codes]:
        codes = empty(coding, count * outputs, inputs, dtype=self.dtype, allocate=self._arena.empty)
        self._num_bytes += codes.nbytes
        several = Matrices(codes.values.view(count, outputs, -1), codes=codes)
        self._matrices.update(dict.fromkeys(names, several))
        return several, codes

    def _plain_matrix(self, rows: Mapping[str, int], inputs: int) -> Matrix:
        whole = self._arena.empty(sum(rows.values()), inputs, dtype=self.dtype)
        self._num_bytes += whole.nbytes
        self.bind_rows(rows, whole)
        return Matrix(whole)

    def _coded_matrix(self, rows: Mapping[str, int], inputs: int, coding: Coding) -> Matrix:
        codes = empty(coding, sum(rows.values()), inputs, dtype=self.dtype, allocate=self._arena.empty)
        self._num_bytes += codes.nbytes
        self._bind_codes(rows, codes)
        return Matrix(codes.values, codes=codes)

    def _bind_codes(self, rows: Mapping[str, int], codes: Codes) -> None:
        """As ``bind_rows``, with the rows of ``codes``."""
        first = 0
        for name, count in rows.items():
            self._coded[name] = codes.rows(first, count)
            self.bind(name, self._coded[name].values)
            first += count

    def place(self, backend: Backend) -> None:
        """Show the memory of the matrices to ``backend`` before they are filled."""
        for piece in self._arena.pieces:
            backend.place(Matrix(piece.view(1, -1)))
        for matrix in self._products():
            if not self._arena.holds(matrix.tensor):
                backend.place(matrix)

    def pack(self, backend: Backend) -> None:
        """Let ``backend`` arrange the matrices; ``parts`` of those are of no use from now on but within ``plain``."""
        for matrix in self._products():
            backend.pack(matrix)

    @contextmanager
    def plain(self, backend: Backend, names: Iterable[str]) -> Iterator[None]:
        """Within it, the ``parts`` of these names hold their numbers, row after row, to be read and written."""
        ours = {self._tied.get(name, name) for name in names}
        found: dict[int, Matrix | Matrices] = {
            id(matrix): matrix for name in ours if (matrix := self._matrices.get(name))
        }
        rooms = {_room(self._parts[name]) for name in ours if name in self._parts}
        found.update((id(matrices), matrices) for matrices in self._several if _room(matrices.tensor) in rooms)
        packed = [weight for weight in found.values() if weight.packed]
        for weight in packed:
            backend.unpack(weight)
        try:
            yield
        finally:
            for weight in packed:
                backend.pack(weight)

    def _products(self) -> list[Matrix | Matrices]:
        """What the backend alone reads; some of it several times."""
        return [*self._matrices.values(), *self._several]

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor whose parts are still to be bound."""
        whole = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        self._num_bytes += whole.numel() * whole.element_size()
        return whole

    def bind(self, name: str, part: Tensor, source: Conversion | None = None) -> None:
        """``name`` fills ``part`` of a tensor of this table."""
        if name in self._parts:
            raise KeyError(f"{name} is already bound; a name fills one tensor")
        self._parts[name] = part
        if source is not None:
            self._conversions[name] = source

    def bind_rows(self, rows: Mapping[str, int], part: Tensor) -> None:
        """Several names fill the rows of ``part``, one under the other in the given order."""
        first = 0
        for name, count in rows.items():
            self.bind(name, part[first : first + count])
            first += count

    def tie(self, name: str, to: str) -> Tensor:
        """The tensor of ``to``, which ``name`` shares; a checkpoint may hold ``name`` too, if it is equal."""
        self._tied[name] = to
        return self._parts[to]


def _room(tensor: Tensor) -> int:
    """What tells the allocation that a tensor lies in from others."""
    return tensor.untyped_storage().data_ptr()
