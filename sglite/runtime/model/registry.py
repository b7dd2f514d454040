"""Which class serves which ``architectures`` entry of a config."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.layers.decoder import CausalLM
from sglite.runtime.model.llama import LlamaForCausalLM
from sglite.runtime.model.qwen2 import Qwen2ForCausalLM
from sglite.runtime.model.qwen3 import Qwen3ForCausalLM

ARCHITECTURES: Mapping[str, type[CausalLM]] = MappingProxyType(
    {cls.__name__: cls for cls in (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)}
)


def model_class(config: ModelConfig) -> type[CausalLM]:
    """The class of a config's architecture; ModelError lists what is supported.

    ``Qwen3Model`` and the like are what transformers calls the same decoder without its head.
    """
    name = config.architecture
    whole = f"{name.removesuffix('Model')}ForCausalLM" if name.endswith("Model") else name
    if whole not in ARCHITECTURES:
        raise ModelError(
            f"architecture {config.architecture!r} is not supported; supported: {', '.join(sorted(ARCHITECTURES))}"
        )
    return ARCHITECTURES[whole]
