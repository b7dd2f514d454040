"""From a model folder to a model that can run.

    config.json ──▶ class, size ──▶ does it fit? ──▶ tensors allocated, names bound ──▶ headers compared ──▶ data copied

Everything that can be wrong is found before the first byte of weights is read: an unknown architecture, memory that
will not do, tensors that are missing, too many or of another shape. Weights are cast on the way in, or coded.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend
from sglite.runtime.gguf import is_gguf
from sglite.runtime.model.architectures import read_config
from sglite.runtime.model.checkpoint import FLOAT_TYPES, TensorInfo, TensorSource, held, open_checkpoint
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.errors import CheckpointMismatch, ModelError
from sglite.runtime.model.generation import GenerationDefaults, read_generation_defaults
from sglite.runtime.model.gguf_tensors import open_gguf_source
from sglite.runtime.model.layers.codings import Codings
from sglite.runtime.model.layers.decoder import CausalLM
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.model.progress import progress
from sglite.runtime.model.registry import model_class
from sglite.runtime.protocol import GroupSpec
from sglite.runtime.quant.codes import Codes, Coding
from sglite.runtime.quant.dequantise import dequantised
from sglite.runtime.quant.packed import CodedSource

LoadFormat = Literal["auto", "dummy"]
NAMES_SHOWN = 8
LOADED_AS: Mapping[str, str] = MappingProxyType(
    {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
)
"""Type of a file -> what its weights are best loaded in, as torch names it."""
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
    drafts: bool = False,
    quantization: str | None = None,
) -> LoadedModel:
    """Load a folder in Hugging Face layout onto a backend.

    ``dtype``: ``auto`` (the checkpoint's where the backend has it, else bfloat16) or a name such as ``float32``.
    ``load_format="dummy"``: random weights from ``seed``, only config.json is needed. ``progress``: see
    ``progress.progress``. ``headless``: the checkpoint may lack its output head. ``drafts``: load
    the layers for multi-token prediction too, which otherwise stay in the file. ``quantization``: ``int8`` or ``int4``,
    see ``Codings``; matrices that the checkpoint has in codes for which the backend has kernels are kept in them.
    Raises ModelError, in one line, for whatever cannot be used.
    """
    folder = Path(folder)
    if load_format not in ("auto", "dummy"):
        raise ModelError(f"load_format={load_format!r} is unknown; use 'auto' or 'dummy'")
    config = with_drafts(folder, read_config(folder)) if drafts else read_config(folder)
    source = open_source(folder, config) if load_format == "auto" else None
    torch_dtype = resolve_dtype(dtype, config, backend, source)
    if headless and source is not None and not config.tie_word_embeddings:
        config = replace(config, has_head="lm_head.weight" in source.tensors)
    found = None if source is None else {name: info.shape for name, info in source.tensors.items()}
    codings = Codings(quantization, kept_codings(source, backend), backend.guarantees.coded_experts)
    needed = weight_bytes(config, torch_dtype, backend, found, codings)
    _check_memory(folder, config, torch_dtype, needed, backend, found, codings)
    weights = WeightTable(torch_dtype, backend.device, found, codings)
    model = model_class(config)(config, weights, backend)
    weights.place(backend)
    if source is None:
        fill_randomly(weights, seed)
    else:
        fill_from(source, weights, config, progress)
    weights.pack(backend)
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


def with_drafts(folder: Path, config: ModelConfig) -> ModelConfig:
    """``config`` with its drafting layers; ModelError where there are none."""
    if not config.draft_layers:
        raise ModelError(f"{folder}: {config.architecture} with num_nextn_predict_layers=0 has no layers that draft")
    return replace(config, drafts=True)


def open_source(folder: Path, config: ModelConfig) -> TensorSource:
    """The tensors of a folder, or of a GGUF file, by the names of their family, unquantised."""
    if is_gguf(folder):
        return open_gguf_source(folder, config)
    checkpoint = open_checkpoint(folder).renamed(model_class(config).name_table(config))
    return checkpoint if config.quantization is None else dequantised(checkpoint, config.quantization)


def resolve_dtype(name: str, config: ModelConfig, backend: Backend, source: TensorSource | None = None) -> torch.dtype:
    """The torch type to load in; ModelError lists what the backend computes with.

    ``auto``: the config's or, where it names none, that of most numbers in ``source``, if they are stored as they are.
    """
    served = {str(d).removeprefix("torch."): d for d in backend.guarantees.dtypes}
    if name == "auto":
        whole = {} if source is None or config.quantization is not None else source.tensors
        said = config.dtype or _most_stored(whole)
        name = said if said in served else "bfloat16"
    if name not in served:
        raise ModelError(f"dtype={name!r} is not served by the {backend.name} backend; use auto or {', '.join(served)}")
    return served[name]


def _most_stored(tensors: Mapping[str, TensorInfo]) -> str:
    """What most numbers are best loaded in, as torch names it; empty where there are no floats."""
    counts: Counter[str] = Counter()
    for info in tensors.values():
        if info.dtype in LOADED_AS:
            counts[LOADED_AS[info.dtype]] += math.prod(info.shape)
    return counts.most_common(1)[0][0] if counts else ""


def kept_codings(source: TensorSource | None, backend: Backend) -> Mapping[str, Coding]:
    """What stays in the source's codes, by name: that for which the backend has kernels."""
    if not isinstance(source, CodedSource):
        return {}
    return {name: coding for name, coding in source.codings.items() if coding.bits in backend.guarantees.codings}


def weight_bytes(
    config: ModelConfig,
    dtype: torch.dtype,
    backend: Backend,
    found: Mapping[str, tuple[int, ...]] | None = None,
    codings: Codings = Codings(),  # noqa: B008  (frozen)
) -> int:
    """Memory of the weights, without allocating any. ``found``, ``codings``: see ``WeightTable``."""
    weights = WeightTable(dtype, torch.device("meta"), found, codings)
    model_class(config)(config, weights, backend)
    return weights.num_bytes


def fill_randomly(weights: WeightTable, seed: int) -> None:
    """Normal weights of deviation 0.02 and norms of 1; a tensor's values depend on its name, shape, the seed and
    the kind of device."""
    for name, part in weights.parts.items():
        if name.endswith("norm.weight"):
            part.fill_(1.0)
            continue
        generator = torch.Generator(part.device).manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        shape = weights.shape(name) if name in weights.coded else part.shape
        numbers = torch.empty(shape, device=part.device).normal_(0.0, DUMMY_STD, generator=generator)
        if name in weights.coded:
            weights.fill(name, numbers)
        else:
            part.copy_(numbers)


def fill_from(source: TensorSource, weights: WeightTable, config: ModelConfig, shown: bool | None) -> None:
    """Copy every tensor of the source to its place, after all of them were found to fit."""
    with held(source) as opened:
        check_fit(opened, weights, config)
        copy_from(opened, weights, shown)


def check_fit(checkpoint: TensorSource, weights: WeightTable, config: ModelConfig) -> None:
    """Compare all names, shapes and types, and values that are there twice. ModelError for what does not fit."""
    _compare(checkpoint, weights, config)
    for name, target in weights.tied.items():
        if name not in checkpoint.tensors:
            continue
        one, other = (tensor.to(weights.dtype) for _, tensor in checkpoint.read({name, target}))
        if not torch.equal(one, other):
            tied = "config.json says tie_word_embeddings=true; set it to false if the model has a head of its own"
            shared = "the two are one tensor in this family; check that they belong to one checkpoint"
            raise ModelError(
                f"{checkpoint.folder}: {name} differs from {target}, but {tied if name == 'lm_head.weight' else shared}"
            )


def copy_from(checkpoint: TensorSource, weights: WeightTable, shown: bool | None) -> None:
    """Copy every tensor of a checkpoint that fits to its place."""
    total = sum(part.nbytes for part in weights.parts.values())
    with progress("loading weights", total, shown) as advance:
        for name, tensor in read_for(checkpoint, weights):
            weights.fill(name, tensor)
            check_finite(checkpoint.folder, name, weights.part(name))
            advance(weights.parts[name].nbytes)


def read_for(checkpoint: TensorSource, weights: WeightTable) -> Iterator[tuple[str, Tensor | Codes]]:
    """Every tensor that the table has, one after the other; in codes what is in the same codes there."""
    codings = checkpoint.codings if isinstance(checkpoint, CodedSource) else {}
    same = {name for name, coding in weights.coded.items() if codings.get(name) == coding}
    yield from checkpoint.read(weights.parts.keys() - same)
    if isinstance(checkpoint, CodedSource) and same:
        yield from checkpoint.read_codes(same)


def check_finite(folder: Path, name: str, part: Tensor | Codes) -> None:
    """ModelError for NaN or infinity, which codes have in their scales. A sum shows them in one pass; where it
    overflows, each number is looked at."""
    numbers = part.scales if isinstance(part, Codes) else part
    if not math.isfinite(numbers.sum().item()) and not numbers.isfinite().all():
        raise ModelError(f"{folder}: {name} holds NaN or infinity; the checkpoint is damaged")


def _compare(checkpoint: TensorSource, weights: WeightTable, config: ModelConfig) -> None:
    found, wanted = checkpoint.tensors, weights.parts
    _check_vocabulary(checkpoint, config)
    known = [name for name in (*wanted, *weights.tied) if name in found]
    missing = [f"{name} {list(weights.shape(name))}" for name in wanted if name not in found]
    unexpected = [
        f"{info.name} {list(info.shape)}"
        for name, info in found.items()
        if name not in wanted and name not in weights.tied
    ]
    wrong = [
        f"{found[name].name} {list(found[name].shape)} instead of {list(weights.shape(name))}"
        for name in known
        if found[name].shape != weights.shape(name)
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
    for name in known:
        if found[name].dtype not in FLOAT_TYPES:
            raise ModelError(
                f"{checkpoint.folder}: {name} has type {found[name].dtype}, but config.json has no quantization_config "
                "that says what it stands for; check that it belongs to these weights"
            )


def _check_vocabulary(checkpoint: TensorSource, config: ModelConfig) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        info = checkpoint.tensors.get(name)
        if info is not None and info.shape and info.shape[0] != config.vocab_size:
            raise ModelError(
                f"{checkpoint.folder}: {name} has {info.shape[0]} rows, but config.json says "
                f"vocab_size={config.vocab_size}; correct the one that is wrong"
            )


def _check_memory(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    needed: int,
    backend: Backend,
    found: Mapping[str, tuple[int, ...]] | None,
    codings: Codings,
) -> None:
    """ModelError where the weights do not fit, with what would."""
    available = backend.available_memory()
    if available is None or needed <= available:
        return
    sizes = {other: weight_bytes(config, other, backend, found, codings) for other in backend.guarantees.dtypes}
    smallest = min(sizes, key=lambda other: sizes[other])
    name = str(smallest).removeprefix("torch.")
    if sizes[smallest] <= available:
        advice = f"they fit as {name} ({_gib(sizes[smallest])}): use dtype={name}"
    else:
        most = available / smallest.itemsize / 1e9
        advice = f"free memory or use a model of at most {most:.1f} billion parameters, which fit as {name}"
    told = f"the weights need {_gib(needed)} as {str(dtype).removeprefix('torch.')}"
    raise ModelError(f"{folder}: {told}, but {_gib(available)} are available; {advice}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
