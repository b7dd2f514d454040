"""From a model folder to a model that can run.

    config.json ──▶ class, size ──▶ does it fit? ──▶ tensors allocated, names bound ──▶ headers compared ──▶ data copied

Everything that can be wrong is found before the first byte of weights is read: an unknown architecture, memory that
will not do, tensors that are missing, too many or of another shape. Weights are cast on the way in.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend
from sglite.runtime.model.checkpoint import FLOAT_TYPES, Checkpoint, open_checkpoint
from sglite.runtime.model.config import ModelConfig, read_config
from sglite.runtime.model.errors import CheckpointMismatch, ModelError
from sglite.runtime.model.generation import GenerationDefaults, read_generation_defaults
from sglite.runtime.model.layers.decoder import CausalLM
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.model.progress import progress
from sglite.runtime.model.registry import model_class
from sglite.runtime.protocol import GroupSpec

LoadFormat = Literal["auto", "dummy"]
NAMES_SHOWN = 8
DUMMY_STD = 0.02


@dataclass(frozen=True)
class LoadedModel:
    """A model and what the rest of the runtime must know of it."""

    model: CausalLM
    config: ModelConfig
    groups: list[GroupSpec]
    dtype: torch.dtype
    vocab_size: int
    """Rows of the logits; a tokenizer may use fewer."""
    max_context: int
    defaults: GenerationDefaults
    weight_bytes: int
    weights: WeightTable
    """What the model computes with, by names of the checkpoint."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a sequence."""
        return self.defaults.eos_token_ids


def load_model(
    folder: str | Path,
    *,
    backend: Backend,
    dtype: str = "auto",
    load_format: LoadFormat = "auto",
    progress: bool | None = None,
    seed: int = 0,
    headless: bool = False,
) -> LoadedModel:
    """Load a folder in Hugging Face layout onto a backend.

    ``dtype``: ``auto`` (the checkpoint's where the backend has it, else bfloat16) or a name such as ``float32``.
    ``load_format="dummy"``: random weights from ``seed``, only config.json is needed. ``progress``: see
    ``progress.progress``. ``headless``: the checkpoint may lack its output head. Raises ModelError, in one line,
    for whatever cannot be used.
    """
    folder = Path(folder)
    if load_format not in ("auto", "dummy"):
        raise ModelError(f"load_format={load_format!r} is unknown; use 'auto' or 'dummy'")
    config = read_config(folder)
    torch_dtype = resolve_dtype(dtype, config, backend)
    if headless and load_format == "auto" and not config.tie_word_embeddings:
        config = replace(config, has_head="lm_head.weight" in open_checkpoint(folder).tensors)
    needed = weight_bytes(config, torch_dtype, backend)
    _check_memory(folder, needed, backend)
    checkpoint = open_checkpoint(folder) if load_format == "auto" else None
    weights = WeightTable(torch_dtype, backend.device)
    model = model_class(config)(config, weights, backend)
    if checkpoint is None:
        fill_randomly(weights, seed)
    else:
        fill_from(checkpoint, weights, config, progress)
    return LoadedModel(
        model=model,
        config=config,
        groups=model.cache_groups(),
        dtype=torch_dtype,
        vocab_size=config.vocab_size,
        max_context=config.max_context,
        defaults=read_generation_defaults(folder, config),
        weight_bytes=needed,
        weights=weights,
    )


def resolve_dtype(name: str, config: ModelConfig, backend: Backend) -> torch.dtype:
    """The torch type to load in; ModelError lists what the backend computes with."""
    served = {str(d).removeprefix("torch."): d for d in backend.guarantees.dtypes}
    if name == "auto":
        name = config.dtype if config.dtype in served else "bfloat16"
    if name not in served:
        raise ModelError(f"dtype={name!r} is not served by the {backend.name} backend; use auto or {', '.join(served)}")
    return served[name]


def weight_bytes(config: ModelConfig, dtype: torch.dtype, backend: Backend) -> int:
    """Memory of the weights, without allocating any."""
    weights = WeightTable(dtype, torch.device("meta"))
    model_class(config)(config, weights, backend)
    return weights.num_bytes


def fill_randomly(weights: WeightTable, seed: int) -> None:
    """Normal weights of deviation 0.02 and norms of 1; a tensor's values depend on its name, shape and the seed."""
    for name, part in weights.parts.items():
        if name.endswith("norm.weight"):
            part.fill_(1.0)
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        part.copy_(torch.empty(part.shape).normal_(0.0, DUMMY_STD, generator=generator))


def fill_from(checkpoint: Checkpoint, weights: WeightTable, config: ModelConfig, shown: bool | None) -> None:
    """Copy every tensor of the checkpoint to its place, after all of them were found to fit."""
    with checkpoint.held() as held:
        check_fit(held, weights, config)
        copy_from(held, weights, shown)


def check_fit(checkpoint: Checkpoint, weights: WeightTable, config: ModelConfig) -> None:
    """Compare all names, shapes and types, and values that are there twice. ModelError for what does not fit."""
    _compare(checkpoint, weights, config)
    for name, target in weights.tied.items():
        if name not in checkpoint.tensors:
            continue
        one, other = (tensor.to(weights.dtype) for _, tensor in checkpoint.read({name, target}))
        if not torch.equal(one, other):
            raise ModelError(
                f"{checkpoint.folder}: {name} differs from {target}, but config.json says "
                "tie_word_embeddings=true; set it to false if the model has a head of its own"
            )


def copy_from(checkpoint: Checkpoint, weights: WeightTable, shown: bool | None) -> None:
    """Copy every tensor of a checkpoint that fits to its place."""
    total = sum(part.nbytes for part in weights.parts.values())
    with progress("loading weights", total, shown) as advance:
        for name, tensor in checkpoint.read(set(weights.parts)):
            part = weights.parts[name]
            part.copy_(tensor)
            advance(part.nbytes)


def _compare(checkpoint: Checkpoint, weights: WeightTable, config: ModelConfig) -> None:
    found, wanted = checkpoint.tensors, weights.parts
    _check_vocabulary(checkpoint, config)
    missing = [f"{name} {list(part.shape)}" for name, part in wanted.items() if name not in found]
    unexpected = [
        f"{name} {list(info.shape)}"
        for name, info in found.items()
        if name not in wanted and name not in weights.tied and not name.endswith("rotary_emb.inv_freq")
    ]
    wrong = [
        f"{name} {list(found[name].shape)} instead of {list(part.shape)}"
        for name, part in _both(checkpoint, weights)
        if found[name].shape != tuple(part.shape)
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of the wrong shape": wrong}
    if any(kinds.values()):
        said = "; ".join(f"{len(names)} {kind}: {_shorten(names)}" for kind, names in kinds.items() if names)
        raise CheckpointMismatch(
            f"{checkpoint.folder}: the tensors do not fit {config.architecture} as config.json describes it: {said}; "
            "check that config.json belongs to these weights",
            missing=tuple(missing),
            unexpected=tuple(unexpected),
            wrong_shape=tuple(wrong),
        )
    for name, _ in _both(checkpoint, weights):
        if found[name].dtype not in FLOAT_TYPES:
            raise ModelError(
                f"{checkpoint.folder}: {name} has type {found[name].dtype}; quantized checkpoints are not supported, "
                "use the unquantized one"
            )


def _both(checkpoint: Checkpoint, weights: WeightTable) -> Iterator[tuple[str, Tensor]]:
    """Names that are in the checkpoint and wanted, tied ones included, with the tensor they must look like."""
    for name, part in weights.parts.items():
        if name in checkpoint.tensors:
            yield name, part
    for name, target in weights.tied.items():
        if name in checkpoint.tensors:
            yield name, weights.parts[target]


def _check_vocabulary(checkpoint: Checkpoint, config: ModelConfig) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        info = checkpoint.tensors.get(name)
        if info is not None and info.shape and info.shape[0] != config.vocab_size:
            raise ModelError(
                f"{checkpoint.folder}: {name} has {info.shape[0]} rows, but config.json says "
                f"vocab_size={config.vocab_size}; correct the one that is wrong"
            )


def _check_memory(folder: Path, needed: int, backend: Backend) -> None:
    available = backend.available_memory()
    if available is not None and needed > available:
        raise ModelError(
            f"{folder}: the weights need {needed / 2**30:.1f} GiB, but {available / 2**30:.1f} GiB are available; "
            "free memory, use dtype=bfloat16 or a smaller model"
        )


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
