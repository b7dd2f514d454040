"""Qwen3.5, dense or with experts: Qwen3-Next with a projection of its own for each input of the delta-net.

Its checkpoints see images too; here they serve text, whose positions are the same in all three dimensions.
"""

from __future__ import annotations

from sglite.runtime.model.names import NameTable
from sglite.runtime.model.qwen3_next import Qwen3NextForCausalLM


class Qwen3_5ForCausalLM(Qwen3NextForCausalLM):
    """The language model, whether it stands alone in its checkpoint or beside a tower for images."""

    names = NameTable(prefixes={"model.language_model.": "model."}, unused=("mtp.*", "model.visual.*"))
    grouped_projections = False


class Qwen3_5MoeForCausalLM(Qwen3_5ForCausalLM):
    """The same with experts, whichever of the layouts in use they are stored in."""


class Qwen3_5ForConditionalGeneration(Qwen3_5ForCausalLM):
    """The whole model, of which the language model is served."""


class Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeForCausalLM):
    """The whole model with experts, of which the language model is served."""
