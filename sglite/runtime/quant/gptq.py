"""GPTQ: 2, 3, 4 or 8 bits, packed along the inputs, groups in order or (act-order) as ``g_idx`` says.

    X.qweight [K * bits / 32, N] I32      X.scales [G, N]      X.qzeros [G, N * bits / 32] I32      X.g_idx [K] I32
    weight[n, k] = (q[k, n] - zero[g, n]) * scale[g, n]        g = g_idx[k], else k / group_size

Checkpoints of the first format (``checkpoint_format: gptq``, the usual one) hold zeros less one, those of ``gptq_v2``
hold them as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sglite.runtime.model.checkpoint import FLOAT_TYPES, TensorSource
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields
from sglite.runtime.quant.arithmetic import blocks, dequantise, groups_in_order, unpack
from sglite.runtime.quant.codes import Codes, Coding, halves
from sglite.runtime.quant.group_size import read_group_size
from sglite.runtime.quant.packed import PackedWeight, Unpacked
from sglite.runtime.quant.stored import Stored

ONE_IN_EACH = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
"""Bits -> a word with 1 in each of its numbers."""
BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class _Settings:
    """``group``: inputs of a group, ``None`` for all; ``less_one``: zeros are stored less one."""

    bits: int
    group: int | None
    less_one: bool
    ordered: bool
    """Inputs were quantised in the order of their weight, so that ``g_idx`` is needed."""


def gptq(source: TensorSource, fields: Fields) -> Unpacked:
    """The view of a GPTQ checkpoint. ModelError: bits, layout or rules that are not supported."""
    settings = _read_settings(fields)
    stored = Stored(source, "gptq")
    for base, _ in stored.ending(".qweight"):
        stored.weights[f"{base}.weight"] = _weight(stored, base, settings)
    _keep_codes(stored, settings)
    _drop_idle_biases(stored)
    return stored.view()


def _read_settings(fields: Fields) -> _Settings:
    bits = fields.positive_int(fields.named("bits", "w_bit"))
    if bits not in BITS:
        raise ModelError(
            f"{fields.where}.bits={bits} is not supported for gptq; supported: {', '.join(map(str, BITS))}"
        )
    if fields.get("dynamic"):
        raise ModelError(
            f"{fields.where}.dynamic={fields.get('dynamic')!r:.80}: rules by layer are not supported; "
            "use a GPTQ checkpoint with the same settings for all layers"
        )
    layout = fields.text("checkpoint_format", fields.text("format", "gptq")).lower()
    if layout not in ("gptq", "gptq_v2") or fields.flag("is_marlin_format", False):
        raise ModelError(
            f"{fields.where}.checkpoint_format={layout!r:.80} is not supported, nor is is_marlin_format=true; "
            "use a GPTQ checkpoint in format gptq or gptq_v2"
        )
    return _Settings(bits, read_group_size(fields), layout == "gptq", fields.flag("desc_act", False))


def _weight(stored: Stored, base: str, settings: _Settings) -> PackedWeight:
    bits = settings.bits
    words, outputs = stored.matrix(f"{base}.qweight", stored.part(f"{base}.qweight", ("I32",)))
    inputs = words * 32 // bits
    size = settings.group or inputs
    groups = blocks(inputs, size)
    if words * 32 % bits or outputs * bits % 32:
        stored.refuse(f"{base}.qweight has shape [{words}, {outputs}], which {bits} bits do not fill")
    stored.part(f"{base}.scales", FLOAT_TYPES, (groups, outputs))
    stored.part(f"{base}.qzeros", ("I32",), (groups, outputs * bits // 32))
    parts = {"values": f"{base}.qweight", "scales": f"{base}.scales", "zeros": f"{base}.qzeros"}
    if settings.ordered or stored.has(f"{base}.g_idx"):
        stored.part(f"{base}.g_idx", ("I32", "I64"), (inputs,))
        parts["groups"] = f"{base}.g_idx"

    def make(found: Mapping[str, Tensor]) -> Tensor:
        values = unpack(found["values"].T, bits, inputs)
        zeros = _zeros(found["zeros"], settings, outputs)
        order = groups_in_order(found.get("groups"), inputs, size)
        return dequantise(values, found["scales"].T, (1, size), zeros.T, order)

    return PackedWeight((outputs, inputs), parts, make)


def _keep_codes(stored: Stored, settings: _Settings) -> None:
    """Four bits with groups in order, which few tensors tell, may stay as they are."""
    if settings.bits != 4:
        return
    grouped = {name: weight.parts["groups"] for name, weight in stored.weights.items() if "groups" in weight.parts}
    sizes = {grouped[name]: settings.group or stored.weights[name].shape[1] for name in grouped}
    shuffled = set(sizes) - stored.in_order(sizes)
    for name, weight in stored.weights.items():
        if grouped.get(name) not in shuffled:
            coding = Coding(4, settings.group, zeros=True)
            stored.weights[name] = replace(weight, coding=coding, codes=partial(_codes, settings, coding))


def _codes(settings: _Settings, coding: Coding, found: Mapping[str, Tensor]) -> Codes:
    words, scales = found["values"].T, found["scales"].T.float()
    zeros = _zeros(found["zeros"], settings, len(words)).T.float() - 8
    return Codes(coding, halves(unpack(words, 4, words.shape[1] * 8).view(torch.int8) - 8), scales, zeros)


def _zeros(words: Tensor, settings: _Settings, outputs: int) -> Tensor:
    """[G, outputs]. One is added to whole words, with its carries, as it was taken off by those that write them; the
    numbers of three bits that cross words are raised one by one."""
    bits = settings.bits
    if settings.less_one and bits in ONE_IN_EACH:
        words = words + ONE_IN_EACH[bits]
    numbers = unpack(words, bits, outputs)
    if settings.less_one and bits not in ONE_IN_EACH:
        numbers = (numbers + 1) & (2**bits - 1)
    return numbers


def _drop_idle_biases(stored: Stored) -> None:
    """Exports of old give every layer a bias, zero where the model has none: a kind of layer whose biases are all zero
    has none."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for name in stored.weights:
        bias = f"{name.removesuffix('weight')}bias"
        if stored.has(bias):
            kinds[name.split(".")[-2]].add(bias)
    for biases in kinds.values():
        if stored.zero(biases) == biases:
            stored.drop(*biases)
