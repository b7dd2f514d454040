"""What a model is: sizes and settings that its layers are built from, whatever a ``config.json`` calls them.

Readers (``readers/``) make one of these from the JSON of a family, checked by name before anything is allocated; a
setting that would change results but is not implemented is refused, never ignored. This module and the readers import
no torch: a process that only has to know what a model is does not load it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sglite.runtime.model.rope_config import RopeConfig

LayerKind = Literal["full_attention", "sliding_attention", "linear_attention"]
"""How a layer mixes positions; ``linear_attention`` is recurrent."""
Activation = Literal["silu", "gelu", "gelu_tanh", "swiglu_oai"]
"""What gates a feed-forward layer, see ``Backend.gated``."""
Scoring = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """A mixture of experts: which layers have one, how a token finds its experts, how large they are."""

    num_experts: int
    top_k: int
    intermediate_size: int
    """Of one expert."""
    layers: tuple[bool, ...]
    """By layer: it has experts."""
    scoring: Scoring = "softmax"
    renormalize: bool = True
    """Weights of the chosen experts are divided by their sum."""
    scaling: float = 1.0
    """Weights are multiplied by this."""
    choice_bias: bool = False
    """A bias per expert (``e_score_correction_bias``) takes part in the choice, not in the weights."""
    router_bias: bool = False
    """The router's logits have a bias."""
    num_groups: int = 1
    top_groups: int = 1
    """Experts are chosen among those of the best groups."""
    group_score: Literal["max", "top2"] = "max"
    """A group counts as much as its best expert, or as its best two together."""
    shared_size: int = 0
    """Intermediate size of the experts that every token goes through; 0: there are none."""
    shared_gate: bool = False
    """What they give is weighted by a gate of its own."""


@dataclass(frozen=True, kw_only=True)
class MLAConfig:
    """Multi-head latent attention (https://arxiv.org/abs/2405.04434): keys and values from one latent a position."""

    q_lora_rank: int | None
    kv_lora_rank: int
    nope_dim: int
    """Per head: the part of q and k without positions."""
    rope_dim: int
    v_dim: int
    pairs: bool = True
    """Neighbours are rotated together, not halves."""


@dataclass(frozen=True, kw_only=True)
class IndexerConfig:
    """What chooses the positions that sparse attention looks at (DeepSeek V3.2)."""

    num_heads: int
    head_dim: int
    top_k: int
    """Positions a query attends to, at most."""


@dataclass(frozen=True, kw_only=True)
class DeltaConfig:
    """Gated delta-net (https://arxiv.org/abs/2412.06464): a recurrent state per value head."""

    num_k_heads: int
    num_v_heads: int
    k_dim: int
    v_dim: int
    conv_width: int


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and settings of a decoder-only transformer."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context: int
    """Positions the model serves, rope scaling included."""
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = field(default_factory=RopeConfig)
    rotary_dim: int = 0
    """The first dimensions of a head are rotated, this many."""
    tie_word_embeddings: bool = False
    has_head: bool = True
    """Hidden states can be turned into scores of tokens."""
    labels: tuple[str, ...] = ()
    """Of a classifier or reward model: what its scores are called, in their order."""
    score_layers: int = 1
    """Linear layers of its head."""
    attention_bias: bool = False
    mlp_bias: bool = False
    activation: Activation = "silu"
    layer_kinds: tuple[LayerKind, ...] = ()
    """By layer."""
    sliding_window: int | None = None
    """Positions that sliding layers see, their own included."""
    local_rope: RopeConfig | None = None
    """Of sliding layers, where theirs differs."""
    attention_scale: float | None = None
    """What scores of queries and keys are multiplied by; ``None``: head_dim^-1/2."""
    moe: MoEConfig | None = None
    mla: MLAConfig | None = None
    indexer: IndexerConfig | None = None
    draft_layers: int = 0
    """Layers behind the others that predict one token further each (multi-token prediction)."""
    drafts: bool = False
    """They are loaded too."""
    delta: DeltaConfig | None = None
    quantization: Mapping[str, Any] | None = None
    """The checkpoint's ``quantization_config`` as it stands."""
    dtype: str = ""
    """The checkpoint's own, as torch names it; empty: the config does not say."""
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    @property
    def cached_kinds(self) -> tuple[LayerKind, ...]:
        """Of all layers that keep something: the model's, and behind them those that draft, where they are loaded."""
        attention: LayerKind = "full_attention"
        return self.layer_kinds + (attention,) * (self.draft_layers if self.drafts else 0)

    def window(self, layer: int) -> int | None:
        """Positions that the attention of ``layer`` sees, its own included; ``None``: all before it."""
        return self.sliding_window if self.layer_kinds[layer] == "sliding_attention" else None
