"""The tensors of a model folder, read from safetensors files without loading them.

Only safetensors are opened: a pickle can run code, so a folder that holds nothing else is refused. Headers are read
when the checkpoint is opened, data when a tensor is asked for, straight from the memory-mapped file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields, read_json
from sglite.runtime.model.names import NameTable

FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is."""

    file: str
    shape: tuple[int, ...]
    dtype: str
    """As the file format names it: F32, BF16 ..."""
    name: str
    """What the file calls it."""


class TensorSource(Protocol):
    """Somewhere tensors can be read from: files, or what is made of them on the way."""

    @property
    def folder(self) -> Path:
        """For messages."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is, by name."""

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors in any order, to be copied at once; none of them is to be written to."""


@dataclass(frozen=True)
class Checkpoint:
    """Names, shapes and files of all tensors of a folder."""

    folder: Path
    tensors: Mapping[str, TensorInfo]
    _held: Mapping[str, Any] = field(default_factory=dict)
    """Files that are open, by name."""

    @contextmanager
    def held(self) -> Iterator[Checkpoint]:
        """The same with its files open, so that none is missing when it is read. ModelError if one has changed."""
        with ExitStack() as stack:
            files = {file: _open(self.folder / file, stack) for file in {info.file for info in self.tensors.values()}}
            for info in self.tensors.values():
                try:
                    same = _info(files[info.file], info.file, info.name) == info
                except SafetensorError:
                    same = False
                if not same:
                    raise ModelError(f"{self.folder / info.file} was written to while it was read; try again")
            yield replace(self, _held=files)

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, file by file; each is a view of the mapped file, to be copied at once."""
        for file in sorted({self.tensors[name].file for name in names}):
            with ExitStack() as stack:
                opened = self._held.get(file) or _open(self.folder / file, stack)
                for name in sorted(n for n in names if self.tensors[n].file == file):
                    yield name, opened.get_tensor(self.tensors[name].name)

    def renamed(self, table: NameTable) -> Checkpoint:
        """By the names of the family, without what it has no use for."""
        ours = ((table.of(name), info) for name, info in self.tensors.items())
        return Checkpoint(self.folder, {name: info for name, info in ours if name is not None})


@runtime_checkable
class Holdable(Protocol):
    """A source of files that can be kept open."""

    def held(self) -> AbstractContextManager[TensorSource]:
        """The same with its files open."""


@contextmanager
def held(source: TensorSource) -> Iterator[TensorSource]:
    """``source``, with its files kept open where they are those of a folder."""
    if not isinstance(source, Holdable):
        yield source
        return
    with source.held() as opened:
        yield opened


def open_checkpoint(folder: Path) -> Checkpoint:
    """Find and check the safetensors files of a folder. ModelError names a missing, damaged or foreign file."""
    files = _indexed_files(folder) if (folder / INDEX).is_file() else _loose_files(folder)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        with ExitStack() as stack:
            opened = _open(folder / file, stack)
            for name in opened.keys():  # noqa: SIM118  (a file handle, not a mapping)
                if name in tensors:
                    raise ModelError(
                        f"{folder}: tensor {name} is in {tensors[name].file} and in {file}; keep one of them"
                    )
                tensors[name] = _info(opened, file, name)
    return Checkpoint(folder, _whole_names(tensors))


def _info(opened: Any, file: str, name: str) -> TensorInfo:
    part = opened.get_slice(name)
    return TensorInfo(file, tuple(part.get_shape()), part.get_dtype(), name)


def _whole_names(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """By their names in a whole language model: exports of the decoder alone leave out ``model.``."""
    if "embed_tokens.weight" not in tensors:
        return tensors
    kept = ("model.", "lm_head.")
    return {name if name.startswith(kept) else f"model.{name}": info for name, info in tensors.items()}


def _indexed_files(folder: Path) -> list[str]:
    where = str(folder / INDEX)
    weight_map = Fields(read_json(folder / INDEX), where).mapping("weight_map")
    files = sorted({str(file) for file in weight_map.values()})
    if not files:
        raise ModelError(f"{where}: field 'weight_map' names no file; download the model again")
    for file in files:
        # A name, never a path: an index must not make us read outside its folder.
        if not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise ModelError(f"{where}: {file!r:.120} is not the name of a safetensors file; download the model again")
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of {len(files)} weight files: {', '.join(missing)}; download it again"
        )
    return files


def _loose_files(folder: Path) -> list[str]:
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder} has pickled weights only ({pickles[0]}), which can run code and are never opened; "
            "convert them to safetensors or use another revision"
        )
    raise ModelError(
        f"{folder} has no *.safetensors weights (no other format is read); "
        "add them, or pass load_format='dummy' for random ones"
    )


def _open(path: Path, stack: ExitStack) -> Any:
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ModelError(f"{path} is a Git LFS pointer, not the weights; run 'git lfs pull' in its folder")
    try:
        return stack.enter_context(safe_open(path, framework="pt"))
    except SafetensorError as error:
        raise ModelError(f"{path} is not a readable safetensors file ({error}); download it again") from error
