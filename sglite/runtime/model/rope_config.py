"""Rotary position settings of a config.json, old style and new, read into one frozen value.

Old: ``rope_theta`` beside an optional ``rope_scaling``. New: both inside ``rope_parameters``. A scaling that depends on
how long the sequence has become (``dynamic``) is refused: keys computed early would have to change later, which no
cache of keys can serve. Formulas: ``layers/rotary.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields

DEFAULT_THETA = 10000.0
SUPPORTED = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """What the rotary frequencies are computed from; fields a type does not use keep their defaults."""

    rope_type: str = "default"
    theta: float = DEFAULT_THETA
    factor: float = 1.0
    original_max_positions: int = 0
    """Context the model was trained with before scaling (llama3, yarn)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    divisors: tuple[float, ...] = ()
    """What each frequency is divided by, where a checkpoint lists that (GGUF)."""


def read_rope(fields: Fields, max_positions: int) -> RopeConfig:
    """Rotary settings of a config; ModelError names the field of a type or value that cannot be served."""
    section = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
    raw: Mapping[str, Any] = fields.mapping(section)
    rope = Fields(raw, f"{fields.where}: {section}")
    if any(isinstance(value, dict) for value in raw.values()):
        raise ModelError(f"{rope.where} differs per layer type ({', '.join(raw)}), which is not supported")
    theta = rope.positive_float("rope_theta", fields.positive_float("rope_theta", DEFAULT_THETA))
    rope_type = rope.text("rope_type", rope.text("type", "default"))
    if rope_type not in SUPPORTED:
        why = " (its keys change as the sequence grows, so they cannot be cached)" if rope_type == "dynamic" else ""
        raise ModelError(
            f"{rope.where}.rope_type={rope_type!r} is not supported{why}; supported: {', '.join(SUPPORTED)}"
        )
    if rope_type == "default":
        return RopeConfig(theta=theta)
    original = rope.positive_int("original_max_position_embeddings", max_positions)
    original = fields.positive_int("original_max_position_embeddings", original)
    factor = rope.positive_float("factor", max_positions / original if rope_type == "yarn" else None)
    if rope_type == "linear":
        return RopeConfig(rope_type="linear", theta=theta, factor=factor)
    if rope_type == "llama3":
        return _llama3(rope, theta, factor, original)
    return _yarn(rope, theta, factor, original)


def max_context(rope: RopeConfig, max_positions: int) -> int:
    """Positions the model serves: scaled configs often keep the unscaled length in ``max_position_embeddings``."""
    if rope.rope_type == "linear":
        return int(max_positions * rope.factor)
    if rope.rope_type == "yarn":
        return max(max_positions, int(rope.original_max_positions * rope.factor))
    return max_positions


def _llama3(rope: Fields, theta: float, factor: float, original: int) -> RopeConfig:
    low, high = rope.positive_float("low_freq_factor"), rope.positive_float("high_freq_factor")
    if high <= low:
        raise ModelError(f"{rope.where}.high_freq_factor={high:g} must exceed low_freq_factor={low:g}")
    return RopeConfig(
        rope_type="llama3",
        theta=theta,
        factor=factor,
        original_max_positions=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(rope: Fields, theta: float, factor: float, original: int) -> RopeConfig:
    attention_factor = rope.positive_float("attention_factor") if rope.get("attention_factor") is not None else None
    return RopeConfig(
        rope_type="yarn",
        theta=theta,
        factor=factor,
        original_max_positions=original,
        beta_fast=rope.positive_float("beta_fast", 32.0),
        beta_slow=rope.positive_float("beta_slow", 1.0),
        attention_factor=attention_factor,
        mscale=rope.number("mscale", 0.0),
        mscale_all_dim=rope.number("mscale_all_dim", 0.0),
        truncate=rope.flag("truncate", True),
    )
