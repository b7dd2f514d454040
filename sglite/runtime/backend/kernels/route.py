"""``Backend.route`` in one launch: a program a token, whose experts lie in its registers.

Scores are compared as whole numbers in the same order, in which NaN is above infinity and an expert that was taken, or
is none, below everything: whatever the logits are, ``top_k`` distinct experts come out. Of equals the first is taken.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglite.runtime.backend.experts import Routing


def route(logits: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
    """See ``Backend.route``."""
    tokens, experts = logits.shape
    ids = torch.empty(tokens, routing.top_k, dtype=torch.int64, device=logits.device)
    weights = torch.empty(tokens, routing.top_k, dtype=torch.float32, device=logits.device)
    if not tokens:
        return ids, weights
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    groups = routing.num_groups
    members, room = triton.next_power_of_2(experts // groups), triton.next_power_of_2(groups)
    _route[(tokens,)](
        logits,
        logits if bias is None else bias.contiguous(),
        ids,
        weights,
        logits.stride(0),
        experts // groups,
        routing.scaling,
        SIGMOID=routing.scoring == "sigmoid",
        BIASED=bias is not None,
        RENORMALIZE=routing.renormalize,
        GROUPS=groups,
        TOP_GROUPS=routing.top_groups if groups > 1 else 1,
        PAIRS=routing.group_score == "top2",
        TOP_K=routing.top_k,
        ROOM=room,
        MEMBERS=members,
        CHOICES=triton.next_power_of_2(routing.top_k),
        num_warps=1 if room * members <= 512 else 4,  # within a warp nothing waits
        num_stages=1,
    )
    return ids, weights


@triton.jit
def _route(
    logits,
    bias,
    ids,
    weights,
    row_stride,
    per_group,
    scaling,
    SIGMOID: tl.constexpr,
    BIASED: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    PAIRS: tl.constexpr,
    TOP_K: tl.constexpr,
    ROOM: tl.constexpr,
    MEMBERS: tl.constexpr,
    CHOICES: tl.constexpr,
):
    """One token: [group, member] scores, the best groups, of what is left the best experts one after the other."""
    token = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, ROOM)[:, None], tl.arange(0, MEMBERS)[None, :]
    there = (group < GROUPS) & (member < per_group)
    expert = group * per_group + member
    x = tl.load(logits + token * row_stride + expert, mask=there, other=float("-inf"))
    if SIGMOID:
        scores = tl.sigmoid(x)
    else:
        scores = tl.exp(x - tl.max(tl.max(x, axis=1), axis=0))
        scores = scores / tl.sum(tl.sum(tl.where(there, scores, 0.0), axis=1), axis=0)
    choice = scores
    if BIASED:
        choice += tl.load(bias + expert, mask=there, other=0.0)
    keys = tl.where(there, _key(choice), -2147483648)
    if GROUPS > 1:
        kept = _best_groups(keys, GROUPS, TOP_GROUPS, PAIRS, ROOM)
        keys = tl.where(there & (kept[:, None] == 0), -2139095041, keys)  # that of minus infinity

    keys, scores = tl.reshape(keys, (ROOM * MEMBERS,)), tl.reshape(scores, (ROOM * MEMBERS,))
    place, slot = tl.arange(0, ROOM * MEMBERS), tl.arange(0, CHOICES)
    chosen, shares = tl.zeros((CHOICES,), dtype=tl.int32), tl.zeros((CHOICES,), dtype=tl.float32)
    for i in tl.static_range(TOP_K):
        best = tl.argmax(keys, axis=0)
        share = tl.sum(tl.where(place == best, scores, 0.0), axis=0)
        keys = tl.where(place == best, -2147483648, keys)
        chosen = tl.where(slot == i, best // MEMBERS * per_group + best % MEMBERS, chosen)
        shares = tl.where(slot == i, share, shares)
    if RENORMALIZE:
        shares = shares / (tl.sum(shares, axis=0) + 1e-20)
    tl.store(ids + token * TOP_K + slot, chosen.to(tl.int64), mask=slot < TOP_K)
    tl.store(weights + token * TOP_K + slot, shares * scaling, mask=slot < TOP_K)


@triton.jit
def _key(x):
    """Whole numbers in the order of ``x``, NaN last."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x != x, 2147483647, bits ^ ((bits >> 31) & 2147483647))


@triton.jit
def _best_groups(keys, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, PAIRS: tl.constexpr, ROOM: tl.constexpr):
    """[ROOM] 1 for the groups that count most, by their best expert or by their best two together."""
    group = tl.arange(0, ROOM)
    best = tl.max(keys, axis=1)
    if PAIRS:
        others = tl.where(tl.arange(0, keys.shape[1])[None, :] == tl.argmax(keys, axis=1)[:, None], -2147483648, keys)
        best = _key(_number(best) + _number(tl.max(others, axis=1)))
    best = tl.where(group < GROUPS, best, -2147483648)
    kept = tl.zeros((ROOM,), dtype=tl.int32)
    for _ in tl.static_range(TOP_GROUPS):
        taken = group == tl.argmax(best, axis=0)
        kept = tl.where(taken, 1, kept)
        best = tl.where(taken, -2147483648, best)
    return kept


@triton.jit
def _number(key):
    """What has that key."""
    return (key ^ ((key >> 31) & 2147483647)).to(tl.float32, bitcast=True)
