"""The first Qwen (``QWenLMHeadModel``): Llama's plan under names of its own."""

from __future__ import annotations

from typing import Any

from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields
from sglite.runtime.model.readers.common import read_common

FIXED: dict[str, Any] = {"rotary_pct": 1.0, "scale_attn_weights": True, "use_cache_quantization": False}
"""Switches that are served in this position only; it is also what they are where a config does not say."""


def read_qwen(fields: Fields) -> ModelConfig:
    """Its context ends at ``seq_length``: what its code does beyond, ``use_dynamic_ntk`` and ``use_logn_attn``, changes
    keys that were computed before, which no cache of keys can serve."""
    for name, served in FIXED.items():
        found = fields.get(name)
        if found is not None and found != served:
            raise ModelError(f"{fields.where}: {name}={found!r:.80} is not supported; only {served!r} is")
    both = fields.positive_int("intermediate_size")
    if both % 2:
        raise ModelError(f"{fields.where}: intermediate_size={both} is odd; it counts w1 and w2 together")
    context = fields.positive_int("seq_length", fields.positive_int("max_position_embeddings", 8192))
    ours = {
        "intermediate_size": both // 2,
        "head_dim": fields.positive_int("kv_channels", 128),
        "max_position_embeddings": context,
        "rms_norm_eps": fields.positive_float("layer_norm_epsilon", 1e-6),
        "rope_theta": fields.positive_float("rotary_emb_base", 10000.0),
        "mlp_bias": not fields.flag("no_bias", True),
    }
    return read_common(Fields({**fields.values, **ours}, fields.where))
