"""From arguments to an executor that runs: the one place that puts backend, model, pool and worker together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.config import EngineArgs, EngineConfig, Facts, resolve
from sglite.runtime.executor.base import ThreadExecutor
from sglite.runtime.executor.worker import ModelWorker
from sglite.runtime.model.loader import load_model
from sglite.runtime.model.reload import ModelWeights
from sglite.runtime.pooling import Undeclared, read_pooling


@dataclass(frozen=True)
class Built:
    """An executor and what the engine must know of the model behind it."""

    executor: ThreadExecutor
    config: EngineConfig
    eos_ids: tuple[int, ...]
    weight_bytes: int


def build(args: EngineArgs, folder: Path) -> Built:
    """Load the model in ``folder`` and start a worker for it. Raises ModelError or ConfigError, in one line."""
    backend = CPUBackend(args.num_threads)
    pools = _pools(args, folder)
    loaded = load_model(
        folder,
        backend=backend,
        dtype=args.dtype,
        load_format=args.load_format,
        progress=args.show_progress,
        seed=args.random_seed,
        headless=pools,
    )
    facts = Facts(
        max_context=loaded.max_context,
        vocab_size=loaded.vocab_size,
        bytes_per_token=sum(group.bytes_per_token for group in loaded.groups),
        free_memory=backend.available_memory(),
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=backend.name,
        hidden_size=loaded.config.hidden_size,
        generates=loaded.config.has_head,
    )
    config = resolve(args, facts)
    pool = backend.allocate_pool(loaded.groups, num_pages=config.num_pages, page_size=config.page_size)
    worker = ModelWorker(loaded.model, backend, pool)
    executor = ThreadExecutor(worker, ModelWeights(loaded.weights, loaded.config))
    return Built(executor, config, loaded.eos_token_ids, loaded.weight_bytes)


def _pools(args: EngineArgs, folder: Path) -> bool:
    """Whether vectors are wanted of the model, which may then lack its output head. Undeclared: asked for, in vain."""
    try:
        read_pooling(folder, args.is_embedding)
    except Undeclared:
        if args.is_embedding:
            raise
        return False
    return True
