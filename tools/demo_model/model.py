"""The network that is trained: Qwen3 written out by hand.

Why not transformers' own module: training on two cores is bound by the number of small operations, so this one fuses
q/k/v and gate/up, skips masks (batches are right-padded and causal) and computes logits only where a loss is taken.
`export.py` maps its weights onto the names of `Qwen3ForCausalLM` and checks that both give the same logits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the defaults are the shipped ones (5.77 M parameters)."""

    vocab: int = 4096
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    ff: int = 768
    rope_theta: float = 10_000.0
    max_positions: int = 2048
    eps: float = 1e-6

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def rope_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [max_positions, head_dim], in the half-split layout that Qwen3 uses."""
    inv = 1.0 / shape.rope_theta ** (torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    angle = torch.outer(torch.arange(shape.max_positions).float(), inv)
    full = torch.cat((angle, angle), dim=-1)
    return full.cos(), full.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [batch, time, heads, head_dim] with tables [time, 1, head_dim]."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Block(nn.Module):
    """One pre-norm decoder layer: grouped-query attention with q/k norms, then SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        q, kv, h = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.hidden
        self.norm1 = nn.Parameter(torch.ones(h))
        self.norm2 = nn.Parameter(torch.ones(h))
        self.q_norm = nn.Parameter(torch.ones(shape.head_dim))
        self.k_norm = nn.Parameter(torch.ones(shape.head_dim))
        # Separate matrices, because Muon orthogonalises each one; they are concatenated for the matmul.
        self.q = nn.Parameter(torch.randn(q, h) * h**-0.5)
        self.k = nn.Parameter(torch.randn(kv, h) * h**-0.5)
        self.v = nn.Parameter(torch.randn(kv, h) * h**-0.5)
        self.o = nn.Parameter(torch.randn(h, q) * (2 * shape.layers * q) ** -0.5)
        self.gate = nn.Parameter(torch.randn(shape.ff, h) * h**-0.5)
        self.up = nn.Parameter(torch.randn(shape.ff, h) * h**-0.5)
        self.down = nn.Parameter(torch.randn(h, shape.ff) * (2 * shape.layers * shape.ff) ** -0.5)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        s, (b, t, _), dt = self.shape, x.shape, cos.dtype
        y = F.rms_norm(x, (s.hidden,), self.norm1.to(x.dtype), s.eps)
        qkv = F.linear(y, torch.cat((self.q, self.k, self.v)).to(dt))
        heads = qkv.view(b, t, -1, s.head_dim)
        q, k, v = torch.split(heads, [s.heads, s.kv_heads, s.kv_heads], dim=2)
        q = rotate(F.rms_norm(q, (s.head_dim,), self.q_norm.to(dt), s.eps), cos, sin)
        k = rotate(F.rms_norm(k, (s.head_dim,), self.k_norm.to(dt), s.eps), cos, sin)
        group = s.heads // s.kv_heads
        k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        scores = torch.matmul(q * s.head_dim**-0.5, k.transpose(2, 3))
        # Plain products: on CPU the backward pass of the fused kernel is slower at these lengths.
        future = torch.ones(t, t, dtype=torch.bool).triu(1)
        out = torch.matmul(scores.masked_fill(future, -1e9).softmax(-1), v)
        x = x + F.linear(out.transpose(1, 2).reshape(b, t, -1), self.o.to(dt))
        y = F.rms_norm(x, (s.hidden,), self.norm2.to(x.dtype), s.eps)
        gate, up = F.linear(y, torch.cat((self.gate, self.up)).to(dt)).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down.to(dt))


class TinyQwen3(nn.Module):
    """The whole model. Activations are bfloat16 (or `dtype`), parameters float32 masters."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.embed = nn.Parameter(torch.randn(shape.vocab, shape.hidden) * 0.02)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        cos, sin = rope_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def block(self, layer: int) -> Block:
        block = self.blocks[layer]
        assert isinstance(block, Block)
        return block

    def hidden(self, ids: Tensor) -> Tensor:
        """Final normalised states [batch, time, hidden] of ids [batch, time]."""
        t = ids.shape[1]
        cos, sin = (c[:t, None].to(self.dtype) for c in (self.cos, self.sin))
        x = F.embedding(ids, self.embed).to(self.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.rms_norm(x, (self.shape.hidden,), self.norm.to(x.dtype), self.shape.eps)

    def logits(self, states: Tensor) -> Tensor:
        """Scores [n, vocab] of states [n, hidden]; the head is tied to the embedding."""
        return F.linear(states, self.embed.to(states.dtype))

    def loss(self, ids: Tensor, where: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean cross-entropy at the flat positions `where` [n] of ids [batch, time]."""
        states = self.hidden(ids).flatten(0, 1).index_select(0, where)
        each = F.cross_entropy(self.logits(states).float(), targets, reduction="none")
        return (each * weights).sum() / weights.sum()
