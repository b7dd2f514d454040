"""Dense decoders of one plan: Llama, Qwen2, Qwen3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields
from sglite.runtime.model.readers.common import read_common

MAX_WINDOW_LAYERS = 28
"""What the classes of Qwen take ``max_window_layers`` to be where a config does not say."""


def read_dense(fields: Fields) -> ModelConfig:
    """A config of one of them. Those of Qwen carry a ``sliding_window`` that counts only where ``use_sliding_window``
    says so, and then for the layers from ``max_window_layers`` on or those that ``layer_types`` names."""
    if not fields.flag("use_sliding_window", False) or fields.get("sliding_window") is None:
        return read_common(fields)
    layers, first = fields.positive_int("num_hidden_layers"), fields.get("max_window_layers")
    first = MAX_WINDOW_LAYERS if first is None else first
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise ModelError(f"{fields.where}: field 'max_window_layers' is {first!r:.80}; it must be a number of layers")
    kinds = ["full_attention" if layer < first else "sliding_attention" for layer in range(layers)]
    fields = with_defaults(fields, {"layer_types": kinds})
    return with_window(fields, read_common(fields, kinds=("full_attention", "sliding_attention")))


def with_defaults(fields: Fields, defaults: Mapping[str, Any]) -> Fields:
    """``fields``, and ``defaults`` for those that are absent."""
    given = {name: value for name, value in fields.values.items() if value is not None}
    return Fields({**defaults, **given}, fields.where)


def with_window(fields: Fields, common: ModelConfig) -> ModelConfig:
    """``common`` with the ``sliding_window`` of the layers that have one."""
    if "sliding_attention" not in common.layer_kinds:
        return common
    return replace(common, sliding_window=fields.positive_int("sliding_window"))


def refuse_windows(fields: Fields) -> None:
    """For families whose configs carry a ``sliding_window`` that is not served: the switch beside it decides."""
    if fields.flag("use_sliding_window", False) and fields.get("sliding_window") is not None:
        raise ModelError(
            f"{fields.where}: sliding_window={fields.get('sliding_window')!r} with use_sliding_window=true is not "
            "supported; use a checkpoint with full attention"
        )
