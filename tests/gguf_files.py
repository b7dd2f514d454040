"""GGUF files made by hand, from the format's description: no library takes part.

    write_gguf(path, {"general.architecture": "qwen3", ...}, {"token_embd.weight": tensor, ...})
    make_gguf(folder, path)                 the model of a tiny checkpoint folder, tokenizer and template included
    pack("Q4_K", generator, rows, length)   random blocks, [rows, bytes]; ``reference`` says what they stand for

``reference`` works number by number in Python's own floats, rounded to float32 after every operation: slow, and nothing
like the code it is compared with.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

TYPES = {
    **{"F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20)},
    **{"Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34), "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110)},
    **{"Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "MXFP4": (39, 32, 17)},
}
"""Name -> number, numbers in a block, bytes of a block."""
PACKED = [name for name, (_, block, _) in TYPES.items() if block > 1]
ALIGNMENT = 32


@dataclass(frozen=True)
class Packed:
    """A tensor as the file is to hold it: ``data`` [rows, bytes] uint8."""

    type_name: str
    shape: tuple[int, ...]
    data: Tensor


class U32(int):
    """A whole number that is written as uint32, as converters do."""


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor | Packed], *, version: int = 3
) -> Path:
    """Write a file. Values: text, bool, int (int32, or uint32 as ``U32``), float, lists of one of these."""
    header = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    header += b"".join(text(key) + value(item) for key, item in metadata.items())
    data = b""
    for name, tensor in tensors.items():
        packed = tensor if isinstance(tensor, Packed) else plain(tensor)
        shape = tuple(reversed(packed.shape))
        header += text(name) + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *shape, TYPES[packed.type_name][0], len(data)
        )
        data += padded(packed.data.contiguous().numpy().tobytes())
    path.write_bytes(padded(header) + data)
    return path


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % ALIGNMENT)


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(item: Any) -> bytes:
    """Type and value."""
    kind, raw = scalar(item[0]) if isinstance(item, list) else scalar(item)
    if not isinstance(item, list):
        return struct.pack("<I", kind) + raw
    return struct.pack("<IIQ", 9, kind, len(item)) + b"".join(scalar(each)[1] for each in item)


def scalar(item: Any) -> tuple[int, bytes]:
    if isinstance(item, str):
        return 8, text(item)
    if isinstance(item, bool):
        return 7, struct.pack("<?", item)
    if isinstance(item, U32):
        return 4, struct.pack("<I", item)
    if isinstance(item, int):
        return 5, struct.pack("<i", item)
    return 6, struct.pack("<f", item)


def plain(tensor: Tensor) -> Packed:
    """A tensor as it is: F32, F16 or BF16."""
    name = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[tensor.dtype]
    return Packed(name, tuple(tensor.shape), tensor.contiguous().view(torch.uint8))


# --- packed types ---------------------------------------------------------------------------------------------


def pack(name: str, generator: torch.Generator, rows: int, length: int) -> Tensor:
    """Random blocks whose scales are sensible halves, [rows, bytes]."""
    _, block, size = TYPES[name]
    data = torch.randint(0, 256, (rows * length // block, size), dtype=torch.uint8, generator=generator)
    for at in SCALES[name]:
        halves = torch.rand(len(data), 1, generator=generator).add(0.1).mul(0.01).half()
        data[:, at : at + 2] = halves.view(torch.uint8)
    if name == "MXFP4":
        data[:, 0] = data[:, 0] % 8 + 120
    return data.view(rows, -1)


SCALES = {
    **{"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108]},
    **{"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "MXFP4": []},
}
"""Where the halves are in a block."""


def reference(name: str, block: bytes) -> list[float]:
    """What the numbers of one block are, one by one."""
    return [f32(number) for number in BLOCKS[name](block)]


def f32(x: float) -> float:
    return float(np.float32(x))


def half(block: bytes, at: int) -> float:
    return float(struct.unpack_from("<e", block, at)[0])


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def nibble(block: bytes, at: int, i: int) -> int:
    """The i-th of 32 numbers in 16 bytes: the first 16 in the low halves."""
    return block[at + i % 16] >> (4 * (i // 16)) & 15


def fifth(block: bytes, at: int, i: int) -> int:
    return (int.from_bytes(block[at : at + 4], "little") >> i & 1) << 4


def k_scale(block: bytes, at: int, i: int) -> tuple[int, int]:
    """The i-th of 8 scales and of 8 minima, of 6 bits, in 12 bytes."""
    s = block[at : at + 12]
    if i < 4:
        return s[i] & 63, s[i + 4] & 63
    return (s[i + 4] & 15) | (s[i - 4] >> 6 << 4), (s[i + 4] >> 4) | (s[i] >> 6 << 4)


def q4_0(b: bytes) -> list[float]:
    return [half(b, 0) * (nibble(b, 2, i) - 8) for i in range(32)]


def q4_1(b: bytes) -> list[float]:
    return [f32(half(b, 0) * nibble(b, 4, i)) + half(b, 2) for i in range(32)]


def q5_0(b: bytes) -> list[float]:
    return [half(b, 0) * ((nibble(b, 6, i) | fifth(b, 2, i)) - 16) for i in range(32)]


def q5_1(b: bytes) -> list[float]:
    return [f32(half(b, 0) * (nibble(b, 8, i) | fifth(b, 4, i))) + half(b, 2) for i in range(32)]


def q8_0(b: bytes) -> list[float]:
    return [half(b, 0) * signed(b[2 + i]) for i in range(32)]


def q2_k(b: bytes) -> list[float]:
    out = []
    for i in range(256):
        q = b[16 + i // 128 * 32 + i % 32] >> (i % 128 // 32 * 2) & 3
        scale = b[i // 16]
        out.append(f32(f32(half(b, 80) * (scale & 15)) * q) - f32(half(b, 82) * (scale >> 4)))
    return out


def q3_k(b: bytes) -> list[float]:
    out = []
    for i in range(256):
        q = b[32 + i // 128 * 32 + i % 32] >> (i % 128 // 32 * 2) & 3
        if not b[i % 32] >> (i // 32) & 1:
            q -= 4
        s = i // 16
        low = b[96 + s % 8] >> (4 * (s // 8)) & 15
        high = b[104 + s % 4] >> (2 * (s // 4)) & 3
        out.append(f32(half(b, 108) * ((low | high << 4) - 32)) * q)
    return out


def q4_k(b: bytes) -> list[float]:
    out = []
    for i in range(256):
        q = b[16 + i // 64 * 32 + i % 32] >> (i % 64 // 32 * 4) & 15
        scale, least = k_scale(b, 4, i // 32)
        out.append(f32(f32(half(b, 0) * scale) * q) - f32(half(b, 2) * least))
    return out


def q5_k(b: bytes) -> list[float]:
    out = []
    for i in range(256):
        q = b[48 + i // 64 * 32 + i % 32] >> (i % 64 // 32 * 4) & 15
        q |= (b[16 + i % 32] >> (i // 32) & 1) << 4
        scale, least = k_scale(b, 4, i // 32)
        out.append(f32(f32(half(b, 0) * scale) * q) - f32(half(b, 2) * least))
    return out


def q6_k(b: bytes) -> list[float]:
    out = []
    for i in range(256):
        part, j = i // 128, i % 128
        q = b[part * 64 + j % 64] >> (j // 64 * 4) & 15
        q |= (b[128 + part * 32 + j % 32] >> (j // 32 * 2) & 3) << 4
        out.append(f32(half(b, 208) * signed(b[192 + i // 16])) * (q - 32))
    return out


def mxfp4(b: bytes) -> list[float]:
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    numbers = [nibble(b, 1, i) for i in range(32)]
    return [2.0 ** (b[0] - 127) * values[n % 8] * (-1 if n > 7 else 1) for n in numbers]


BLOCKS = {
    **{"Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8_0, "Q2_K": q2_k, "Q3_K": q3_k},
    **{"Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k, "MXFP4": mxfp4},
}


def referenced(packed: Packed) -> Tensor:
    """The whole tensor that blocks stand for, float32."""
    _, _, size = TYPES[packed.type_name]
    raw = packed.data.contiguous().numpy().tobytes()
    numbers = [reference(packed.type_name, raw[at : at + size]) for at in range(0, len(raw), size)]
    return torch.tensor(numbers, dtype=torch.float32).reshape(packed.shape)


# --- models ---------------------------------------------------------------------------------------------------

LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
ARCHITECTURES = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}


def make_gguf(folder: Path, path: Path, *, parts: int = 1, **metadata: Any) -> Path:
    """The model in ``folder`` as a GGUF file, or as ``parts`` of one; ``metadata``: more keys, ``.`` written ``__``."""
    config = json.loads((folder / "config.json").read_text())
    tensors = gguf_tensors(config, load_file(folder / "model.safetensors"))
    keys = {**gguf_metadata(config), **vocabulary(folder), **{k.replace("__", "."): v for k, v in metadata.items()}}
    keys = {key: item for key, item in keys.items() if item is not None}
    if parts == 1:
        return write_gguf(path, keys, tensors)
    names = list(tensors)
    files = [path.with_name(f"{path.stem}-{i + 1:05}-of-{parts:05}.gguf") for i in range(parts)]
    for i, file in enumerate(files):
        split = {"split.no": U32(i), "split.count": U32(parts), "split.tensors.count": len(tensors)}
        write_gguf(file, {**(keys if i == 0 else {}), **split}, {name: tensors[name] for name in names[i::parts]})
    return files[0]


def gguf_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that llama.cpp's converter writes for a config."""
    kind = ARCHITECTURES.get(config["model_type"], config["model_type"])
    heads = config["num_attention_heads"]
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    keys = {
        "block_count": U32(config["num_hidden_layers"]),
        "context_length": U32(config["max_position_embeddings"]),
        "embedding_length": U32(config["hidden_size"]),
        "feed_forward_length": U32(config["intermediate_size"]),
        "attention.head_count": U32(heads),
        "attention.head_count_kv": U32(config["num_key_value_heads"]),
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(theta),
        "attention.key_length": U32(config.get("head_dim") or config["hidden_size"] // heads),
        "attention.value_length": U32(config.get("head_dim") or config["hidden_size"] // heads),
    }
    if kind == "llama":
        keys["rope.dimension_count"] = keys["attention.key_length"]
    if num_experts(config):
        keys["expert_count"] = U32(num_experts(config))
        keys["expert_used_count"] = U32(config["num_experts_per_tok"])
        keys["expert_feed_forward_length"] = U32(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        keys["expert_shared_feed_forward_length"] = U32(config["shared_expert_intermediate_size"])
    general = {"general.architecture": kind, "general.name": "Tiny", "general.file_type": U32(0)}
    return {**general, **{f"{kind}.{key}": item for key, item in keys.items()}}


def num_experts(config: Mapping[str, Any]) -> int:
    return config.get("num_experts") or config.get("num_local_experts") or 0


def gguf_tensors(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor | Packed]:
    """The tensors of a checkpoint as llama.cpp's converter writes them, in their own types."""
    renamed: dict[str, Tensor | Packed] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
        if stem in whole:
            renamed[f"{whole[stem]}.{kind}"] = tensor
        elif ".experts." not in stem:
            number, part = stem.removeprefix("model.layers.").split(".", 1)
            if config["model_type"] == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
                tensor = pairs(tensor, config["num_attention_heads" if "q_proj" in part else "num_key_value_heads"])
            renamed[f"blk.{number}.{LAYER[part]}.{kind}"] = tensor[0] if part.endswith("expert_gate") else tensor
    for layer in range(config["num_hidden_layers"]):
        for part in ("gate", "up", "down"):
            names = [f"model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight" for e in range(num_experts(config))]
            if names and names[0] in tensors:
                renamed[f"blk.{layer}.ffn_{part}_exps.weight"] = torch.stack([tensors[name] for name in names])
    return renamed


def pairs(tensor: Tensor, heads: int) -> Tensor:
    """Rows for rotating halves in the order for rotating neighbours: one of a head's first half, one of its second."""
    half_dim = tensor.shape[0] // heads // 2
    order = [
        head * 2 * half_dim + i + half * half_dim for head in range(heads) for i in range(half_dim) for half in (0, 1)
    ]
    return tensor[order]


def vocabulary(folder: Path) -> dict[str, Any]:
    """The tokenizer of a folder with tokenizer.json, as llama.cpp's converter writes it; padded to the model's size."""
    config = json.loads((folder / "config.json").read_text())
    if not (folder / "tokenizer.json").is_file():
        return {}
    state = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    pieces = {**state["model"]["vocab"], **{token["content"]: token["id"] for token in state["added_tokens"]}}
    by_id = {i: piece for piece, i in pieces.items()}
    size = config["vocab_size"]
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(size)]
    special = {token["id"]: 3 if token["special"] else 4 for token in state["added_tokens"]}
    merges = [item if isinstance(item, str) else " ".join(item) for item in state["model"].get("merges", [])]
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [special.get(i, 1 if i in by_id else 5) for i in range(size)],
        "tokenizer.ggml.merges": merges,
        "tokenizer.chat_template": settings.get("chat_template"),
    }
    for key, name in (("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token")):
        found[f"tokenizer.ggml.{key}_token_id"] = None if settings.get(name) is None else U32(pieces[settings[name]])
    found["tokenizer.ggml.add_bos_token"] = settings.get("add_bos_token")
    return found
