"""Mistral (https://arxiv.org/abs/2310.06825), the text part of Mistral 3: Llama with a window on all layers, or none.

The number of heads times their size need not be the hidden size (Nemo, Small).
"""

from __future__ import annotations

from typing import ClassVar

from sglite.runtime.model.llama import LlamaForCausalLM
from sglite.runtime.model.names import IMAGE_TOWER, NameTable


class MistralForCausalLM(LlamaForCausalLM):
    """Its config says which layers have a window."""


class Mistral3ForConditionalGeneration(MistralForCausalLM):
    """What reads and writes text of Mistral Small 3.1 and later; the tower for images stays in the file."""

    names: ClassVar[NameTable] = IMAGE_TOWER
