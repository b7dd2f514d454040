"""The tensors of a GGUF model by the names and in the form of the checkpoint that it was converted from.

    blk.3.attn_q.weight      Q4_K [4096, 4096]      ──▶  model.layers.3.self_attn.q_proj.weight, rows in order
    blk.3.ffn_up_exps.weight Q8_0 [128, 768, 2048]  ──▶  model.layers.3.mlp.experts.N.up_proj.weight, N = 0 .. 127

Files are mapped; a tensor is unpacked when it is read, an expert at a time where experts are stacked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sglite.runtime.gguf import GGUFError, GGUFTensor, open_gguf
from sglite.runtime.model.checkpoint import FLOAT_TYPES, TensorInfo
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.gguf_config import ROPE_DIVISORS
from sglite.runtime.quant.gguf import unpacked

WHOLE: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
"""Of a layer, ``blk.N.``; with ``.weight`` or ``.bias`` behind."""
EXPERTS: Mapping[str, str] = {
    "ffn_gate_exps": "gate_proj",
    "ffn_up_exps": "up_proj",
    "ffn_down_exps": "down_proj",
}
"""Of a layer: all experts in one tensor."""
_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class _Piece:
    """Rows of a tensor, ``rows`` from ``first``, and what becomes of them."""

    tensor: GGUFTensor
    first: int
    rows: int
    shape: tuple[int, ...]
    form: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class GGUFSource:
    """See ``TensorSource``."""

    folder: Path
    """The file."""
    tensors: Mapping[str, TensorInfo]
    pieces: Mapping[str, _Piece]

    def read(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, file by file, as float32."""
        for path in sorted({self.pieces[name].tensor.path for name in names}):
            mapped = _mapped(path)
            for name in sorted(n for n in names if self.pieces[n].tensor.path == path):
                yield name, _read(mapped, self.pieces[name])


def open_gguf_source(path: Path, config: ModelConfig) -> GGUFSource:
    """The tensors of a GGUF model. ModelError: the file cannot be read or followed."""
    try:
        file = open_gguf(path)
    except GGUFError as error:
        raise ModelError(str(error)) from None
    pieces: dict[str, _Piece] = {}
    for name, tensor in file.tensors.items():
        if name != ROPE_DIVISORS:
            pieces.update(_pieces(tensor, config))
    infos = {name: _info(piece) for name, piece in pieces.items()}
    return GGUFSource(path, infos, pieces)


def _pieces(tensor: GGUFTensor, config: ModelConfig) -> Iterator[tuple[str, _Piece]]:
    """What a tensor holds by our names; by its own where the architecture has no such tensor."""
    found = _NAME.fullmatch(tensor.name)
    if found is None:
        stem, _, kind = tensor.name.rpartition(".")
        yield f"{WHOLE[stem]}.{kind}" if stem in WHOLE else tensor.name, _whole(tensor)
        return
    layer, part, kind = found.groups()
    if part in EXPERTS and kind == "weight" and len(tensor.shape) == 3:
        experts, rows, length = tensor.shape
        for expert in range(experts):
            name = f"model.layers.{layer}.mlp.experts.{expert}.{EXPERTS[part]}.weight"
            yield name, _Piece(tensor, expert * rows, rows, (rows, length))
        return
    piece = _whole(tensor)
    if part == "ffn_gate_inp_shexp" and len(tensor.shape) == 1:
        piece = _Piece(tensor, 0, 1, (1, *tensor.shape))
    if config.architecture == "LlamaForCausalLM" and part in ("attn_q", "attn_k"):
        heads = config.num_heads if part == "attn_q" else config.num_kv_heads
        if tensor.shape[0] == heads * config.head_dim:
            piece = _Piece(tensor, 0, piece.rows, tensor.shape, partial(_halves_from_pairs, heads=heads))
    yield f"model.layers.{layer}.{LAYER[part]}.{kind}" if part in LAYER else tensor.name, piece


def _whole(tensor: GGUFTensor) -> _Piece:
    return _Piece(tensor, 0, math.prod(tensor.shape[:-1]), tensor.shape)


def _halves_from_pairs(x: Tensor, heads: int) -> Tensor:
    """Rows of q or k of Llama models, which GGUF keeps for rotating neighbours, in the order for rotating halves."""
    return x.view(heads, -1, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def _info(piece: _Piece) -> TensorInfo:
    kind = piece.tensor.type.name
    return TensorInfo(piece.tensor.path.name, piece.shape, kind if kind in FLOAT_TYPES else "F32", piece.tensor.name)


def _mapped(path: Path) -> Tensor:
    """The bytes of a file, none of which is read before it is needed."""
    size = path.stat().st_size
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)


def _read(mapped: Tensor, piece: _Piece) -> Tensor:
    kind = piece.tensor.type
    row = piece.tensor.shape[-1] // kind.block * kind.size
    first = piece.tensor.offset + piece.first * row
    if first + piece.rows * row > len(mapped):
        raise ModelError(f"{piece.tensor.path}: the file has become shorter while it was read; try again")
    numbers = unpacked(kind.name, mapped[first : first + piece.rows * row].view(piece.rows, row)).view(piece.shape)
    return numbers if piece.form is None else piece.form(numbers)
