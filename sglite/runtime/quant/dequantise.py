"""Quantised checkpoints as if they were not: every format is a view of the files in which weights are whole numbers
times scales no more. Models know nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglite.runtime.model.checkpoint import TensorSource
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields


def dequantised(source: TensorSource, quantization: Mapping[str, Any]) -> TensorSource:
    """``source`` with its weights unquantised, as its ``quantization_config`` says. ModelError: it is unknown."""
    where = f"{source.folder}: quantization_config"
    method = Fields(quantization, where).text("quant_method", "unnamed")
    raise ModelError(f"{where}.quant_method={method!r} is not supported; use the unquantized checkpoint")
