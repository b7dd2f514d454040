"""What crosses a border of the runtime: between client, EngineCore and Executor, whatever process each lives in.

Plain data only (msgspec structs of integers, floats, strings and lists): no tensor, no callable, no torch.

    client --GenerateRequest--> EngineCore --SchedulerOutput--> Executor
    client <--RequestOutput---- EngineCore <--StepOutput------- Executor

Positions count tokens of a sequence from 0. A *slot* of a request is the small integer under which the executor
keeps its row state. A *page* holds ``page_size`` consecutive positions; a page table lists pages by position.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.sample.params import SamplingParams

PauseMode = Literal["abort", "retract", "in_place"]
PAUSE_MODES: tuple[PauseMode, ...] = ("abort", "retract", "in_place")
"""What becomes of the open requests when nothing is to be computed for a while; see ``EngineCore.pause``."""
UNKNOWN_TOKEN = -1
"""A token id that an earlier step, still in flight, is about to sample; the executor knows it in time."""


class StateTensor(msgspec.Struct, frozen=True):
    """One tensor that a layer keeps per sequence."""

    shape: tuple[int, ...]
    dtype: str = "float32"


class GroupSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one group of layers keeps per sequence.

    ``paged`` groups keep one entry per position (attention keys and values), in pages. ``state`` groups keep one
    entry per sequence (recurrent state); a prefix of theirs can be restored only where a checkpoint was saved.

    ``mha``: keys and values of every KV head. ``mla``: one latent of ``head_dim`` for all heads, whose first
    ``v_head_dim`` numbers are the values.
    """

    name: str
    kind: Literal["paged", "state"] = "paged"
    layout: Literal["mha", "mla", "recurrent"] = "mha"
    num_layers: int = 1
    num_kv_heads: int = 1
    head_dim: int = 1
    v_head_dim: int = 1
    dtype: str = "float32"
    window: int | None = None
    """Paged groups: positions that a query sees, its own included; ``None``: all."""
    bytes_per_token: int = 0
    """Paged groups: bytes of one position over all layers."""
    bytes_per_state: int = 0
    """State groups: bytes of one sequence's state over all layers."""
    state_tensors: tuple[StateTensor, ...] = ()
    """State groups: what a layer keeps."""


class LogprobOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which log probabilities a request wants: of its output always, of its prompt from ``start_len`` on."""

    start_len: int | None = None
    """First prompt position to report; ``None``: no prompt logprobs."""
    top_n: int = 0
    token_ids: tuple[int, ...] = ()
    """Given ids whose logprobs are reported at every position."""


class ProgramRef(msgspec.Struct, frozen=True, kw_only=True):
    """Where in a program's graph a request stands: what the scheduler may use to order and keep its prefix."""

    program_id: str
    node_id: str = ""
    parent_id: str = ""
    group_id: str = ""
    """The fork whose branches send their first requests together, ``group_size`` of them."""
    group_size: int = 1
    upcoming: int = 0
    """Requests that the sequence is known to send after this one."""


class ThinkingLimit(msgspec.Struct, frozen=True, kw_only=True):
    """How long a model may think where its text begins with thinking, which the constraint allows."""

    begin: str
    """The mark before it; empty: the prompt ends with that."""
    end: str
    tokens: int
    """Most tokens between the two marks; the end is then forced."""


class GenerateRequest(msgspec.Struct, kw_only=True):
    """One sequence to extend: known tokens, then up to ``sampling.max_new_tokens`` new ones (0: prefill only)."""

    request_id: str
    token_ids: list[int]
    sampling: SamplingParams = msgspec.field(default_factory=SamplingParams)
    constraint: ConstraintSpec | None = None
    constraint_after: tuple[int, ...] = ()
    """The constraint begins after this run of tokens, the end of the reasoning; empty: at once."""
    reasoning_budget: int | None = None
    """Most tokens before that run, which is then forced; ``None``: as many as it takes."""
    thinking: ThinkingLimit | None = None
    """Bounds thinking that is part of the constraint."""
    logprobs: LogprobOptions | None = None
    pool: Literal["last"] | None = None
    """Ask for the hidden state, after the final norm, at the last prompt token; with no new tokens, and no logprobs."""
    priority: int = 0
    """Higher runs earlier and is preempted later."""
    namespace: str = ""
    """Prefixes are shared only inside one namespace (cache salt, adapter, tenant)."""
    program: ProgramRef | None = None
    pin: str = ""
    """Name under which the prefix stays locked after the end, in place of what was pinned so before; a hint."""
    queue_timeout_s: float | None = None
    """Aborted when it has not run by then."""
    timeout_s: float | None = None
    """Aborted when it has not finished by then."""


class FinishReason(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request ended. ``matched``: the stop string, pattern or token id. ``message``: for abort and error."""

    type: Literal["stop", "length", "abort", "error"]
    matched: str | int | None = None
    message: str | None = None
    code: str | None = None
    """Error class for the client: ``timeout``, ``cancelled``, ``constraint_unsatisfied``, ``nan``, ``internal`` ..."""

    def to_dict(self) -> dict[str, Any]:
        """The shape of SGLang's ``meta_info["finish_reason"]``: only the fields that say something."""
        return {k: v for k, v in msgspec.structs.asdict(self).items() if v is not None}


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log probability of one token and, when asked for, of the most likely and of the given ones there.

    ``logprob`` is ``None`` for the first token of a sequence, which nothing precedes.
    """

    token_id: int
    logprob: float | None
    top: list[tuple[int, float]] = msgspec.field(default_factory=list)
    given: list[tuple[int, float]] = msgspec.field(default_factory=list)


class Accounting(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a request cost. ``prompt_tokens == cached_tokens + computed_prompt_tokens`` once the prompt is done."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_prompt_tokens: int = 0
    completion_tokens: int = 0
    forced_tokens: int = 0
    resampled_tokens: int = 0
    """Output tokens taken back because the value they were part of could not end right; sampled anew."""
    forward_passes: int = 0
    """Steps in which the request computed anything."""
    masks_filled: int = 0
    """Bitmasks made for its constraint."""
    mask_ms: float = 0.0
    """Time spent on them, beside the forward pass."""
    replayed_tokens: int = 0
    """Positions computed again on purpose: last token of a full hit, a logprob start, after preemption."""
    preemptions: int = 0
    queue_ms: float = 0.0
    compute_ms: float = 0.0
    e2e_ms: float = 0.0

    def add(self, other: Accounting) -> None:
        """Sum up: what several requests cost together."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class RequestOutput(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What became of a request in one step; exactly one output per request has ``finish_reason`` set."""

    request_id: str
    new_token_ids: list[int] = msgspec.field(default_factory=list)
    logprobs: list[TokenLogprob] = msgspec.field(default_factory=list)
    """One per new token, when logprobs were asked for."""
    prompt_logprobs: list[TokenLogprob] = msgspec.field(default_factory=list)
    """All at once, on the first output after the prompt was computed; one per position from ``start_len``."""
    finish_reason: FinishReason | None = None
    constraint_complete: bool | None = None
    """Set at the end of constrained requests: whether the text is a member of the language."""
    constraint_filled: list[str] | None = None
    """Set at the end of those with ``on_limit="close"``: JSON pointers of the values that closing chose."""
    hidden: bytes | None = None
    """Set at the end of requests with ``pool``: the hidden state, little-endian float32."""
    accounting: Accounting = msgspec.field(default_factory=Accounting)


# --- EngineCore <-> Executor -----------------------------------------------------------------------------------


class NewRow(msgspec.Struct, kw_only=True):
    """What the executor must know of a request before its first step, and again after a preemption or when output was
    taken back."""

    slot: int
    request_id: str
    sampling: SamplingParams
    seed: int
    banned_until_min: tuple[int, ...] = ()
    """Ids that end a sequence: not sampled before ``sampling.min_new_tokens`` output tokens."""
    logprobs: LogprobOptions | None = None
    prompt_ids: list[int] = msgspec.field(default_factory=list)
    """Sent only when a penalty needs it."""
    output_ids: list[int] = msgspec.field(default_factory=list)
    """Output so far, sent only when a penalty needs it."""


class RowStep(msgspec.Struct, kw_only=True):
    """One row of a step: compute ``token_ids`` at positions ``start ...``.

    With ``parents`` the row's last ``len(parents)`` tokens are a draft tree: draft i sits in the KV slot of position
    ``start + len(token_ids) - len(parents) + i``, continues draft ``parents[i]`` (-1: the last known token), and sees
    only its ancestors; its position is that of its depth.
    """

    slot: int
    start: int
    token_ids: list[int]
    """``UNKNOWN_TOKEN`` only as last element: the token the row's previous step samples."""
    store_from: int = 0
    """Positions below are already in the cache: computed again, not stored."""
    pages_from: int = 0
    pages: list[int] = msgspec.field(default_factory=list)
    """New part of the row's page table: replaces entries from index ``pages_from`` on."""
    parents: list[int] | None = None
    refill: tuple[int, int] = (0, 0)
    """Positions, below ``store_from``, that are stored in frames all the same: layers with a window had lost them."""
    state_slots: dict[str, int] = msgspec.field(default_factory=dict)
    """State groups: the slot that holds the row's running state."""


class SampleTask(msgspec.Struct, kw_only=True):
    """Sample for ``slot`` from the logits of row ``row`` at sequence position ``position``."""

    slot: int
    row: int
    position: int
    num_output: int
    """Output tokens before this one."""
    attempt: int = 0
    constrained: bool = False
    """Wait for a bitmask (``Executor.supply_masks``) before sampling."""


class ScoreTask(msgspec.Struct, kw_only=True):
    """Report, for ``slot``, logprobs of known tokens: logits at ``position + i`` score ``targets[i]``."""

    slot: int
    row: int
    position: int
    targets: list[int]


class PoolTask(msgspec.Struct, kw_only=True):
    """Report, for ``slot``, the hidden state after the final norm that row ``row`` gives at ``position``."""

    slot: int
    row: int
    position: int


class CopyPages(msgspec.Struct, frozen=True):
    """Copy the first ``num_tokens`` positions of page ``src`` to page ``dst``, in every paged group without frames."""

    src: int
    dst: int
    num_tokens: int


class CopyState(msgspec.Struct, frozen=True):
    """Copy one state slot of ``group`` to another; ``src`` -1 clears ``dst``."""

    group: str
    src: int
    dst: int


class SchedulerOutput(msgspec.Struct, kw_only=True):
    """One step: apply ``released``, ``new_rows``, copies; store, attend and compute ``rows``; then samples, scores,
    pools, and last the state copies of ``checkpoints``. Steps are executed in the order of submission."""

    step_id: int
    rows: list[RowStep] = msgspec.field(default_factory=list)
    samples: list[SampleTask] = msgspec.field(default_factory=list)
    scores: list[ScoreTask] = msgspec.field(default_factory=list)
    pools: list[PoolTask] = msgspec.field(default_factory=list)
    new_rows: list[NewRow] = msgspec.field(default_factory=list)
    appended: dict[int, list[int]] = msgspec.field(default_factory=dict)
    """slot -> output tokens the executor did not sample (forced ones), for penalties."""
    released: list[int] = msgspec.field(default_factory=list)
    """Slots whose requests are gone."""
    copies: list[CopyPages] = msgspec.field(default_factory=list)
    frames: dict[int, int] = msgspec.field(default_factory=dict)
    """page -> frame that it has from now on, in groups with a window and frames of their own."""
    frame_copies: list[CopyPages] = msgspec.field(default_factory=list)
    """As ``copies``, from frame to frame."""
    state_copies: list[CopyState] = msgspec.field(default_factory=list)
    checkpoints: list[CopyState] = msgspec.field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens the step computes."""
        return sum(len(row.token_ids) for row in self.rows)


class SampledToken(msgspec.Struct, kw_only=True):
    """What a SampleTask gave, in task order. Draft rows may give several tokens: the accepted path and one more."""

    slot: int
    token_ids: list[int]
    logprobs: list[TokenLogprob] = msgspec.field(default_factory=list)
    error: str | None = None
    """Why nothing could be sampled: logits not finite, every token masked."""


class ScoredTokens(msgspec.Struct, kw_only=True):
    """What a ScoreTask gave, in task order."""

    slot: int
    position: int
    logprobs: list[TokenLogprob]
    error: str | None = None


class PooledState(msgspec.Struct, kw_only=True):
    """What a PoolTask gave, in task order: little-endian float32 values."""

    slot: int
    hidden: bytes = b""
    error: str | None = None


class StepOutput(msgspec.Struct, kw_only=True):
    """What a step computed; ``error`` when the whole step failed (then nothing of it counts as computed)."""

    step_id: int
    samples: list[SampledToken] = msgspec.field(default_factory=list)
    scores: list[ScoredTokens] = msgspec.field(default_factory=list)
    pools: list[PooledState] = msgspec.field(default_factory=list)
    compute_ms: float = 0.0
    mask_wait_ms: float = 0.0
    """How long the samples waited for their bitmasks after the forward pass."""
    error: str | None = None


# --- weights ----------------------------------------------------------------------------------------------------------


class UpdateWeights(msgspec.Struct, frozen=True, kw_only=True, tag="update"):
    """Other weights for the model that runs, of the same names, shapes and kind."""

    folder: str = ""
    """Of a whole checkpoint, or else"""
    tensors: bytes | None = None
    """a safetensors file with some of its tensors."""
    flush_cache: bool = True
    """Give up everything that is cached, which must be possible; either way nothing of it is matched any more."""
    abort: bool = False
    """End the open requests first; otherwise they end by themselves, with the weights they began with."""

    @property
    def source(self) -> str | bytes:
        """Where the weights are: the folder, or the bytes."""
        return self.folder if self.tensors is None else self.tensors


EXPERT_TOKENS = "experts.num_tokens"
"""A name that is read like a tensor's: tokens that each expert has had since the start, a row a layer with experts."""


class ReadWeights(msgspec.Struct, frozen=True, kw_only=True, tag="read"):
    """The first ``rows`` rows of the tensor that a checkpoint calls ``name``."""

    name: str
    rows: int


WeightOrder = UpdateWeights | ReadWeights


class WeightsResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a ``WeightOrder``. Without ``success`` nothing was changed, and ``message`` says why."""

    success: bool
    message: str = ""
    num_paused_requests: int = 0
    """Open requests that waited while the weights were written."""
    values: Any = None
    """What was read, in nested lists of floats."""
