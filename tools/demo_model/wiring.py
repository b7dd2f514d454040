"""A start that already copies.

Looking back and copying (an induction circuit: a head that looks at the previous token, and in the next layer a
head that looks for the place *after* an earlier occurrence of the present token) is what most tasks here rest on,
and what training finds last: from a random start it appears only after millions of tokens. The circuit is simple
enough to be written down, so the weights start as that circuit and training goes on from there. The spellings of
a word (`Paris`, ` Paris`, ` paris`) start as one shared vector plus a direction for "after a space" and one for
"capital", so that a word found in a sentence can be written into JSON. Everything else starts at random, with
output projections of zero so that nothing disturbs it.

Residual stream, 256 wide, at the start:

    0 ........ 190   content of the token (its embedding)
    191 ...... 254   content of the previous token, written by layer 0
    255              a constant, from which position-only queries and keys are made

Source of the idea of the circuit: Olsson et al. 2022, "In-context Learning and Induction Heads".
"""

from __future__ import annotations

import torch
from torch import Tensor

from tools.demo_model.model import Shape, TinyQwen3

SCALE = 0.4  # of the embedding: large beside what one training step adds to the stream, so that the circuit survives
SLOW = 16  # rotary pairs from here on turn so slowly that they compare content at any distance in use


def _orthogonal(rows: int, columns: int) -> Tensor:
    """`rows` orthonormal vectors of length `columns`."""
    columns_first: Tensor = torch.linalg.qr(torch.randn(columns, rows)).Q
    return columns_first.T


def _position_head(shape: Shape, back: int) -> tuple[Tensor, Tensor]:
    """A query and a key vector [head_dim] whose product, after rotation, peaks `back` positions before the query."""
    half = shape.head_dim // 2
    share = torch.zeros(half)
    share[0], share[1:10] = 0.4, 0.6 / 9
    angle = back / shape.rope_theta ** (torch.arange(half) / half)
    size = share.sqrt()
    return torch.cat((size * angle.cos(), -size * angle.sin())), torch.cat((size, torch.zeros(half)))


def _spelled(vocab: dict[str, int], width: int) -> Tensor:
    """Unit-variance token vectors [vocab, width] in which spellings of one word share a part."""
    words: dict[str, int] = {}
    out = torch.zeros(len(vocab), width)
    spaced, capital = torch.randn(2, width) * 0.35
    parts = torch.randn(len(vocab), width)
    for token, i in vocab.items():
        bare = token.removeprefix("\u0120")  # how byte-level BPE writes a space
        out[i] = parts[words.setdefault(bare.lower(), i)]
        out[i] += spaced if bare != token else -spaced
        if bare[:1].isalpha():
            out[i] += capital if bare[0].isupper() else -capital
    return out / out.std()


@torch.no_grad()
def wire_copying(model: TinyQwen3, vocab: dict[str, int]) -> None:
    """Set the weights of a fresh model to an induction circuit in layers 0 and 1."""
    shape = model.shape
    d, one = shape.head_dim, shape.hidden - 1
    content = slice(0, one - d)
    before = slice(one - d, one)
    width = one - d
    model.embed.normal_(0, 0.1 * SCALE)
    model.embed[:, content] = SCALE * _spelled(vocab, width)
    model.embed[:, one] = 8 * SCALE
    for layer in range(shape.layers):
        block = model.block(layer)
        block.o.zero_()
        block.down.zero_()
    shared = _orthogonal(d, width)
    first, second = model.block(0), model.block(1)
    model.norm.fill_(0.084 / SCALE)

    query, key = _position_head(shape, 1)
    first.q[:d].zero_()
    first.k[:d].zero_()
    first.v[:d].zero_()
    first.q[:d, one], first.k[:d, one] = query, key
    first.v[:d, content] = shared
    first.o[before, :d] = 2 * SCALE * torch.eye(d)
    first.q_norm.fill_(2.0)
    first.k_norm.fill_(2.0)

    half = d // 2
    slow = torch.cat((torch.arange(SLOW, half), torch.arange(half + SLOW, d)))
    mix = torch.zeros(d, d)
    mix[slow] = _orthogonal(len(slow), d)
    values = _orthogonal(2 * d, width)
    for group in range(shape.kv_heads):
        head = group * shape.heads // shape.kv_heads
        q, kv = slice(head * d, (head + 1) * d), slice(group * d, (group + 1) * d)
        second.q[q].zero_()
        second.k[kv].zero_()
        second.v[kv].zero_()
        second.q[q, content] = mix @ shared
        second.k[kv, before] = mix
        second.v[kv, content] = values[kv]
        second.o[content, q] = 4 * SCALE * values[kv].T
    second.q_norm.fill_(1.6)
    second.k_norm.fill_(1.6)
