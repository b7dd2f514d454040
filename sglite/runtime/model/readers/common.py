"""What the configs of all families have in common. Both generations of the format are read: ``torch_dtype`` and
``dtype``, ``rope_scaling`` and ``rope_parameters``, flat and nested in ``text_config``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sglite.runtime.model.config import Activation, LayerKind, ModelConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields
from sglite.runtime.model.rope_config import RopeConfig, max_context, read_rope

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
)
MAX_LAYERS = 1000
KINDS: tuple[LayerKind, ...] = ("full_attention", "sliding_attention", "linear_attention")


def read_common(
    fields: Fields, *, kinds: tuple[LayerKind, ...] = ("full_attention",), partial_rotary: bool = False
) -> ModelConfig:
    """Sizes and settings that every family has. ModelError names the field of whatever is wrong.

    ``kinds``: layers that the family can have; ``partial_rotary``: its heads may be rotated in part.
    """
    if fields.get("quantization") is not None and fields.get("quantization_config") is None:
        raise ModelError(
            f"{fields.where}: field 'quantization' is that of MLX, whose layout is not supported; use GGUF, "
            "AWQ or GPTQ, or the unquantised checkpoint"
        )
    hidden, heads = fields.positive_int("hidden_size"), fields.positive_int("num_attention_heads")
    kv_heads = fields.positive_int("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ModelError(
            f"{fields.where}: num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}"
        )
    head_dim = read_head_dim(fields, hidden, heads)
    max_positions = fields.positive_int("max_position_embeddings")
    rope = read_rope(fields, max_positions)
    layers = fields.positive_int("num_hidden_layers")
    if layers > MAX_LAYERS:
        raise ModelError(f"{fields.where}: num_hidden_layers={layers} is more than {MAX_LAYERS}; is it the right file?")
    bos = fields.token_ids("bos_token_id")
    return ModelConfig(
        architecture=fields.sequence("architectures")[0],
        vocab_size=fields.positive_int("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.positive_int("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_context=read_context(fields, rope, max_positions),
        rms_norm_eps=fields.positive_float("rms_norm_eps", 1e-6),
        rope=rope,
        rotary_dim=read_rotary_dim(fields, head_dim, partial_rotary),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        activation=read_activation(fields),
        layer_kinds=read_kinds(fields, layers, kinds),
        quantization=fields.mapping(fields.named("quantization_config", "compression_config")) or None,
        dtype=fields.text("dtype", fields.text("torch_dtype", "")),
        eos_token_ids=fields.token_ids("eos_token_id"),
        bos_token_id=bos[0] if bos else None,
    )


def read_context(fields: Fields, rope: RopeConfig, max_positions: int) -> int:
    """Positions the model serves. Attention in chunks (Qwen's 1M models) is not computed: the context ends where it
    would begin to matter."""
    chunks = Fields(fields.mapping("dual_chunk_attention_config"), f"{fields.where}: dual_chunk_attention_config")
    whole = max_context(rope, max_positions)
    return min(whole, chunks.positive_int("original_max_position_embeddings")) if chunks.values else whole


def read_head_dim(fields: Fields, hidden: int, heads: int) -> int:
    """Dimensions of a head, even."""
    if fields.get("head_dim") is None and hidden % heads:
        raise ModelError(
            f"{fields.where}: hidden_size={hidden} is not a multiple of num_attention_heads={heads}; set head_dim"
        )
    head_dim = fields.positive_int("head_dim", hidden // heads)
    if head_dim % 2:
        raise ModelError(f"{fields.where}: head_dim={head_dim} is odd; rotary embedding needs pairs")
    return head_dim


def read_rotary_dim(fields: Fields, head_dim: int, partial: bool) -> int:
    """Dimensions of a head that are rotated: all, or the share that ``partial_rotary_factor`` says."""
    rope = Fields(fields.mapping("rope_parameters"), f"{fields.where}: rope_parameters")
    share = rope.positive_float("partial_rotary_factor", fields.positive_float("partial_rotary_factor", 1.0))
    if share == 1.0:
        return head_dim
    size = int(head_dim * share)
    if not partial or not 0 < size <= head_dim or size % 2:
        supported = "only 1 is" if not partial else f"of head_dim={head_dim} it must leave an even number"
        raise ModelError(f"{fields.where}: partial_rotary_factor={share:g} is not supported; {supported}")
    return size


def read_activation(fields: Fields) -> Activation:
    """``hidden_act``, or what some families call it."""
    name = fields.text("hidden_act", fields.text("hidden_activation", "silu"))
    if name not in ACTIVATIONS:
        raise ModelError(
            f"{fields.where}: hidden_act={name!r} is not supported; supported: {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]


def read_kinds(fields: Fields, layers: int, kinds: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    """``layer_types``, one a layer and each among ``kinds``; where the config has none, all layers are of the first."""
    given = fields.sequence("layer_types")
    found = tuple(kind for name in given for kind in kinds if kind == name)
    if len(found) != len(given):
        raise ModelError(
            f"{fields.where}: layer_types {sorted(set(map(str, given)))} is not supported; only {', '.join(kinds)}"
        )
    if given and len(given) != layers:
        raise ModelError(f"{fields.where}: layer_types has {len(given)} entries for num_hidden_layers={layers}")
    return found or (kinds[0],) * layers
