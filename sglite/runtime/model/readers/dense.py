"""Dense decoders with full attention: Llama, Qwen2, Qwen3."""

from __future__ import annotations

from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields
from sglite.runtime.model.readers.common import read_common


def read_dense(fields: Fields) -> ModelConfig:
    """A config of one of them."""
    refuse_windows(fields)
    return read_common(fields)


def refuse_windows(fields: Fields) -> None:
    """Qwen configs carry a ``sliding_window`` they do not use: the switch beside it decides."""
    if fields.flag("use_sliding_window", False) and fields.get("sliding_window") is not None:
        raise ModelError(
            f"{fields.where}: sliding_window={fields.get('sliding_window')!r} with use_sliding_window=true is not "
            "supported; use a checkpoint with full attention"
        )
