"""From arguments to an executor that runs: the one place that puts backend, model, pool and worker together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from sglite.runtime.backend.base import Backend, BackendError
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.select import backend_for
from sglite.runtime.backend.workload import Workload
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.config import ConfigError, EngineArgs, EngineConfig, Facts
from sglite.runtime.executor.base import ThreadExecutor
from sglite.runtime.executor.freed import keep_freed_memory
from sglite.runtime.executor.graphs import DecodeGraphs
from sglite.runtime.executor.pipeline import PipelinedExecutor
from sglite.runtime.executor.prepared import PreparedExecutor
from sglite.runtime.executor.profile import step_bytes
from sglite.runtime.executor.worker import ModelWorker
from sglite.runtime.gguf import is_gguf
from sglite.runtime.model.architectures import read_config
from sglite.runtime.model.loader import LoadedModel, load_model
from sglite.runtime.model.reload import ModelWeights
from sglite.runtime.pooling import Undeclared, read_pooling
from sglite.runtime.protocol import GroupSpec
from sglite.runtime.quant.methods import WHILE_LOADING, check_request, summary
from sglite.runtime.resolve import resolve
from sglite.runtime.sizing import running_of, step_tokens_of

logger = logging.getLogger(__name__)
_ELSEWHERE = {"cpu": ("cuda_graph_max_bs",), "cuda": ("cpu_kernels", "num_threads")}
"""Arguments that a device has no use for."""
MANY = 8192
"""Rows, or tokens of a step, where the caller does not say: no fewer than there are."""


@dataclass(frozen=True)
class Built:
    """An executor and what the engine must know of the model behind it."""

    executor: ThreadExecutor
    config: EngineConfig
    eos_ids: tuple[int, ...]
    weight_bytes: int


def build(args: EngineArgs, folder: Path) -> Built:
    """Load the model in ``folder`` and start a worker for it. Raises ModelError or ConfigError, in one line."""
    try:
        backend = backend_for(
            args.device,
            num_threads=args.num_threads,
            cpu_kernels=args.cpu_kernels,
            attention=args.attention_backend,
            cascade=args.cascade_attention,
            deterministic=args.enable_deterministic_inference,
        )
    except BackendError as error:
        raise ConfigError(str(error)) from None
    _name_what_is_in_vain(args, backend)
    pools = _pools(args, folder)
    quantization = {"quant_method": "gguf"} if is_gguf(folder) else read_config(folder).quantization
    check_request(args.quantization, quantization, folder)
    loaded = load_model(
        folder,
        backend=backend,
        dtype=args.dtype,
        load_format=args.load_format,
        progress=args.show_progress,
        seed=args.random_seed,
        headless=pools,
        quantization=args.quantization if args.quantization in WHILE_LOADING else None,
    )
    groups = in_cache_dtype(loaded.groups, args.kv_cache_dtype)
    _settle(args, loaded, backend, groups)
    precision = _precision(args, None if quantization is None else summary(quantization), loaded, backend)
    facts = _facts(args, loaded, backend, groups, precision)
    config = resolve(args, facts)
    pool = backend.allocate_pool(
        groups,
        num_pages=config.num_pages,
        page_size=config.page_size,
        num_states=config.num_states,
        num_frames=config.num_frames,
    )
    executor = _executor(loaded, backend, pool, config)
    return Built(executor, config, loaded.eos_token_ids, loaded.weight_bytes)


def _name_what_is_in_vain(args: EngineArgs, backend: Backend) -> None:
    """Log the arguments that concern another device than the one that computes."""
    for name in _ELSEWHERE.get(backend.name, ()):
        if getattr(args, name) != getattr(EngineArgs, name):
            logger.warning("%s=%r has no effect on %s", name, getattr(args, name), backend.name)


def _settle(args: EngineArgs, loaded: LoadedModel, backend: Backend, groups: Sequence[GroupSpec]) -> None:
    """Have the backend choose its kernels. ConfigError: those that are asked for cannot serve the model."""
    context = min(loaded.max_context, args.context_length or loaded.max_context)
    workload = Workload(
        groups=tuple(groups),
        num_heads=loaded.config.num_heads,
        dtype=loaded.dtype,
        page_size=args.page_size,
        rows=args.max_running_requests or MANY,
        tokens=args.chunked_prefill_size or args.max_prefill_tokens or MANY,
        context=context,
        sinks=any(name.endswith(".sinks") for name in loaded.weights.parts),
    )
    try:
        backend.settle(workload)
    except BackendError as error:
        raise ConfigError(str(error)) from None


def computes_with() -> tuple[str, bool]:
    """What an engine without arguments computes with, for people, and whether that is plain torch."""
    backend = backend_for()
    return f"{backend.name}: {backend.describe()}", type(backend) is CPUBackend


def _facts(
    args: EngineArgs, loaded: LoadedModel, backend: Backend, groups: Sequence[GroupSpec], quantization: str | None
) -> Facts:
    facts = Facts(
        max_context=loaded.max_context,
        vocab_size=loaded.vocab_size,
        bytes_per_token=sum(group.bytes_per_token for group in groups),
        free_memory=None,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=backend.name,
        kernels=backend.describe(),
        hidden_size=len(loaded.config.labels) or loaded.config.hidden_size,
        labels=loaded.config.labels,
        generates=loaded.config.has_head,
        quantization=quantization,
        cache_dtype=next((group.dtype for group in groups if group.kind == "paged"), None),
        bytes_per_state=sum(group.bytes_per_state for group in loaded.groups),
        window=next((group.window for group in groups if group.window is not None), None),
        window_bytes_per_token=sum(group.bytes_per_token for group in groups if group.window is not None),
        state_groups=tuple(group.name for group in loaded.groups if group.kind == "state"),
    )
    tokens = min(step_tokens_of(args, facts), facts.max_context)
    rows = running_of(args, facts) if loaded.config.has_head else 0
    try:
        needed: int | None = step_bytes(loaded.model, backend, groups, tokens, rows)
    except torch.OutOfMemoryError:
        needed = None  # more than there is
    available = backend.available_memory()
    if needed is None or (available is not None and available <= needed):
        raise ConfigError(
            f"{available:,} bytes of the device are free once the model is loaded and a step of {tokens:,} tokens "
            f"takes {'more' if needed is None else f'{needed:,}'}; use a smaller or a quantised model, or give less "
            "for max_prefill_tokens and max_running_requests"
        )
    return replace(facts, free_memory=None if available is None else available - needed)


def _executor(loaded: LoadedModel, backend: Backend, pool: KVPool, config: EngineConfig) -> ThreadExecutor:
    """Threads and a worker. On a device that works on its own, steps are launched ahead of their results."""
    weights = ModelWeights(loaded.weights, loaded.config, backend)
    if not backend.guarantees.asynchronous:
        keep_freed_memory()
        return PreparedExecutor(ModelWorker(loaded.model, backend, pool, device_slots=config.max_running), weights)
    pages = -(-config.context_length // config.page_size)
    graphs = DecodeGraphs(loaded.model, backend, pool, config.graph_sizes, min(pages, config.num_pages))
    worker = ModelWorker(loaded.model, backend, pool, device_slots=config.max_running, graphs=graphs)
    return PipelinedExecutor(worker, weights)


def in_cache_dtype(groups: Sequence[GroupSpec], name: str) -> list[GroupSpec]:
    """The groups with keys and values in the dtype that ``kv_cache_dtype`` names; states keep theirs.

    Raises ConfigError for int8 where a group's layers have no keys and values but latents.
    """
    if name == "auto":
        return list(groups)
    dtype = torch.bfloat16 if name == "bf16" else getattr(torch, name)
    return [group if group.kind == "state" else _cast(group, dtype) for group in groups]


def _cast(group: GroupSpec, dtype: torch.dtype) -> GroupSpec:
    if dtype == torch.int8 and group.layout == "mla":
        raise ConfigError(
            f"kv_cache_dtype='int8': the latents of group {group.name!r} are kept in floating point; "
            "use auto, bfloat16 or float32"
        )
    size = group.bytes_per_token // getattr(torch, group.dtype).itemsize * dtype.itemsize
    if dtype == torch.int8:
        size += 2 * group.num_kv_heads * group.num_layers * torch.float32.itemsize  # scales, see KVPool
    return msgspec.structs.replace(group, dtype=str(dtype).removeprefix("torch."), bytes_per_token=size)


def _precision(args: EngineArgs, stored: str | None, loaded: LoadedModel, backend: Backend) -> str | None:
    """How the weights are quantised, for people. What has no kernels here is logged."""
    bits = {coding.bits for coding in loaded.weights.coded.values()}
    if not bits <= set(backend.guarantees.codings):
        logger.warning("%s saves memory here and no time: plain torch has no kernels for it", args.quantization)
    share = f"{100 * loaded.weights.share_coded:.0f} % of the numbers"
    if stored is None:
        return f"{args.quantization} for {share}" if args.quantization in WHILE_LOADING else None
    return f"{stored}, kept for {share}" if bits else stored


def _pools(args: EngineArgs, folder: Path) -> bool:
    """Whether vectors are wanted of the model, which may then lack its output head. Undeclared: asked for, in vain."""
    try:
        read_pooling(folder, args.is_embedding)
    except Undeclared:
        if args.is_embedding:
            raise
        return False
    return True
