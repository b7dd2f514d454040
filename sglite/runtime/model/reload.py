"""The weights of a model that runs: read by name, and replaced by those of another checkpoint or by single tensors.

    a folder   a whole checkpoint in Hugging Face layout; nothing is ever fetched
    bytes      a safetensors file with any of the checkpoint's tensors; others stay as they are

What the model has in codes is read as the numbers that they stand for, and coded again when it is written.

Names are those of a checkpoint, also where the model keeps several tensors in one. Everything that can be wrong is
found before the first value is written: names, shapes, types, NaN, a configuration that means another model. Nothing
is unpickled.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sglite.runtime.backend.base import Backend
from sglite.runtime.model.architectures import read_config
from sglite.runtime.model.checkpoint import TensorSource, held
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.errors import CheckpointMismatch, ModelError
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.model.loader import check_finite, check_fit, copy_from, open_source, read_for
from sglite.runtime.model.registry import model_class
from sglite.runtime.protocol import EXPERT_TOKENS
from sglite.runtime.quant.codes import Codes
from sglite.runtime.quant.packed import CodedSource

MAX_NAMED = 1000
"""Tensors that one message names."""
MAX_VALUES = 2**22
"""Values that are read at once."""
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_NOT_COMPARED = {"dtype", "quantization", "eos_token_ids", "bos_token_id", "has_head", "drafts"}
"""Of a checkpoint's configuration: weights are whole and cast, what is loaded and the ends of texts stay those of the
start."""
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


class HalfWritten(RuntimeError):
    """Writing weights failed in the middle."""


class ModelWeights:
    """See ``WeightStore`` for the promises.

    Args:
        weights: of the model.
        config: of the model; other checkpoints must mean the same.
        backend: what computes with the weights, in an order of its own.
    """

    def __init__(self, weights: WeightTable, config: ModelConfig, backend: Backend) -> None:
        self._weights = weights
        self._backend = backend
        self._config = config
        self._names = model_class(config).name_table(config)

    def check(self, source: str | bytes) -> None:
        """Whether the folder or file fits. ``ModelError`` names everything that does not."""
        self._take(source, write=False)

    def load(self, source: str | bytes) -> None:
        """Check, then write. ``HalfWritten``: some of it has been written, and the model is of no use any more."""
        self._take(source, write=True)

    def read(self, name: str, rows: int) -> list[Any]:
        """The first ``rows`` rows of a tensor as nested lists of floats; of ``EXPERT_TOKENS`` as whole numbers."""
        if name == EXPERT_TOKENS:
            return [counts.tolist() for counts in self._weights.expert_tokens[:rows]]
        part = self._part(name)
        if part is None:
            near = difflib.get_close_matches(name, [*self._weights.parts, *self._weights.tied], 1)
            hint = f"did you mean {near[0]}?" if near else "names are those of the checkpoint's safetensors files"
            raise ModelError(f"the model has no tensor {name!r:.200}; {hint}")
        if self._weights.converted(self._names.of(name) or name):
            raise ModelError(f"{name} is kept in another form than the checkpoint's; read it from the checkpoint")
        ours = self._names.of(name) or name
        length, *rest = self._weights.shape(ours) or (1,)
        count, width = min(rows, length), math.prod(rest)
        if count * width > MAX_VALUES:
            most = MAX_VALUES // width
            raise ModelError(f"{rows} rows of {name} are {count * width} values; read at most {most} rows at once")
        with self._weights.plain(self._backend, [ours]):
            found: list[Any] = self._weights.numbers(ours, rows).float().tolist()
        return found

    def _part(self, name: str) -> Tensor | None:
        ours = self._names.of(name) or name
        return self._weights.parts.get(self._weights.tied.get(ours, ours))

    def _take(self, source: str | bytes, write: bool) -> None:
        try:
            if isinstance(source, bytes):
                self._take_tensors(source, write)
            else:
                self._take_folder(Path(source), write)
        except (ModelError, HalfWritten):
            raise
        except Exception as error:  # the file system's, say
            said = " ".join(str(error).split())
            raise ModelError(f"the weights cannot be read ({type(error).__name__}: {said})") from error

    def _take_tensors(self, data: bytes, write: bool) -> None:
        tensors = _parse(data)
        named = {name: self._names.of(name) or name for name in tensors}
        with self._weights.plain(self._backend, named.values()):
            self._check_tensors(tensors)
            with _writing():
                for name, tensor in tensors.items() if write else ():
                    if named[name] in self._weights.parts:
                        self._weights.fill(named[name], tensor)

    def _take_folder(self, folder: Path, write: bool) -> None:
        if folder == Path() or not folder.expanduser().is_dir():
            shown = repr(str(folder))[:300]
            raise ModelError(f"{shown} is no folder where the engine runs; put it there, nothing is fetched")
        folder = folder.expanduser()
        with held(open_source(folder, self._checked_config(folder))) as checkpoint:
            self._check_codes(checkpoint)
            try:
                check_fit(checkpoint, self._weights, self._config)
            except CheckpointMismatch as error:
                raise ModelError(_all_names(folder, error)) from None
            _check_values(checkpoint, self._weights)
            with _writing():
                if write:
                    with self._weights.plain(self._backend, self._weights.parts):
                        copy_from(checkpoint, self._weights, shown=False)

    def _check_codes(self, checkpoint: TensorSource) -> None:
        """Codes are taken as they are or not at all: coded twice, numbers would lose what they were coded with."""
        codings = checkpoint.codings if isinstance(checkpoint, CodedSource) else {}
        quantised = checkpoint.quantised if isinstance(checkpoint, CodedSource) else frozenset()
        for name, coding in self._weights.coded.items():
            if name in quantised and codings.get(name) != coding:
                raise ModelError(
                    f"{checkpoint.folder}: {name} is quantised otherwise than in the model that runs; give an "
                    "unquantised checkpoint, or one that is quantised in the same way"
                )

    def _checked_config(self, folder: Path) -> ModelConfig:
        """This model's, with the quantisation of these weights; they may say what they are for, and then it must be."""
        if not (folder / "config.json").is_file():
            return self._config
        found = read_config(folder)
        wrong = [
            f"{name} {getattr(found, name)!r} instead of {getattr(self._config, name)!r}"
            for name in (item.name for item in fields(ModelConfig))
            if name not in _NOT_COMPARED and getattr(found, name) != getattr(self._config, name)
        ]
        if wrong:
            raise ModelError(f"{folder}: config.json is another model's: {'; '.join(wrong)}; start a server for it")
        return replace(self._config, quantization=found.quantization)

    def _check_tensors(self, tensors: dict[str, Tensor]) -> None:
        wrong = [fault for name, tensor in tensors.items() if (fault := self._fault(name, tensor, tensors))]
        if wrong:
            raise ModelError(f"{len(wrong)} of {len(tensors)} tensors do not fit: {_listed(wrong)}")
        if not tensors:
            raise ModelError("there is no tensor in it; send at least one")

    def _fault(self, name: str, tensor: Tensor, others: dict[str, Tensor]) -> str:
        part, ours = self._part(name), self._names.of(name) or name
        if part is None:
            return f"{name[:200]} is unexpected"
        if tuple(tensor.shape) != self._weights.shape(ours):
            return f"{name} has shape {list(tensor.shape)} instead of {list(self._weights.shape(ours))}"
        if tensor.dtype not in _FLOATS:
            return f"{name} has type {_name(tensor.dtype)} instead of one of {', '.join(map(_name, _FLOATS))}"
        if not tensor.isfinite().all():
            return f"{name} holds NaN or infinity"
        target = self._weights.tied.get(ours)
        if target is not None:
            same = (
                torch.equal(tensor.to(self._weights.dtype), others[target].to(self._weights.dtype))
                if target in others
                else self._weights.holds(target, tensor)
            )
            return "" if same else f"{name} differs from {target}, which is the same tensor in this model"
        return ""


def _check_values(checkpoint: TensorSource, weights: WeightTable) -> None:
    """ModelError for NaN and infinity, which would otherwise be found when half of the weights are written."""
    for name, found in read_for(checkpoint, weights):
        check_finite(checkpoint.folder, name, found if isinstance(found, Codes) else found.to(weights.dtype))


def pack(named: Iterable[tuple[str, Tensor]]) -> bytes:
    """Tensors by name as the bytes of a safetensors file."""
    return save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in named})


def _parse(data: bytes) -> dict[str, Tensor]:
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        if data.startswith(_PICKLES):
            raise ModelError(
                "this is a pickle, which can run code and is never opened; send safetensors.torch.save(tensors)"
            ) from None
        raise ModelError(f"this is no safetensors file ({error}); send safetensors.torch.save(tensors)") from None


def _all_names(folder: Path, error: CheckpointMismatch) -> str:
    kinds = {"missing": error.missing, "unexpected": error.unexpected, "of the wrong shape": error.wrong_shape}
    said = "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names)
    return f"{folder}: the tensors are not those of the model that runs: {said}"


def _listed(names: Iterable[str]) -> str:
    all_names = list(names)
    more = f" and {len(all_names) - MAX_NAMED} more" if len(all_names) > MAX_NAMED else ""
    return ", ".join(all_names[:MAX_NAMED]) + more


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise HalfWritten(f"the weights are half written, so nothing can be computed any more: {error}") from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
