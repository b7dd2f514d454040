"""Which class serves which ``architectures`` entry of a config; ``architectures`` says who reads it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.layers.decoder import CausalLM
from sglite.runtime.model.llama import LlamaForCausalLM
from sglite.runtime.model.qwen2 import Qwen2ForCausalLM
from sglite.runtime.model.qwen2_moe import Qwen2MoeForCausalLM
from sglite.runtime.model.qwen3 import Qwen3ForCausalLM
from sglite.runtime.model.qwen3_moe import Qwen3MoeForCausalLM

ARCHITECTURES: Mapping[str, type[CausalLM]] = MappingProxyType(
    {
        cls.__name__: cls
        for cls in (
            LlamaForCausalLM,
            Qwen2ForCausalLM,
            Qwen2MoeForCausalLM,
            Qwen3ForCausalLM,
            Qwen3MoeForCausalLM,
        )
    }
)


def model_class(config: ModelConfig) -> type[CausalLM]:
    """The class of a config's architecture."""
    return ARCHITECTURES[config.architecture]
