"""Qwen3-Next: three layers of gated delta-net to one of gated attention, and experts with a gated shared one."""

from __future__ import annotations

from typing import ClassVar

from sglite.runtime.model.layers.decoder import CausalLM, DecoderLayer, Layer, Mixer
from sglite.runtime.model.layers.delta_net import DeltaNet
from sglite.runtime.model.layers.gated_attention import GatedAttention
from sglite.runtime.model.layers.norm import CentredRMSNorm, Norm
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.model.names import NameTable


class Qwen3NextForCausalLM(CausalLM):
    """Norms are stored centred on 0. What predicts several tokens at once (``mtp``) is left in the file."""

    names = NameTable(unused=("mtp.*",))
    grouped_projections: ClassVar[bool] = True
    """How recurrent layers project their input, see ``DeltaNet``."""

    def attention(self, weights: WeightTable, name: str, layer: int) -> Mixer:
        """See CausalLM."""
        return GatedAttention(weights, name, self.config, self.pool_layers[layer])

    def layer(self, weights: WeightTable, name: str, layer: int) -> Layer:
        """See CausalLM."""
        mixer: Mixer
        if self.config.layer_kinds[layer] == "linear_attention":
            own = self.pool_layers[layer]
            mixer = DeltaNet(weights, f"{name}.linear_attn", self.config, own, grouped=self.grouped_projections)
        else:
            mixer = self.attention(weights, f"{name}.self_attn", layer)
        return DecoderLayer(
            self.norm_of(weights, f"{name}.input_layernorm"),
            mixer,
            self.norm_of(weights, f"{name}.post_attention_layernorm"),
            self.mlp(weights, f"{name}.mlp", layer),
        )

    def norm_of(self, weights: WeightTable, name: str) -> Norm:
        """See CausalLM."""
        return CentredRMSNorm(weights, name, self.config.hidden_size, self.config.rms_norm_eps)
