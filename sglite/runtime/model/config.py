"""What a model is, read from the plain JSON of its ``config.json``.

Every field is checked by name before anything is allocated, and a setting that would change results but is not
implemented is refused, never ignored. Both generations of the format are read: ``torch_dtype`` and ``dtype``,
``rope_scaling`` and ``rope_parameters``, flat and nested in ``text_config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields, read_json
from sglite.runtime.model.rope_config import RopeConfig, max_context, read_rope


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and settings of a decoder-only transformer."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context: int
    """Positions the model serves, rope scaling included."""
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_word_embeddings: bool = False
    has_head: bool = True
    """Hidden states can be turned into scores of tokens."""
    attention_bias: bool = False
    mlp_bias: bool = False
    dtype: str = "float32"
    """The checkpoint's own, as torch names it."""
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None


def read_config(folder: Path) -> ModelConfig:
    """The config of a model folder; ModelError names the file and the field of whatever is wrong."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json; give a folder in Hugging Face layout")
    return parse_config(read_json(path), str(path))


def parse_config(raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """As ``read_config``, from the JSON object; ``where`` stands for it in messages."""
    fields = Fields({**raw, **Fields(raw, where).mapping("text_config")}, where)
    _refuse_unsupported(fields)
    hidden, heads = fields.positive_int("hidden_size"), fields.positive_int("num_attention_heads")
    kv_heads = fields.positive_int("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ModelError(f"{where}: num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}")
    if fields.get("head_dim") is None and hidden % heads:
        raise ModelError(
            f"{where}: hidden_size={hidden} is not a multiple of num_attention_heads={heads}; set head_dim"
        )
    head_dim = fields.positive_int("head_dim", hidden // heads)
    if head_dim % 2:
        raise ModelError(f"{where}: head_dim={head_dim} is odd; rotary embedding needs pairs")
    max_positions = fields.positive_int("max_position_embeddings")
    rope = read_rope(fields, max_positions)
    bos = fields.token_ids("bos_token_id")
    return ModelConfig(
        architecture=_architecture(raw, where),
        vocab_size=fields.positive_int("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.positive_int("intermediate_size"),
        num_layers=fields.positive_int("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_context=max_context(rope, max_positions),
        rms_norm_eps=fields.positive_float("rms_norm_eps", 1e-6),
        rope=rope,
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        dtype=fields.text("dtype", fields.text("torch_dtype", "float32")),
        eos_token_ids=fields.token_ids("eos_token_id"),
        bos_token_id=bos[0] if bos else None,
    )


def _architecture(raw: Mapping[str, Any], where: str) -> str:
    names = raw.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelError(f"{where}: field 'architectures' is {names!r:.80}; it must be a list with the class name")
    return names[0]


def _refuse_unsupported(fields: Fields) -> None:
    """Settings that change results and are not implemented."""
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelError(f"{fields.where}: hidden_act={activation!r} is not supported; supported: silu")
    if fields.get("quantization_config") is not None:
        method = Fields(fields.mapping("quantization_config"), fields.where).text("quant_method", "unnamed")
        raise ModelError(
            f"{fields.where}: quantization_config ({method}) is not supported; use the unquantized checkpoint"
        )
    # Qwen2 and Qwen3 configs carry a sliding_window they do not use: the switch beside it decides.
    if fields.flag("use_sliding_window", False) and fields.get("sliding_window") is not None:
        raise ModelError(
            f"{fields.where}: sliding_window={fields.get('sliding_window')!r} with use_sliding_window=true is not "
            "supported; use a checkpoint with full attention"
        )
    kinds = fields.sequence("layer_types")
    if any(kind != "full_attention" for kind in kinds):
        raise ModelError(
            f"{fields.where}: layer_types {sorted(set(map(str, kinds)))} is not supported; only full_attention"
        )
