"""Which class serves which ``architectures`` entry of a config; ``architectures`` says who reads it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sglite.runtime.model.classifiers import (
    LlamaForSequenceClassification,
    Qwen2ForRewardModel,
    Qwen2ForSequenceClassification,
    Qwen3ForSequenceClassification,
)
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.deepseek import (
    DeepseekForCausalLM,
    DeepseekV2ForCausalLM,
    DeepseekV3ForCausalLM,
    DeepseekV32ForCausalLM,
)
from sglite.runtime.model.gemma3 import Gemma3ForCausalLM, Gemma3ForConditionalGeneration
from sglite.runtime.model.gpt_oss import GptOssForCausalLM
from sglite.runtime.model.layers.decoder import CausalLM
from sglite.runtime.model.llama import LlamaForCausalLM
from sglite.runtime.model.mistral import Mistral3ForConditionalGeneration, MistralForCausalLM
from sglite.runtime.model.mixtral import MixtralForCausalLM
from sglite.runtime.model.olmo2 import Olmo2ForCausalLM
from sglite.runtime.model.qwen import QWenLMHeadModel
from sglite.runtime.model.qwen2 import Qwen2ForCausalLM
from sglite.runtime.model.qwen2_moe import Qwen2MoeForCausalLM
from sglite.runtime.model.qwen3 import Qwen3ForCausalLM
from sglite.runtime.model.qwen3_5 import (
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeForConditionalGeneration,
)
from sglite.runtime.model.qwen3_moe import Qwen3MoeForCausalLM
from sglite.runtime.model.qwen3_next import Qwen3NextForCausalLM

ARCHITECTURES: Mapping[str, type[CausalLM]] = MappingProxyType(
    {
        cls.__name__: cls
        for cls in (
            DeepseekForCausalLM,
            DeepseekV2ForCausalLM,
            DeepseekV3ForCausalLM,
            DeepseekV32ForCausalLM,
            Gemma3ForCausalLM,
            Gemma3ForConditionalGeneration,
            GptOssForCausalLM,
            LlamaForCausalLM,
            LlamaForSequenceClassification,
            Mistral3ForConditionalGeneration,
            MistralForCausalLM,
            MixtralForCausalLM,
            Olmo2ForCausalLM,
            QWenLMHeadModel,
            Qwen2ForCausalLM,
            Qwen2ForRewardModel,
            Qwen2ForSequenceClassification,
            Qwen2MoeForCausalLM,
            Qwen3ForCausalLM,
            Qwen3ForSequenceClassification,
            Qwen3MoeForCausalLM,
            Qwen3NextForCausalLM,
            Qwen3_5ForCausalLM,
            Qwen3_5ForConditionalGeneration,
            Qwen3_5MoeForCausalLM,
            Qwen3_5MoeForConditionalGeneration,
        )
    }
)


def model_class(config: ModelConfig) -> type[CausalLM]:
    """The class of a config's architecture."""
    return ARCHITECTURES[config.architecture]
