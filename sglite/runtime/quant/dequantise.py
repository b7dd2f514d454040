"""Quantised checkpoints as if they were not: every format is a view of the files in which weights are whole numbers
times scales no more. Models know nothing of it.

A layer is quantised where the parts of a quantised weight are there, whatever lists of the configuration say
(``ignore``, ``modules_to_not_convert``, targets): these lists tell programs that build layers before they look at the
files, and their patterns differ from program to program. Weights are made in float32 and rounded once, to the model's
type; activations are never quantised, whatever was meant to be done with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sglite.runtime.model.checkpoint import TensorSource
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields
from sglite.runtime.quant.awq import awq
from sglite.runtime.quant.compressed_tensors import compressed_tensors
from sglite.runtime.quant.fp8 import fp8, modelopt
from sglite.runtime.quant.gptq import gptq
from sglite.runtime.quant.methods import INSTEAD, normalised
from sglite.runtime.quant.mxfp4 import mxfp4

FORMATS: Mapping[str, Callable[[TensorSource, Fields], TensorSource]] = MappingProxyType(
    {
        "fp8": fp8,
        "compressed-tensors": compressed_tensors,
        "awq": awq,
        "gptq": gptq,
        "mxfp4": mxfp4,
        "modelopt": modelopt,
    }
)
"""``quant_method`` -> what makes the view."""


def dequantised(source: TensorSource, quantization: Mapping[str, Any]) -> TensorSource:
    """``source`` with its weights unquantised, as its ``quantization_config`` says.

    ModelError: the format is not served, or the tensors are not what it says; nothing but a few small tensors has been
    read by then.
    """
    fields = Fields(normalised(quantization), f"{source.folder}: quantization_config")
    method = fields.text("quant_method", "unnamed")
    if method not in FORMATS:
        instead = INSTEAD.get(method, "the unquantised checkpoint")
        raise ModelError(
            f"{fields.where}.quant_method={method!r:.80} is not supported; supported: {', '.join(FORMATS)}; "
            f"use {instead}"
        )
    return FORMATS[method](source, fields)
