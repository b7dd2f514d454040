"""The device seam: every call the runtime makes on a device, with its contract.

``plan`` is host code that runs once a step and turns plain integers into whatever the device wants; the other calls
run once a layer or once a step and never wait for the device. The plain-torch implementation in ``cpu.py`` is the
specification: a faster one is right when it gives the same numbers.

    layout   = BatchLayout(...)              plain lists, made by the worker
    meta     = backend.plan(layout)          once a step
    forward    for each layer:  store_kv of all rows, then attention of all rows

How a row's tokens, KV slots and pages relate (page size 4, a row at start 5 that computes 4 tokens, the last 2 drafts):

    slot index i     0 1 2 3 | 4 5 6 7 | 8
    page_tables[r]   page 12 | page 3  | page 9       pool row of slot 6 = 3 * 4 + 2
    computed now               . x x d   d            query j sits in slot start + j
    seq_lens[r]      9 = start + 4: the slots that exist once this step is stored
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sglite.runtime.backend.draws import Draws, Sampled
from sglite.runtime.backend.experts import ExpertWeights, Matrices, Routing
from sglite.runtime.backend.weights import Activation, DenseStack, Matrix, QKVNorms
from sglite.runtime.backend.workload import Workload
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import CopyPages, CopyState, GroupSpec


class BackendError(ValueError):
    """A call that a backend cannot serve: what was asked, the value, what it can do."""


@dataclass(frozen=True)
class Guarantees:
    """What a backend promises about its results and accepts as input."""

    batch_invariant: bool
    """A row's numbers are bit-equal whatever else is in the batch."""
    dtypes: tuple[torch.dtype, ...]
    """Weight, activation and KV types it computes with."""
    page_sizes: tuple[int, ...] | None = None
    """Page sizes it can run; ``None``: any from 1."""
    codings: tuple[int, ...] = ()
    """Bits of coded matrices that it multiplies faster than plain ones: checkpoints are kept in these."""
    coded_experts: bool = False
    """Whether ``moe`` takes experts in codes."""
    asynchronous: bool = False
    """Calls return before the device has done what they asked for, so the next step is launched while one runs."""


@dataclass(frozen=True)
class BatchLayout:
    """One ragged batch in plain integers: R rows, T tokens, row after row."""

    query_starts: Sequence[int]
    """[R + 1] from 0 to T: row r computes tokens ``query_starts[r]`` up to ``query_starts[r + 1]``."""
    starts: Sequence[int]
    """[R] slot index of each row's first token in this step."""
    seq_lens: Sequence[int]
    """[R] KV slots of the row once this step is stored: ``starts[r]`` plus its token count."""
    positions: Sequence[int]
    """[T] position of each token (rotary); differs from the slot index only in draft trees."""
    slot_mapping: Sequence[int]
    """[T] pool row (``page * page_size + offset``) where the token's keys and values go; -1: not stored."""
    page_tables: Sequence[Sequence[int]]
    """[R] pages by slot index; at least ``ceil(seq_lens[r] / page_size)`` entries, more are not read."""
    page_size: int
    parents: Sequence[Sequence[int] | None] | None = None
    """[R] draft trees: the last ``len(parents[r])`` tokens are drafts, see ``RowStep.parents``."""
    state_slots: Sequence[Mapping[str, int]] | None = None
    """[R] state slot of each row by state group; ``None`` for models without recurrent state."""
    frame_mapping: Sequence[int] | None = None
    """``slot_mapping`` in the groups that are kept in frames; ``None``: there are none."""
    frame_tables: Sequence[Sequence[int]] | None = None
    """``page_tables`` in those groups: frames by slot index, -1 where there is none, which no query sees."""
    wanted: Sequence[int] | None = None
    """Tokens whose hidden states somebody looks at, ascending; behind the last layers the others' may be anything.
    ``None``: all."""

    def __post_init__(self) -> None:
        rows, tokens = len(self.starts), len(self.positions)
        if not (len(self.query_starts) == rows + 1 and len(self.seq_lens) == len(self.page_tables) == rows):
            raise BackendError(
                f"batch layout: {rows} starts, {len(self.query_starts)} query_starts, {len(self.seq_lens)} seq_lens, "
                f"{len(self.page_tables)} page_tables; give R, R + 1, R and R"
            )
        if self.query_starts[0] != 0 or self.query_starts[-1] != tokens or len(self.slot_mapping) != tokens:
            raise BackendError(
                f"batch layout: query_starts {self.query_starts[0]}..{self.query_starts[-1]}, {tokens} positions, "
                f"{len(self.slot_mapping)} slots; all must cover the same tokens from 0"
            )
        if self.parents is not None and len(self.parents) != rows:
            raise BackendError(f"batch layout: {len(self.parents)} parents for {rows} rows; give one entry a row")
        if (self.frame_tables is None) != (self.frame_mapping is None):
            raise BackendError("batch layout: frame_mapping and frame_tables go together; give both or none")
        if self.state_slots is not None and len(self.state_slots) != rows:
            raise BackendError(f"batch layout: {len(self.state_slots)} state_slots for {rows} rows; give one a row")


@dataclass(frozen=True)
class AttentionMetadata:
    """A planned batch. Each backend returns its own subclass and accepts no other's."""

    num_tokens: int


class FixedBatch(Protocol):
    """A batch of a fixed number of rows of one token each, in memory that stays where it is."""

    @property
    def metas(self) -> Sequence[AttentionMetadata]:
        """What layers may be given, by the kernels that it asks for; what they say changes with ``fill``."""

    def fill(self, layout: BatchLayout) -> int:
        """Plan a layout of at most that many rows into it; the others are left without anything to see or store.
        Returns which of ``metas`` it is for."""


@dataclass(frozen=True)
class ForwardContext:
    """What layers need besides activations: whom to ask, the planned batch and where keys and values live."""

    backend: Backend
    meta: AttentionMetadata
    pool: KVPool
    begun: Callable[[], None] | None = None  # called when what takes long begins, perhaps several times


class Backend(Protocol):
    """One device. Tensors given and returned live on ``device``; nothing above this seam names it."""

    @property
    def name(self) -> str:
        """Short name for logs and reports, such as ``cpu``."""

    @property
    def device(self) -> torch.device:
        """Where weights, activations and pools live."""

    @property
    def guarantees(self) -> Guarantees:
        """What results can be relied on and which dtypes and page sizes are accepted."""

    def describe(self) -> str:
        """What computes, for people: kernels, threads, and what that costs where there is something faster."""

    def available_memory(self) -> int | None:
        """Bytes that can be allocated now without swapping or being killed; ``None`` when the system does not say."""

    def peak_memory(self, run: Callable[[], None]) -> int:
        """Bytes of the device that ``run`` takes at its worst moment beyond what is taken already; 0, without running
        it, where nobody counts."""

    def settle(self, workload: Workload) -> None:
        """Choose kernels for a model, once it is loaded and before there is a pool for it. BackendError: those that the
        caller insists on cannot serve it."""

    def allocate_pool(
        self,
        groups: Sequence[GroupSpec],
        *,
        num_pages: int,
        page_size: int,
        num_states: int = 0,
        num_frames: int = 0,
    ) -> KVPool:
        """Make zeroed storage for ``num_pages`` pages of every paged group and ``num_states`` states of the others;
        with ``num_frames``, for that many pages of the groups that have a window.

        Raises BackendError for a group kind, layout, dtype or page size that the backend does not serve.
        """

    def plan(self, layout: BatchLayout) -> AttentionMetadata:
        """Turn a layout into device metadata, once a step. Reads the layout, keeps none of its lists."""

    def stage(self, values: Sequence[int]) -> Tensor:
        """``values`` on the device, [n] int64, without waiting for it."""

    def fetch(self, *tensors: Tensor) -> Callable[[], list[Tensor]]:
        """Begin to bring tensors to the host; what is returned waits for them, and for nothing that is launched
        afterwards, on any thread. They may be written over meanwhile."""

    def fixed_batch(self, rows: int, pool: KVPool, max_pages: int) -> FixedBatch | None:
        """Room for decoding ``rows`` rows of at most ``max_pages`` pages; ``None``: ``capture`` gains nothing."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """What does again all that ``run`` launches, on the memory it works with now. ``run`` may have been called any
        number of times when this returns."""

    def place(self, weight: Matrix | Matrices) -> None:
        """See to memory that is allocated and not filled yet: a weight's, or a piece that several will lie in."""

    def pack(self, weight: Matrix | Matrices) -> None:
        """Arrange a filled weight for the products to come, in place; nothing where the backend has no use for it."""

    def unpack(self, weight: Matrix | Matrices) -> None:
        """Undo ``pack``: ``weight.tensor`` is as it was filled again."""

    def store_kv(self, pool: KVPool, layer: int, k: Tensor, v: Tensor | None, meta: AttentionMetadata) -> None:
        """Write this step's keys and values of one layer to the slots of the layout; tokens with slot -1 are skipped.

        ``k`` [T, num_kv_heads, head_dim], ``v`` [T, num_kv_heads, v_head_dim], any strides; cast to the pool's dtype.
        ``v`` is ``None`` for an ``mla`` group, whose values are part of its keys: ``k`` is [T, 1, head_dim] there.
        Distinct tokens have distinct slots. All rows are written before ``attention`` of the layer is called, so rows
        that share pages see what each other stored in this step.
        """

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
        """Attend with every query token to the slots it may see: softmax(scale * q k^T) v, without dropout.

        ``q`` [T, num_heads, head_dim], any strides; returns [T, num_heads, v_head_dim], computed in q's dtype, to which
        the pool's numbers are cast. Query head h reads KV head ``h // (num_heads // num_kv_heads)``. Query j of a row
        sees slots 0 .. start + j; a draft sees the slots before the drafts, its ancestors and itself. Values in slots
        that a query does not see do not reach its result, not even as NaN, unless they belong to the same row.

        ``window``: of those, a query sees the last ``window`` positions, its own included. ``sinks`` [num_heads]: one
        more logit a head, unscaled, which takes its share of the softmax and gives nothing.
        """

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
        """What comes before attention in one call: normalise the heads of q and k, turn them, store k and v.

        ``qkv`` [T, (num_heads + 2 * num_kv_heads) * head_dim], the heads of q, then k, then v, those of one size.
        ``cos`` and ``sin`` [T, 1, n]: dimensions i and i + n of a head turn together, those from 2 n on stay. Returns
        q [T, num_heads, head_dim]; the rest as ``store_kv``.
        """

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
        """``attention`` over the latents of an ``mla`` group, the same for all heads: ``q`` [T, num_heads, head_dim] in
        the latents' space; returns [T, num_heads, v_head_dim], weighted latents.

        ``chosen``: what ``choose_slots`` gave; a query sees those slots alone.
        """

    def choose_slots(
        self, q: Tensor, weights: Tensor, pool: KVPool, layer: int, meta: AttentionMetadata, *, top_k: int
    ) -> Tensor | None:
        """The slots that count most for each query, by the keys of an indexer in ``layer``, an ``mla`` group's.

        A slot that the query sees counts sum over heads of weight * relu(q k): ``q`` [T, heads, head_dim], ``weights``
        [T, heads] float32. Returns the pool rows of the ``top_k`` that count most, [T, top_k] int64 in the sequence's
        order with -1 behind them where a query sees fewer; of equals the earlier slots are taken. ``None``: no query
        sees more than ``top_k``, there is nothing to choose.
        """

    def causal_conv(
        self, x: Tensor, weight: Tensor, pool: KVPool, group: str, layer: int, meta: AttentionMetadata
    ) -> Tensor:
        """silu of every channel's convolution over the row's last ``width`` inputs, its own the last: [T, channels].

        ``x`` [T, channels], any strides; ``weight`` [channels, width], the oldest input's first. What came before the
        row is in its state slot, ``pool.states[group][layer][0]`` [slots, channels, width - 1] (zeros at the start of a
        sequence), which is left with the row's last inputs. Tokens that store no keys count like others. Rows have
        different slots; each gets what it would get alone, but for rounding. Summed up in float32. BackendError: a row
        has drafts or no slot.
        """

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
        """What every token reads from its row's memory after writing to it: [T, v_heads, v_dim] in v's dtype.

        Token by token, for each value head and its memory S [k_dim, v_dim], with q and k of key head
        ``h // (v_heads // k_heads)``, both scaled to length 1 and q then by k_dim^-0.5:

            S = exp(decay) S;   S += k (beta (v - S^T k))^T;   out = S^T q

        ``q``, ``k`` [T, k_heads, k_dim]; ``v`` [T, v_heads, v_dim]; ``decay`` (0 or below) and ``beta`` [T, v_heads]
        float32. S is ``pool.states[group][layer][1]`` [slots, v_heads, k_dim, v_dim] float32 at the row's slot, read
        and written; computed in float32. Else as ``causal_conv``.
        """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in x's dtype; computed in ``weight``'s."""

    def add_rms_norm(self, x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """``x + added``, both [T, hidden], and ``rms_norm`` of it."""

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
        """What the layers make of ``x`` [T, hidden], one after another; every part as the call of its name says.
        ``begun`` is called when only they are left."""

    def gated_norm(self, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``rms_norm`` of ``x`` [T, n, size] times silu of ``gate``, of the same shape; in float32, as ``weight`` is.

        Both with any strides between tokens, their last two dimensions dense; returns x's dtype.
        """

    def gated(self, x: Tensor, activation: Activation) -> Tensor:
        """``x`` [..., 2 n], gates first, to [..., n]: activation(gate) * up.

        ``silu``, ``gelu`` (exact), ``gelu_tanh``; ``swiglu_oai`` is gpt-oss's: gate at most 7, up within 7 either way,
        gate * sigmoid(1.702 gate) * (up + 1).
        """

    def route(self, logits: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
        """Experts of every token by their ``logits`` [T, E] float32: ids [T, k] int64, distinct in a row, in any order,
        and their weights [T, k] float32. ``bias`` [E] float32 takes part in the choice, not in the weights."""

    def moe(self, x: Tensor, experts: ExpertWeights, ids: Tensor, weights: Tensor, activation: Activation) -> Tensor:
        """What the chosen experts make of each token, weighted and added up: [T, hidden] in x's dtype.

        ``x`` [T, hidden]; ``ids`` [T, k] int64, distinct in a row; ``weights`` [T, k] float32. Tokens are grouped by
        expert; a token's result depends on its own row only, but for rounding.
        """

    def matmul_each(self, x: Tensor, weights: Matrices) -> Tensor:
        """``x`` [T, n, in], every one of the n by its own matrix transposed: [T, n, out] in x's dtype."""

    def copy_states(self, pool: KVPool, copies: Sequence[CopyState]) -> None:
        """Copy states from slot to slot, or clear them, in all layers of their group, in the order given."""

    def copy_pages(self, pool: KVPool, copies: Sequence[CopyPages], *, frames: bool = False) -> None:
        """Copy the first ``num_tokens`` slots of page ``src`` to ``dst``, in the order given, in all layers that are
        kept in pages; with ``frames`` from frame to frame, in all that are kept in those."""

    def matmul(self, x: Tensor, weight: Tensor | Matrix, bias: Tensor | None = None) -> Tensor:
        """``x`` [..., in] times ``weight`` [out, in] transposed, plus ``bias`` [out]: [..., out] in x's dtype.

        What it is with a coded weight: ``cpu_quantised``.
        """

    def logits(self, hidden: Tensor, head: Matrix) -> Tensor:
        """``matmul`` of ``hidden`` [n, in] as float32 [n, vocab], which may have been rounded to hidden's dtype."""

    def greedy(self, hidden: Tensor, head: Matrix) -> tuple[Tensor, Tensor]:
        """The first id of the largest logit of every row of ``hidden`` [n, in], [n] int64, and that logit, [n] float32.

        Of the numbers that ``logits`` gives but for rounding, without those being kept. The largest is NaN where any is
        NaN, which id stands beside it then is not fixed.
        """

    def embedding(self, ids: Tensor, weight: Matrix) -> Tensor:
        """Rows ``ids`` [T] int64 of ``weight``: [T, in]."""

    def sample(self, logits: Tensor, draws: Draws, bitmask: Tensor | None = None) -> Sampled:
        """One token a row of ``logits`` [n, vocab] float32, which stay as they are; see ``Draws`` and ``Sampled``.

        ``bitmask``: as ``apply_mask``, of all rows, before anything is drawn. Which token a number of ``draws`` stands
        for is said in ``cpu_sample``; where two tokens meet, rounding may decide otherwise on another backend. A
        row's result does not depend on the other rows. Never waits for the device.
        """

    def apply_mask(self, logits: Tensor, bitmask: Tensor) -> None:
        """Set logits of disallowed ids to -inf, in place.

        ``logits`` [n, vocab] floating point; ``bitmask`` int32 [n, words] on the host, bit ``id % 32`` of word
        ``id // 32`` set when the id is allowed. Ids beyond the words are disallowed, bits beyond vocab are ignored.
        A row of all ones keeps its logits. The result of a row does not depend on the other rows.
        """
