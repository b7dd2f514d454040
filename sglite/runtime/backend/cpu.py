"""The specification: every backend call in plain torch on the CPU, in float32 or bfloat16.

Attention works in segments (``cpu_plan``). Padding repeats a slot of the same row behind a mask, so a row never touches
another's values and depends on its batch by rounding only. Keys and values are never repeated for grouped queries:
torch's kernel reads each KV head for its whole group (``enable_gqa``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sglite.runtime.backend.base import AttentionMetadata, BackendError, BatchLayout, FixedBatch, Guarantees
from sglite.runtime.backend.cpu_cache import read, store
from sglite.runtime.backend.cpu_delta import causal_conv, gated_delta_rule
from sglite.runtime.backend.cpu_mla import attend_chosen, attend_latents, choose_slots
from sglite.runtime.backend.cpu_plan import CPUMetadata, Segment, own, plan
from sglite.runtime.backend.cpu_quantised import product
from sglite.runtime.backend.cpu_route import route
from sglite.runtime.backend.cpu_sample import sample
from sglite.runtime.backend.draws import Draws, Sampled
from sglite.runtime.backend.experts import ExpertWeights, Matrices, Routing
from sglite.runtime.backend.mask import CPUMasks
from sglite.runtime.backend.weights import Activation, DenseStack, Matrix, QKVNorms
from sglite.runtime.backend.workload import Workload
from sglite.runtime.cache.pool import KVPool, make_pool
from sglite.runtime.protocol import CopyPages, CopyState, GroupSpec

SWIGLU_LIMIT, SWIGLU_ALPHA = 7.0, 1.702
"""gpt-oss's clamp and slope."""
_CGROUP = Path("/sys/fs/cgroup")


class CPUBackend:
    """``Backend`` in plain torch.

    ``num_threads`` sets torch's worker threads for the process; ``None`` leaves them, unless the control group allows
    less: more threads than that are stopped in turn, and all wait for the one that is.
    """

    name = "cpu"
    device = torch.device("cpu")
    guarantees = Guarantees(batch_invariant=False, dtypes=(torch.float32, torch.bfloat16), coded_experts=True)

    def __init__(self, num_threads: int | None = None) -> None:
        if num_threads is not None:
            if num_threads < 1:
                raise BackendError(f"num_threads={num_threads}: give 1 or more, or None for torch's own choice")
            torch.set_num_threads(num_threads)
        elif (allowed := _cgroup_processors(_CGROUP)) is not None and allowed < torch.get_num_threads():
            torch.set_num_threads(allowed)
        self._masks = CPUMasks()

    def describe(self) -> str:
        return f"plain torch, {torch.get_num_threads()} threads; native kernels are several times faster"

    def available_memory(self) -> int | None:
        """What the kernel says is available, or what the control group leaves when that is less."""
        known = (_meminfo_available(Path("/proc/meminfo")), _cgroup_left(_CGROUP))
        return min((n for n in known if n is not None), default=None)

    def peak_memory(self, run: Callable[[], None]) -> int:
        return 0

    def settle(self, workload: Workload) -> None:
        """There is nothing to choose from."""

    def allocate_pool(
        self,
        groups: Sequence[GroupSpec],
        *,
        num_pages: int,
        page_size: int,
        num_states: int = 0,
        num_frames: int = 0,
    ) -> KVPool:
        if num_pages < 1 or page_size < 1:
            raise BackendError(f"pool of {num_pages} pages of {page_size} positions: both must be at least 1")
        dtypes = {str(d).removeprefix("torch."): d for d in self.guarantees.dtypes}
        for group in groups:
            if (group.kind == "state") != (group.layout == "recurrent"):
                raise BackendError(
                    f"cache group {group.name!r}: {group.kind}/{group.layout} is not served by the {self.name} "
                    "backend; it serves paged/mha, paged/mla and state/recurrent"
                )
            if group.kind == "state" and num_states < 1:
                raise BackendError(f"cache group {group.name!r} needs states, num_states={num_states}; give 1 or more")
            served = [*dtypes, *(["int8"] if group.layout == "mha" else [])]
            for dtype in (tensor.dtype for tensor in group.state_tensors) if group.kind == "state" else (group.dtype,):
                if dtype not in served:
                    raise BackendError(
                        f"cache group {group.name!r}: dtype {dtype!r} is not served by the {self.name} backend; "
                        f"it serves {', '.join(served)} for {group.layout}"
                    )
        dtypes["int8"] = torch.int8
        return make_pool(groups, num_pages, page_size, dtypes, self.device, num_states, num_frames)

    def plan(self, layout: BatchLayout) -> AttentionMetadata:
        return plan(layout)

    def stage(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)

    def fetch(self, *tensors: Tensor) -> Callable[[], list[Tensor]]:
        kept = [tensor.clone() for tensor in tensors]
        return lambda: kept

    def fixed_batch(self, rows: int, pool: KVPool, max_pages: int) -> FixedBatch | None:
        return None

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        return run

    def place(self, weight: Matrix | Matrices) -> None:
        """Wherever it is."""

    def pack(self, weight: Matrix | Matrices) -> None:
        """Torch takes weights as they are."""

    def unpack(self, weight: Matrix | Matrices) -> None:
        """They are as they were."""

    def store_kv(self, pool: KVPool, layer: int, k: Tensor, v: Tensor | None, meta: AttentionMetadata) -> None:
        store(pool, layer, k, v, self._planned(meta).within(pool.framed[layer]))

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
        out = q.new_empty((*q.shape[:2], pool.v[layer].shape[2]))
        for segment in self._planned(meta).within(pool.framed[layer]).segments(window):
            keys, values = read(pool, layer, segment.slots, q.dtype)
            parts = (
                _heads_first(q[segment.tokens], segment.rows),
                _heads_first(keys, segment.rows),
                _heads_first(values, segment.rows),
            )
            result = _attend(*parts, segment, scale) if sinks is None else _with_sinks(*parts, segment, scale, sinks)
            out[segment.tokens] = result.transpose(1, 2).flatten(0, 1)
        return out

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
        _, kv_heads, dim = pool.k[layer].shape
        q, k, v = torch.split(qkv.view(len(qkv), -1, dim), [num_heads, kv_heads, kv_heads], dim=1)
        if norms is not None:
            q, k = self.rms_norm(q, norms.q, norms.eps), self.rms_norm(k, norms.k, norms.eps)
        self.store_kv(pool, layer, _turned(k, cos, sin), v, meta)
        return _turned(q, cos, sin)

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
        latents, size = pool.k[layer].flatten(1), pool.v[layer].shape[2]
        if chosen is not None:
            return attend_chosen(q, latents, size, chosen, scale)
        return attend_latents(q, latents, size, self._planned(meta).segments(), scale)

    def choose_slots(
        self, q: Tensor, weights: Tensor, pool: KVPool, layer: int, meta: AttentionMetadata, *, top_k: int
    ) -> Tensor | None:
        return choose_slots(q, weights, pool.k[layer].flatten(1), self._planned(meta), top_k)

    def causal_conv(
        self, x: Tensor, weight: Tensor, pool: KVPool, group: str, layer: int, meta: AttentionMetadata
    ) -> Tensor:
        return causal_conv(x, weight, pool.states[group][layer][0], self._planned(meta).runs(group))

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
        return gated_delta_rule(q, k, v, decay, beta, pool.states[group][layer][1], self._planned(meta).runs(group))

    def copy_pages(self, pool: KVPool, copies: Sequence[CopyPages], *, frames: bool = False) -> None:
        rooms = pool.num_frames if frames else pool.num_pages
        for copy in copies:
            inside = min(copy.src, copy.dst) >= 0 and max(copy.src, copy.dst) < rooms
            if not (inside and 0 <= copy.num_tokens <= pool.page_size):
                raise BackendError(
                    f"{copy}: outside a pool of {rooms} {'frames' if frames else 'pages'} of {pool.page_size} positions"
                )
            src, dst = copy.src * pool.page_size, copy.dst * pool.page_size
            for tensor in pool.paged(frames):
                tensor[dst : dst + copy.num_tokens] = tensor[src : src + copy.num_tokens]

    def matmul(self, x: Tensor, weight: Tensor | Matrix, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Tensor):
            return F.linear(x, weight, bias)
        whole = _whole(weight)
        return F.linear(x, whole, bias) if weight.codes is None else product(x, weight.codes, bias).to(x.dtype)

    def logits(self, hidden: Tensor, head: Matrix) -> Tensor:
        whole = _whole(head)
        return F.linear(hidden, whole).float() if head.codes is None else product(hidden, head.codes)

    def greedy(self, hidden: Tensor, head: Matrix) -> tuple[Tensor, Tensor]:
        best = self.logits(hidden, head).max(dim=1)
        return best.indices, best.values

    def embedding(self, ids: Tensor, weight: Matrix) -> Tensor:
        whole = _whole(weight)
        if weight.codes is None:
            return F.embedding(ids, whole)
        return weight.codes.at(ids).numbers().to(weight.dtype)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)

    def add_rms_norm(self, x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total = x + added
        return total, self.rms_norm(total, weight, eps)

    def dense_layers(
        self,
        x: Tensor,
        stack: DenseStack,
        cos: Tensor,
        sin: Tensor,
        pool: KVPool,
        meta: AttentionMetadata,
        begun: Callable[[], None] | None = None,
    ) -> Tensor:
        if begun is not None:
            begun()
        for a in stack.layers:
            qkv = self.matmul(self.rms_norm(x, *a.attention_norm), *a.qkv)
            q = self.rotate_and_store(qkv, a.norms, cos, sin, pool, a.layer, meta, num_heads=a.heads)
            seen = self.attention(q, pool, a.layer, meta, scale=a.scale, window=a.window, sinks=a.sinks)
            x, normed = self.add_rms_norm(x, self.matmul(seen.flatten(1), *a.out), *a.mlp_norm)
            x = x + self.matmul(self.gated(self.matmul(normed, *a.gate_up), a.activation), *a.down)
        return x

    def gated_norm(self, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed = F.rms_norm(x.to(weight.dtype), weight.shape, weight, eps)
        return (normed * F.silu(gate.to(weight.dtype))).to(x.dtype)

    def gated(self, x: Tensor, activation: Activation) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        if activation == "silu":
            return F.silu(gate) * up
        if activation == "swiglu_oai":
            gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
            return gate * torch.sigmoid(SWIGLU_ALPHA * gate) * (up + 1)
        return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up

    def route(self, logits: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
        return route(logits, bias, routing)

    def moe(self, x: Tensor, experts: ExpertWeights, ids: Tensor, weights: Tensor, activation: Activation) -> Tensor:
        top_k = ids.shape[1]
        order = ids.flatten().argsort(stable=True)  # (token, choice) pairs, expert by expert
        counts = ids.flatten().bincount(minlength=experts.down.shape[0]).tolist()
        rows = x.index_select(0, order // top_k)
        results = torch.empty_like(rows)
        first = 0
        for expert, count in enumerate(counts):
            if count:
                part = slice(first, first + count)
                results[part] = self._expert(rows[part], experts, expert, activation)
                first += count
        unsorted = torch.empty_like(results)
        unsorted[order] = results
        return (unsorted.view(len(x), top_k, -1) * weights[..., None].to(x.dtype)).sum(1)

    def _expert(self, x: Tensor, experts: ExpertWeights, expert: int, activation: Activation) -> Tensor:
        up_bias = None if experts.gate_up_bias is None else experts.gate_up_bias[expert]
        down_bias = None if experts.down_bias is None else experts.down_bias[expert]
        hidden = self.gated(self._multiply(x, experts.gate_up, expert, up_bias), activation)
        return self._multiply(hidden, experts.down, expert, down_bias)

    def _multiply(self, x: Tensor, weights: Matrices, index: int, bias: Tensor | None) -> Tensor:
        """``matmul`` with one of several weights."""
        whole, codes = _whole(weights), weights.codes_of(index)
        return F.linear(x, whole[index], bias) if codes is None else product(x, codes, bias).to(x.dtype)

    def matmul_each(self, x: Tensor, weights: Matrices) -> Tensor:
        return torch.bmm(x.transpose(0, 1), _whole(weights).transpose(1, 2)).transpose(0, 1)

    def copy_states(self, pool: KVPool, copies: Sequence[CopyState]) -> None:
        for copy in copies:
            for tensor in (tensor for layer in pool.states[copy.group] for tensor in layer):
                if copy.src < 0:
                    tensor[copy.dst].zero_()
                else:
                    tensor[copy.dst] = tensor[copy.src]

    def sample(self, logits: Tensor, draws: Draws, bitmask: Tensor | None = None) -> Sampled:
        return sample(logits, draws, bitmask, self.apply_mask)

    def apply_mask(self, logits: Tensor, bitmask: Tensor) -> None:
        self._masks.apply(logits, bitmask)

    def _planned(self, meta: AttentionMetadata) -> CPUMetadata:
        """``meta`` as plain torch runs it."""
        return own(meta)


def _whole(weight: Matrix | Matrices) -> Tensor:
    """The weight's numbers as they are multiplied."""
    if weight.packed:
        raise BackendError("the weight was packed by another backend; unpack it there first")
    return weight.tensor


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned, kept = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
    a, b = turned.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, kept), dim=-1)


def _attend(q: Tensor, k: Tensor, v: Tensor, segment: Segment, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=segment.mask, is_causal=segment.causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _with_sinks(q: Tensor, k: Tensor, v: Tensor, segment: Segment, scale: float, sinks: Tensor) -> Tensor:
    """As ``_attend``; the softmax has one more column."""
    rows, heads, tokens, _ = q.shape
    grouped = q.view(rows, k.shape[1], -1, tokens, q.shape[3])
    scores = torch.matmul(grouped, k[:, :, None].transpose(-1, -2)).flatten(1, 2).float() * scale
    if segment.causal:
        scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    if segment.mask is not None:
        scores.masked_fill_(~segment.mask, -torch.inf)
    column = sinks.float().view(1, heads, 1, 1).expand(rows, heads, tokens, 1)
    shares = torch.cat((scores, column), dim=-1).softmax(-1)[..., :-1].to(v.dtype)
    return torch.matmul(shares.view(rows, k.shape[1], -1, tokens, k.shape[2]), v[:, :, None]).flatten(1, 2)


def _heads_first(x: Tensor, rows: int) -> Tensor:
    """[B * n, heads, dim] -> [B, heads, n, dim], a view."""
    return x.view(rows, -1, *x.shape[1:]).transpose(1, 2)


def _meminfo_available(path: Path) -> int | None:
    if not path.exists():
        return None
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _cgroup_left(root: Path) -> int | None:
    limit, used, stat = root / "memory.max", root / "memory.current", root / "memory.stat"
    if not (limit.exists() and used.exists() and stat.exists()) or limit.read_text().strip() == "max":
        return None
    fields = dict(line.split() for line in stat.read_text().splitlines())
    cached = int(fields.get("active_file", 0)) + int(fields.get("inactive_file", 0))  # given back under pressure
    return max(0, int(limit.read_text()) - int(used.read_text()) + cached)


def _cgroup_processors(root: Path) -> int | None:
    """How many processors' time the control group allows, rounded up."""
    limit = root / "cpu.max"
    if not limit.exists() or limit.read_text().startswith("max"):
        return None
    quota, period = map(int, limit.read_text().split())
    return max(1, math.ceil(quota / period))
