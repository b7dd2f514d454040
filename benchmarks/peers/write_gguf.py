"""A checkpoint as GGUF files for llama.cpp, with the package ``gguf``: run in the peer's environment.

    python write_gguf.py FOLDER      # writes FOLDER/bf16.gguf and FOLDER/q8_0.gguf

Matrices are bf16 as they are, or Q8_0, the embeddings included, which are also the output head; norms are float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from safetensors import safe_open

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
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
KINDS = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
FILE_KINDS = {"bf16": gguf.LlamaFileType.MOSTLY_BF16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


def write(folder: Path, kind: str) -> None:
    """One file, whole or not at all."""
    path, part = folder / f"{kind}.gguf", folder / f"{kind}.part"
    if path.exists():
        return
    writer = gguf.GGUFWriter(str(part), "qwen3")
    shape(writer, json.loads((folder / "config.json").read_text(encoding="utf-8")))
    writer.add_file_type(FILE_KINDS[kind])
    words(writer, json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        for name in file.keys():  # noqa: SIM118  # not a mapping
            values = file.get_tensor(name).float().numpy()
            if values.ndim == 1:
                writer.add_tensor(rename(name), values)
            else:
                writer.add_tensor(rename(name), quantize(values, KINDS[kind]), raw_dtype=KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)


def rename(name: str) -> str:
    """llama.cpp's name of a checkpoint's tensor."""
    stem, _, _ = name.rpartition(".weight")
    if stem in TOP:
        return f"{TOP[stem]}.weight"
    _, _, index, rest = stem.split(".", 3)
    return f"blk.{index}.{LAYER[rest]}.weight"


def shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Sizes of the model."""
    writer.add_name("random")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def words(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    """The vocabulary and its merges."""
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    by_id = {i: text for text, i in tokenizer["model"]["vocab"].items()} | special
    kinds = [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(by_id))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([by_id[i] for i in range(len(by_id))])
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    for kind in KINDS:
        write(Path(sys.argv[1]), kind)
