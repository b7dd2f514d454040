"""Which layers keep what: the cache groups of a model, and where each layer finds its own among them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sglite.runtime.model.config import LayerKind, ModelConfig
from sglite.runtime.protocol import GroupSpec, StateTensor

STATE_GROUP = "recurrent"
"""Name of the group of recurrent layers."""
INDEXER_GROUP = "indexer"
"""Name of the group of what sparse attention is chosen by."""
_PAGED: dict[LayerKind, str] = {"full_attention": "attention", "sliding_attention": "sliding"}


def cache_groups(config: ModelConfig, dtype: torch.dtype) -> list[GroupSpec]:
    """One group for each kind of layer that the model has: attention, sliding attention, recurrent."""
    groups, kinds = [], config.cached_kinds
    for kind, name in _PAGED.items():
        count = kinds.count(kind)
        if count:
            groups.append(_paged(config, name, count, dtype))
    if config.indexer is not None:
        size = config.indexer.head_dim
        groups.append(_latents(INDEXER_GROUP, len(kinds), size, size, dtype))
    if "linear_attention" in kinds:
        groups.append(_recurrent(config, kinds.count("linear_attention"), dtype))
    return groups


def pool_layers(kinds: Sequence[LayerKind]) -> list[int]:
    """By layer: its index in the pool, among the paged layers of all groups or among the recurrent ones."""
    order = [i for kind in _PAGED for i, own in enumerate(kinds) if own == kind]
    recurrent = [i for i, own in enumerate(kinds) if own == "linear_attention"]
    places = {layer: place for layers in (order, recurrent) for place, layer in enumerate(layers)}
    return [places[i] for i in range(len(kinds))]


def indexer_layers(config: ModelConfig) -> list[int]:
    """By layer: the index in the pool of its indexer, where the model has indexers: behind all attention layers."""
    kinds = config.cached_kinds
    return [len(kinds) + layer for layer in pool_layers(kinds)]


def _paged(config: ModelConfig, name: str, layers: int, dtype: torch.dtype) -> GroupSpec:
    named = str(dtype).removeprefix("torch.")
    if config.mla is not None:
        rank = config.mla.kv_lora_rank
        return _latents(name, layers, rank + config.mla.rope_dim, rank, dtype)
    return GroupSpec(
        name=name,
        num_layers=layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        v_head_dim=config.head_dim,
        dtype=named,
        window=config.sliding_window if name == _PAGED["sliding_attention"] else None,
        bytes_per_token=layers * 2 * config.num_kv_heads * config.head_dim * dtype.itemsize,
    )


def _latents(name: str, layers: int, size: int, values: int, dtype: torch.dtype) -> GroupSpec:
    return GroupSpec(
        name=name,
        layout="mla",
        num_layers=layers,
        head_dim=size,
        v_head_dim=values,
        dtype=str(dtype).removeprefix("torch."),
        bytes_per_token=layers * size * dtype.itemsize,
    )


def _recurrent(config: ModelConfig, layers: int, dtype: torch.dtype) -> GroupSpec:
    """The last inputs of the convolution, and the delta-net's state in float32."""
    delta = config.delta
    assert delta is not None
    channels = 2 * delta.num_k_heads * delta.k_dim + delta.num_v_heads * delta.v_dim
    inputs = (channels, delta.conv_width - 1)
    state = (delta.num_v_heads, delta.k_dim, delta.v_dim)
    size = inputs[0] * inputs[1] * dtype.itemsize + 4 * state[0] * state[1] * state[2]
    return GroupSpec(
        name=STATE_GROUP,
        kind="state",
        layout="recurrent",
        num_layers=layers,
        bytes_per_state=layers * size,
        state_tensors=(StateTensor(inputs, str(dtype).removeprefix("torch.")), StateTensor(state)),
    )
