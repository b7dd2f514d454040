"""The backend of an NVIDIA GPU: sglite's own Triton kernels, FlashInfer's for attention, and torch's products.

What there is no kernel for is computed by ``cpu.py``'s plain torch, which runs on any device. Nothing here waits for
the device but what ``fetch`` returns, ``peak_memory`` and ``capture``. Under ``TRITON_INTERPRET=1`` the kernels run on
the CPU, in Python: that is how they are tested where there is no GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sglite.runtime.backend import sharing_choice
from sglite.runtime.backend.attention_choice import AttentionChoice
from sglite.runtime.backend.base import AttentionMetadata, BackendError, BatchLayout, FixedBatch, Guarantees
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cuda_plan import Planner, own
from sglite.runtime.backend.draws import Draws, Sampled
from sglite.runtime.backend.experts import ExpertWeights, Matrices, Routing
from sglite.runtime.backend.kernels import (
    attention,
    delta,
    greedy,
    latents,
    masks,
    products,
    rotary,
    route,
    rowwise,
    sampling,
)
from sglite.runtime.backend.kernels import experts as mixture
from sglite.runtime.backend.kernels.copies import Copies
from sglite.runtime.backend.kernels.device import INTERPRETED
from sglite.runtime.backend.sharing import ESTIMATED, asked_for
from sglite.runtime.backend.timing import elapsed_on
from sglite.runtime.backend.weights import Activation, Matrix, QKVNorms
from sglite.runtime.backend.workload import Workload
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import CopyPages, CopyState, GroupSpec

logger = logging.getLogger(__name__)
OLDEST = (8, 0)
"""Compute capability: bfloat16 in tensor cores."""


def cuda_backend(attention: str = "auto", *, cascade: str = "auto", deterministic: bool = False) -> CUDABackend:
    """The backend of the current GPU. BackendError: there is none, it is too old, or its kernels are not there."""
    if not INTERPRETED:
        if not torch.cuda.is_available():
            raise BackendError(
                "device='cuda': PyTorch sees no NVIDIA GPU; install a PyTorch that is built for CUDA, or use cpu"
            )
        found = torch.cuda.get_device_capability()
        if found < OLDEST:
            raise BackendError(
                f"device='cuda': {torch.cuda.get_device_name()} has compute capability {found[0]}.{found[1]}; "
                f"{OLDEST[0]}.{OLDEST[1]} or newer is needed"
            )
    return CUDABackend(attention, cascade=cascade, deterministic=deterministic)


class CUDABackend(CPUBackend):
    """``Backend`` on a GPU.

    ``attention``: who attends, see ``AttentionChoice``. ``cascade``: which steps read once what their rows share, see
    ``EngineArgs.cascade_attention``. ``deterministic``: attention adds up a row's slots in an order that does not
    depend on the batch.
    """

    name = "cuda"

    def __init__(self, attention: str = "auto", *, cascade: str = "auto", deterministic: bool = False) -> None:
        super().__init__()
        self.device = torch.device("cpu") if INTERPRETED else torch.device("cuda", torch.cuda.current_device())
        self.guarantees = Guarantees(
            batch_invariant=False, dtypes=(torch.float32, torch.bfloat16), codings=(8, 4), asynchronous=True
        )
        self._sharing = asked_for(cascade, attention, deterministic=deterministic)
        self._planner = Planner(self.device, sharing=self._sharing or ESTIMATED, deterministic=deterministic)
        self._choice = AttentionChoice(attention, self.device, deterministic=deterministic)
        self._copied: tuple[KVPool, Copies] | None = None
        self._graph_memory = None if INTERPRETED else torch.cuda.graph_pool_handle()

    def describe(self) -> str:
        kernels = f"attention: {self._choice.said}; {self._planner.sharing}"
        if INTERPRETED:
            return f"Triton kernels in its interpreter, for tests: thousands of times slower than on a GPU; {kernels}"
        return f"{torch.cuda.get_device_name(self.device)}, Triton kernels; {kernels}"

    def settle(self, workload: Workload) -> None:
        timed = elapsed_on(self.device)
        self._choice.settle(self, workload, timed)
        if self._sharing is None and self.device.type in sharing_choice.DEVICES:
            self._planner.sharing = sharing_choice.measured(self, self._planner, workload, timed)
        logger.info("attention: %s", self._planner.sharing)

    # --- memory -----------------------------------------------------------------------------------------------

    def available_memory(self) -> int | None:
        if INTERPRETED:
            return super().available_memory()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def peak_memory(self, run: Callable[[], None]) -> int:
        if INTERPRETED:
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before, free = torch.cuda.memory_reserved(self.device), torch.cuda.mem_get_info(self.device)[0]
        run()
        torch.cuda.synchronize(self.device)
        reserved = torch.cuda.max_memory_reserved(self.device) - before
        taken = free - torch.cuda.mem_get_info(self.device)[0]  # libraries take memory of their own
        return max(reserved, taken)

    def allocate_pool(
        self,
        groups: Sequence[GroupSpec],
        *,
        num_pages: int,
        page_size: int,
        num_states: int = 0,
        num_frames: int = 0,
    ) -> KVPool:
        self._planner.kv_heads = min((group.num_kv_heads for group in groups if group.kind == "paged"), default=1)
        return super().allocate_pool(
            groups, num_pages=num_pages, page_size=page_size, num_states=num_states, num_frames=num_frames
        )

    def stage(self, values: Sequence[int]) -> Tensor:
        tensor = torch.tensor(values, dtype=torch.int64, pin_memory=not INTERPRETED)
        return tensor.to(self.device, non_blocking=True)

    def fetch(self, *tensors: Tensor) -> Callable[[], list[Tensor]]:
        if INTERPRETED:
            return super().fetch(*tensors)
        host = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for there, tensor in zip(host, tensors, strict=True):
            there.copy_(tensor, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()

        def wait() -> list[Tensor]:
            done.synchronize()
            return host

        return wait

    # --- batches ----------------------------------------------------------------------------------------------

    def plan(self, layout: BatchLayout) -> AttentionMetadata:
        return self._choice.step(self._planner.plan(layout))

    def fixed_batch(self, rows: int, pool: KVPool, max_pages: int) -> FixedBatch | None:
        states = [group.name for group in pool.groups if group.kind == "state"]
        batch = self._planner.fixed(rows, max_pages, pool.page_size, groups=states, frames=pool.num_frames > 0)
        return self._choice.fixed(batch)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        if INTERPRETED:
            return run
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # kernels are compiled and libraries set up outside of the graph
            run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._graph_memory):
            run()
        return graph.replay

    # --- keys and values --------------------------------------------------------------------------------------

    def store_kv(self, pool: KVPool, layer: int, k: Tensor, v: Tensor | None, meta: AttentionMetadata) -> None:
        rotary.store_kv(pool, layer, k, v, own(meta).within(pool.framed[layer]).slot_mapping)

    def rotate_and_store(
        self,
        qkv: Tensor,
        norms: QKVNorms | None,
        cos: Tensor,
        sin: Tensor,
        pool: KVPool,
        layer: int,
        meta: AttentionMetadata,
        *,
        num_heads: int,
    ) -> Tensor:
        slots = own(meta).within(pool.framed[layer]).slot_mapping
        return rotary.rotate_and_store(qkv, norms, cos, sin, pool, layer, slots, num_heads=num_heads)

    def copy_pages(self, pool: KVPool, copies: Sequence[CopyPages], *, frames: bool = False) -> None:
        if copies:
            self._copies(pool).pages(copies, frames=frames)

    def copy_states(self, pool: KVPool, copies: Sequence[CopyState]) -> None:
        if copies:
            self._copies(pool).states(copies)

    def _copies(self, pool: KVPool) -> Copies:
        """Where the pool's tensors lie; kept for the pool that was asked for last."""
        if self._copied is None or self._copied[0] is not pool:
            self._copied = (pool, Copies(pool))
        return self._copied[1]

    # --- layers -----------------------------------------------------------------------------------------------

    def attention(
        self,
        q: Tensor,
        pool: KVPool,
        layer: int,
        meta: AttentionMetadata,
        *,
        scale: float,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        planned = own(meta)
        if planned.other is not None:
            if sinks is not None:
                raise BackendError("attention with sinks: flashinfer has none; use attention_backend='triton'")
            return planned.other.attend(q, pool, layer, scale=scale, window=window)
        return attention.attend(q, pool, layer, planned, scale=scale, window=window, sinks=sinks)

    def mla_attention(
        self,
        q: Tensor,
        pool: KVPool,
        layer: int,
        meta: AttentionMetadata,
        *,
        scale: float,
        chosen: Tensor | None = None,
    ) -> Tensor:
        return latents.mla_attention(q, pool, layer, own(meta), scale=scale, chosen=chosen)

    def choose_slots(
        self, q: Tensor, weights: Tensor, pool: KVPool, layer: int, meta: AttentionMetadata, *, top_k: int
    ) -> Tensor | None:
        return latents.choose_slots(q, weights, pool, layer, own(meta), top_k=top_k)

    def causal_conv(
        self, x: Tensor, weight: Tensor, pool: KVPool, group: str, layer: int, meta: AttentionMetadata
    ) -> Tensor:
        planned = own(meta)
        state = pool.states[group][layer][0]
        return delta.causal_conv(x, weight, state, planned.query_starts, planned.state_rows(group), planned.max_queries)

    def gated_delta_rule(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        decay: Tensor,
        beta: Tensor,
        pool: KVPool,
        group: str,
        layer: int,
        meta: AttentionMetadata,
    ) -> Tensor:
        planned = own(meta)
        state = pool.states[group][layer][1]
        rows = planned.query_starts, planned.state_rows(group), planned.max_queries
        return delta.gated_delta_rule(q, k, v, decay, beta, state, *rows)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rowwise.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return rowwise.add_rms_norm(x, added, weight, eps)

    def gated_norm(self, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rowwise.gated_norm(x, gate, weight, eps)

    def gated(self, x: Tensor, activation: Activation) -> Tensor:
        return rowwise.gated(x, activation)

    def route(self, logits: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
        return route.route(logits, bias, routing)

    def moe(self, x: Tensor, experts: ExpertWeights, ids: Tensor, weights: Tensor, activation: Activation) -> Tensor:
        return mixture.moe(x, experts, ids, weights, activation)

    def matmul_each(self, x: Tensor, weights: Matrices) -> Tensor:
        return products.matmul_each(x, weights)

    def matmul(self, x: Tensor, weight: Tensor | Matrix, bias: Tensor | None = None) -> Tensor:
        return products.matmul(x, weight, bias)

    # --- tokens -----------------------------------------------------------------------------------------------

    def logits(self, hidden: Tensor, head: Matrix) -> Tensor:
        return products.logits(hidden, head)

    def greedy(self, hidden: Tensor, head: Matrix) -> tuple[Tensor, Tensor]:
        return greedy.greedy(self.logits(hidden, head))

    def embedding(self, ids: Tensor, weight: Matrix) -> Tensor:
        return products.embedding(ids, weight)

    def sample(self, logits: Tensor, draws: Draws, bitmask: Tensor | None = None) -> Sampled:
        drawing = bool((draws.temperatures > 0).any())
        searching = bool(((draws.top_k > 0) | (draws.top_p < 1)).any())
        mask, sent = None if bitmask is None else self._send(bitmask), sampling.on_device(draws, self.device)
        own = logits if mask is None else logits.clone()  # masks are written there
        return sampling.sample(own, sent, mask, drawing=drawing, searching=searching)

    def apply_mask(self, logits: Tensor, bitmask: Tensor) -> None:
        masks.apply_mask(logits, self._send(bitmask))

    def _send(self, tensor: Tensor) -> Tensor:
        """Of the host, to the device, without waiting."""
        return tensor if INTERPRETED else tensor.pin_memory().to(self.device, non_blocking=True)
