"""AWQ's ``gemm`` layout: four bits, packed along the outputs, groups along the inputs.

    X.qweight [K, N / 8] I32    X.qzeros [K / group, N / 8] I32    X.scales [K / group, N]
    weight[n, k] = (q[k, n] - zero[k / group, n]) * scale[k / group, n]

The eight numbers of a word are those of columns 0, 2, 4, 6, 1, 3, 5, 7, lowest bits first. Zeros are stored whatever
``zero_point`` says.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sglite.runtime.model.checkpoint import FLOAT_TYPES, TensorSource
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields
from sglite.runtime.quant.arithmetic import dequantise
from sglite.runtime.quant.codes import Codes, Coding, halves
from sglite.runtime.quant.group_size import read_group_size
from sglite.runtime.quant.packed import PackedWeight, Unpacked
from sglite.runtime.quant.stored import Stored

BITS = 4
PER_WORD = 32 // BITS
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word each of its columns is."""


def awq(source: TensorSource, fields: Fields) -> Unpacked:
    """The view of an AWQ checkpoint. ModelError: another layout than ``gemm``, other bits than four."""
    bits = fields.positive_int(fields.named("bits", "w_bit"), BITS)
    if bits != BITS:
        raise ModelError(f"{fields.where}.bits={bits} is not supported for awq; only {BITS} is; use a GPTQ checkpoint")
    layout = fields.text(fields.named("version", "format"), "gemm").lower()
    if layout != "gemm" or fields.text("backend", "auto") == "llm-awq":
        raise ModelError(
            f"{fields.where}.version={layout!r:.80} is not supported, nor is backend=llm-awq; use an AWQ checkpoint "
            "with version=gemm"
        )
    group = read_group_size(fields)
    stored = Stored(source, "awq")
    for base, _ in stored.ending(".qweight"):
        stored.weights[f"{base}.weight"] = _weight(stored, base, group)
    return stored.view()


def _weight(stored: Stored, base: str, group: int | None) -> PackedWeight:
    inputs, words = stored.matrix(f"{base}.qweight", stored.part(f"{base}.qweight", ("I32",)))
    outputs, size = words * PER_WORD, group or inputs
    groups = inputs // size
    if inputs % size:
        stored.refuse(f"{base}.qweight has {inputs} inputs, not a multiple of group_size={size}")
    stored.part(f"{base}.scales", FLOAT_TYPES, (groups, outputs))
    stored.part(f"{base}.qzeros", ("I32",), (groups, words))
    parts = {"values": f"{base}.qweight", "scales": f"{base}.scales", "zeros": f"{base}.qzeros"}

    def make(found: Mapping[str, Tensor]) -> Tensor:
        return dequantise(_columns(found["values"]), found["scales"].T, (1, size), _columns(found["zeros"]))

    coding = Coding(BITS, group, zeros=True)

    def codes(found: Mapping[str, Tensor]) -> Codes:
        values = halves(_columns(found["values"]).view(torch.int8) - 8)
        return Codes(coding, values, found["scales"].T.float(), _columns(found["zeros"]).float() - 8)

    return PackedWeight((outputs, inputs), parts, make, coding=coding, codes=codes)


def _columns(words: Tensor) -> Tensor:
    """[rows, W] words to their numbers, [8 W, rows] uint8, columns in order."""
    turned = words.T.contiguous()
    numbers = torch.empty((len(turned), PER_WORD, turned.shape[1]), dtype=torch.uint8)
    for column, place in enumerate(PLACES):
        numbers[:, column] = (turned >> (BITS * place)) & (2**BITS - 1)
    return numbers.flatten(0, 1)
