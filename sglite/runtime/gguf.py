"""GGUF files, read: metadata and where tensors lie (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

    magic version │ tensor count, key count │ keys and values │ name, shape, type, offset of tensors │ pad │ data

A file may come from anywhere. Every count, length and offset is checked against the file and against a bound before
anything is made of it, and values are decoded when they are asked for, so no file costs more than its size says; what
is wrong with one is a ``GGUFError`` in one line. Little-endian files of versions 2 and 3 are read, whole or split. No
torch: what the bytes of a tensor stand for is known to ``quant.gguf``.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 2**28
"""Keys, values and tensor descriptions end before this; the largest vocabularies take a twentieth of it."""
MAX_ITEMS = 2**22
"""Texts in all arrays of a file together; numbers in one array that is asked for."""
MAX_KEYS = MAX_TENSORS = 2**16
MAX_PARTS = 1024
MAX_NAME_BYTES = 1024
MAX_DIMENSIONS = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


class GGUFError(ValueError):
    """A GGUF file that is damaged, or that cannot be followed. One line: file, what is wrong, what to do."""


@dataclass(frozen=True)
class TensorType:
    """How numbers are packed: ``block`` of them in ``size`` bytes."""

    name: str
    block: int
    size: int


TENSOR_TYPES: Mapping[int, TensorType] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    30: TensorType("BF16", 1, 2),
    39: TensorType("MXFP4", 32, 17),
}
"""By number; those that ``quant.gguf`` can unpack."""
REFUSED_TYPES: Mapping[int, str] = {
    **{9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S"},
    **{22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0"},
    **{35: "TQ2_0", 40: "NVFP4", 41: "Q1_0"},
}


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies and what it is. ``shape``: slowest dimension first, as torch has it; GGUF has it last."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    path: Path
    offset: int
    """Of its first byte in the file."""
    num_bytes: int


@dataclass(frozen=True)
class _Value:
    """A value that is not decoded yet; ``kind``: of the value, or of the items of an array (``count`` is not None)."""

    kind: int
    at: int
    count: int | None = None


class GGUF:
    """A GGUF model: its metadata by key, and its tensors by name. Of a split one, the metadata of the first part."""

    def __init__(self, path: Path, data: bytes | mmap.mmap, values: Mapping[str, _Value]) -> None:
        """Made by ``open_gguf``."""
        self.path = path
        self.tensors: Mapping[str, GGUFTensor] = {}
        self._data = data
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    @property
    def paths(self) -> list[Path]:
        """The files of the model."""
        return sorted({self.path, *(tensor.path for tensor in self.tensors.values())})

    def scalar(self, key: str) -> Any:
        """A number, flag or text, whichever it is; ``None`` when absent, or for a list."""
        value = self._values.get(key)
        if value is None or value.count is not None:
            return None
        return self.text(key) if value.kind == _TEXT else self._unpack(value.kind, value.at, 1)[0]

    def text(self, key: str) -> str | None:
        """A text; ``None`` when absent. GGUFError for a value of another type."""
        value = self._value(key, "a text", lambda kind: kind == _TEXT)
        return None if value is None else _text_at(self.path, key, self._data, value.at)[0]

    def integer(self, key: str) -> int | None:
        """A whole number; ``None`` when absent. GGUFError for a value of another type."""
        found = self._scalar(key, "a whole number", "BbHhIiQq")
        return None if found is None else int(found)

    def number(self, key: str) -> float | None:
        """A finite number; ``None`` when absent. GGUFError for a value of another type."""
        found = self._scalar(key, "a number", "BbHhIiQqfd")
        if found is not None and not math.isfinite(found):
            raise GGUFError(f"{self.path}: {key} is {found}; it must be a finite number")
        return None if found is None else float(found)

    def flag(self, key: str) -> bool | None:
        """True or false; ``None`` when absent. GGUFError for a value of another type."""
        found = self._scalar(key, "true or false", "?")
        return None if found is None else bool(found)

    def texts(self, key: str) -> list[str] | None:
        """A list of texts; ``None`` when absent. GGUFError for a value of another type."""
        value = self._value(key, "a list of texts", lambda kind: kind == _TEXT, array=True)
        if value is None:
            return None
        found, at = [], value.at
        for _ in range(value.count or 0):
            text, at = _text_at(self.path, key, self._data, at)
            found.append(text)
        return found

    def numbers(self, key: str) -> list[Any] | None:
        """A list of numbers or flags; ``None`` when absent. GGUFError for a value of another type."""
        value = self._value(key, "a list of numbers", lambda kind: kind in _SCALARS, array=True)
        if value is None:
            return None
        count = value.count or 0
        if count > MAX_ITEMS:
            raise GGUFError(f"{self.path}: {key} lists {count} numbers; {MAX_ITEMS} are allowed")
        return self._unpack(value.kind, value.at, count)

    def is_array(self, key: str) -> bool:
        """Whether there is a list under ``key``."""
        return key in self._values and self._values[key].count is not None

    def floats(self, tensor: GGUFTensor) -> list[float]:
        """The numbers of a small F32 tensor of the first part, without torch. GGUFError for any other."""
        count = math.prod(tensor.shape)
        if tensor.type.name != "F32" or tensor.path != self.path or count > MAX_ITEMS:
            raise GGUFError(f"{self.path}: tensor {tensor.name} must be of type F32 and in the first part of the model")
        return list(struct.unpack_from(f"<{count}f", self._data, tensor.offset))

    def _value(self, key: str, wanted: str, fits: Any, array: bool = False) -> _Value | None:
        value = self._values.get(key)
        if value is not None and (not fits(value.kind) or (value.count is not None) != array):
            raise GGUFError(f"{self.path}: {key} is not {wanted}; convert the model again")
        return value

    def _scalar(self, key: str, wanted: str, formats: str) -> Any:
        value = self._value(key, wanted, lambda kind: _SCALARS.get(kind, " ") in formats)
        return None if value is None else self._unpack(value.kind, value.at, 1)[0]

    def _unpack(self, kind: int, at: int, count: int) -> list[Any]:
        return list(struct.unpack_from(f"<{count}{_SCALARS[kind]}", self._data, at))


def is_gguf(path: Path) -> bool:
    """Whether ``path`` is a GGUF file: by its name, or by how it begins."""
    if not path.is_file():
        return False
    if path.suffix == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def find_gguf(folder: Path) -> Path | None:
    """The GGUF model in a folder without safetensors; its first part where it is split. GGUFError: there are several.

    Projectors of images (``mmproj*``) are no models.
    """
    if next(folder.glob("*.safetensors"), None) is not None:
        return None
    files = sorted(path for path in folder.glob("*.gguf") if path.is_file() and not path.name.startswith("mmproj"))
    models = sorted({first_part(path) for path in files})
    if len(models) > 1:
        shown = ", ".join(path.name for path in models[:4]) + (" ..." if len(models) > 4 else "")
        raise GGUFError(f"{folder} holds {len(models)} GGUF models ({shown}); give the path of one of the files")
    return models[0] if models else None


def first_part(path: Path) -> Path:
    """The file that a split model begins with; ``path`` itself where it is no part of one."""
    part = _PART.fullmatch(path.name)
    return path if part is None else path.with_name(f"{part[1]}-00001-of-{part[3]}.gguf")


def open_gguf(path: Path) -> GGUF:
    """Read the header of a GGUF model, and of all its parts. GGUFError: it cannot be read or followed."""
    whole, tensors = _open_part(path)
    count = whole.integer("split.count") or 1
    if count > 1:
        named = _PART.fullmatch(path.name)
        if named is None or not 1 < count <= MAX_PARTS or int(named[2]) != 1 or int(named[3]) != count:
            raise GGUFError(f"{path}: it is a part of {count}; the first must be named NAME-00001-of-{count:05}.gguf")
        for number in range(2, count + 1):
            part, more = _open_part(path.with_name(f"{named[1]}-{number:05}-of-{count:05}.gguf"))
            if part.integer("split.no") != number - 1:
                raise GGUFError(f"{part.path}: split.no is {part.integer('split.no')}, not {number - 1}; rename it")
            tensors += more
    whole.tensors = {tensor.name: tensor for tensor in tensors}
    if len(whole.tensors) < len(tensors):
        names = [tensor.name for tensor in tensors]
        twice = next(name for name in whole.tensors if names.count(name) > 1)
        raise GGUFError(f"{path}: tensor {twice!r:.80} is there twice; download the model again")
    return whole


def _open_part(path: Path) -> tuple[GGUF, list[GGUFTensor]]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise GGUFError(f"{path}: cannot be read ({error.strerror}); are all parts of the model there?") from None
    return _Header(path, data).read()


class _Header:
    """Reads a header from its first byte to its last."""

    def __init__(self, path: Path, data: bytes | mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 0
        self.end = min(len(data), MAX_HEADER_BYTES)
        self.items = 0

    def read(self) -> tuple[GGUF, list[GGUFTensor]]:
        """Metadata, and what tensors there are."""
        if self.data[: len(MAGIC)] != MAGIC:
            self.fail("it does not begin as a GGUF file does; is it the right file, and wholly downloaded?")
        self.at = len(MAGIC)
        version = self.take("I")
        if version not in (2, 3):
            if version & 0xFFFF == 0:
                self.fail("it is big-endian; convert the model to little-endian")
            self.fail(f"it is of GGUF version {version}; versions 2 and 3 are read; convert the model again")
        num_tensors = self.count("tensors", MAX_TENSORS)
        values: dict[str, _Value] = {}
        for _ in range(self.count("keys", MAX_KEYS)):
            key = self.name("a key")
            if key in values:
                self.fail(f"key {key!r:.80} is there twice; convert the model again")
            values[key] = self.value(key)
        found = GGUF(self.path, self.data, values)
        return found, self.tensors(num_tensors, self.alignment(found))

    def alignment(self, found: GGUF) -> int:
        alignment = found.integer("general.alignment") if "general.alignment" in found else 32
        if alignment is None or not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
            self.fail(f"general.alignment is {alignment}; it must be a power of 2 from 8 to {2**20}")
        return alignment

    def tensors(self, count: int, alignment: int) -> list[GGUFTensor]:
        """Descriptions of tensors, whose data must lie in the file and apart from each other."""
        described = [self.tensor() for _ in range(count)]
        begin = -(-self.at // alignment) * alignment
        found, free = [], 0
        for name, kind, shape, offset in sorted(described, key=lambda each: each[3]):
            size = math.prod(shape) // kind.block * kind.size
            if offset % alignment or offset < free:
                self.fail(f"the data of tensor {name!r:.80} overlap with others or are not aligned (offset {offset})")
            if begin + offset + size > len(self.data):
                self.fail(
                    f"the data of tensor {name!r:.80} end at byte {begin + offset + size} of {len(self.data)}; "
                    "download the model again"
                )
            free = offset + size
            found.append(GGUFTensor(name, kind, shape, self.path, begin + offset, size))
        return found

    def tensor(self) -> tuple[str, TensorType, tuple[int, ...], int]:
        name = self.name("a tensor's name")
        dimensions = self.take("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self.fail(f"tensor {name!r:.80} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are read")
        sizes = [self.take("Q") for _ in range(dimensions)]
        number, offset = self.take("I"), self.take("Q")
        kind = TENSOR_TYPES.get(number)
        if kind is None:
            called = REFUSED_TYPES.get(number, f"number {number}")
            known = ", ".join(each.name for each in TENSOR_TYPES.values())
            self.fail(f"tensor {name!r:.80} is of type {called}, which is not supported; supported: {known}")
        if any(not 1 <= size <= 2**40 for size in sizes) or math.prod(sizes) > 2**48:
            self.fail(f"tensor {name!r:.80} has the shape {sizes}, which no file can hold; download the model again")
        if sizes[0] % kind.block:
            self.fail(f"tensor {name!r:.80} has rows of {sizes[0]} numbers; {kind.name} packs blocks of {kind.block}")
        return name, kind, tuple(reversed(sizes)), offset

    def value(self, key: str) -> _Value:
        kind = self.take("I")
        if kind in _SCALARS:
            at = self.at
            self.skip(struct.calcsize(_SCALARS[kind]))
            return _Value(kind, at)
        if kind == _TEXT:
            at = self.at
            self.skip_text()
            return _Value(kind, at)
        if kind != _ARRAY:
            self.fail(f"key {key!r:.80} has a value of type {kind}, which GGUF does not know; download the model again")
        return self.array(key)

    def array(self, key: str) -> _Value:
        kind, count, at = self.take("I"), self.take("Q"), self.at + 12
        at = self.at
        if kind in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _TEXT:
            self.items += count
            if self.items > MAX_ITEMS:
                self.fail(f"key {key!r:.80} lists {count} texts; {MAX_ITEMS} are allowed in a file")
            for _ in range(count):
                self.skip_text()
        else:
            self.fail(f"key {key!r:.80} lists values of type {kind}; only lists of numbers and of texts are read")
        return _Value(kind, at, count)

    def count(self, what: str, limit: int) -> int:
        found = self.take("Q")
        if found > limit:
            self.fail(f"it says it has {found} {what}; {limit} are allowed; is it the right file?")
        return int(found)

    def name(self, what: str) -> str:
        size = self.take("Q")
        if not 1 <= size <= MAX_NAME_BYTES:
            self.fail(f"{what} has {size} bytes at byte {self.at}; 1 to {MAX_NAME_BYTES} are allowed")
        at = self.at
        self.skip(size)
        return _decoded(self.path, what, self.data[at : at + size])

    def skip_text(self) -> None:
        self.skip(self.take("Q"))

    def skip(self, size: int) -> None:
        if size > self.end - self.at:
            known = "the file" if self.end == len(self.data) else f"the {self.end} bytes allowed for a header"
            self.fail(f"what begins at byte {self.at} ({size} bytes) runs past the end of {known}; download it again")
        self.at += size

    def take(self, form: str) -> Any:
        at = self.at
        self.skip(struct.calcsize(form))
        return struct.unpack_from(f"<{form}", self.data, at)[0]

    def fail(self, message: str) -> NoReturn:
        raise GGUFError(f"{self.path}: {message}")


def _text_at(path: Path, key: str, data: bytes | mmap.mmap, at: int) -> tuple[str, int]:
    """The text that begins at a byte, whose bounds were checked before, and where it ends."""
    (size,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + size
    return _decoded(path, key, data[at + 8 : end]), end


def _decoded(path: Path, what: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GGUFError(f"{path}: {what} is not UTF-8 at its byte {error.start}; convert the model again") from None
