"""From a checkpoint to a Hugging Face folder, and the proof that both compute the same."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from tools.demo_model import data
from tools.demo_model.dialog import Dialog, render, text_of
from tools.demo_model.model import Shape, TinyQwen3
from tools.demo_model.tokenizer import SPECIAL

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
NAMES = {
    "norm1": "input_layernorm", "norm2": "post_attention_layernorm", "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def load_model(checkpoint: Path, dtype: torch.dtype = torch.bfloat16) -> TinyQwen3:
    model = TinyQwen3(Shape(), dtype)
    model.load_state_dict({k[6:]: v for k, v in load_file(checkpoint).items() if k.startswith("model.")})
    return model.eval()


def weights(model: TinyQwen3) -> dict[str, Tensor]:
    """The weights under the names of Qwen3ForCausalLM, in bfloat16."""
    out = {"model.embed_tokens.weight": model.embed, "model.norm.weight": model.norm}
    for name, p in model.blocks.named_parameters():
        layer, part = name.split(".")
        out[f"model.layers.{layer}.{NAMES[part]}.weight"] = p
    return {k: v.detach().to(torch.bfloat16).contiguous() for k, v in out.items()}


def config(shape: Shape, tok: Tokenizer) -> dict[str, Any]:
    eos = [tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>")]
    return {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": shape.vocab,
        "hidden_size": shape.hidden, "intermediate_size": shape.ff, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
        "max_position_embeddings": shape.max_positions, "max_window_layers": shape.layers,
        "rms_norm_eps": shape.eps, "rope_theta": shape.rope_theta, "rope_scaling": None, "sliding_window": None,
        "use_sliding_window": False, "tie_word_embeddings": True, "initializer_range": 0.02, "use_cache": True,
        "bos_token_id": eos[1], "eos_token_id": eos[0], "pad_token_id": eos[1], "torch_dtype": "bfloat16",
    }  # fmt: skip


def tokenizer_config(shape: Shape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": shape.max_positions, "bos_token": None,
        "unk_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
        "additional_special_tokens": SPECIAL, "clean_up_tokenization_spaces": False, "split_special_tokens": False,
    }  # fmt: skip


def write(model: TinyQwen3, run: Path, target: Path, card: str) -> None:
    """Write the folder aside, then move its files into place one by one, so that a reader never sees half a file."""
    tok = Tokenizer.from_file(str(run / "tokenizer.json"))
    target.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    conf = config(model.shape, tok)
    generation = {"bos_token_id": conf["bos_token_id"], "eos_token_id": [conf["eos_token_id"], conf["bos_token_id"]],
                  "pad_token_id": conf["pad_token_id"], "do_sample": False}  # fmt: skip
    for name, value in {
        "config.json": conf,
        "generation_config.json": generation,
        "tokenizer_config.json": tokenizer_config(model.shape),
    }.items():
        (aside / name).write_text(json.dumps(value, indent=2) + "\n")
    shutil.copy(run / "tokenizer.json", aside / "tokenizer.json")
    shutil.copy(TEMPLATE, aside / TEMPLATE.name)
    (aside / "README.md").write_text(card)
    save_file(weights(model), aside / "model.safetensors", metadata={"format": "pt"})
    for file in aside.iterdir():
        file.chmod(0o644)
        os.replace(file, target / file.name)
    aside.rmdir()


def messages(dialog: Dialog) -> list[dict[str, Any]]:
    """The turns as an API would send them."""
    out: list[dict[str, Any]] = []
    for turn in dialog.turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in turn.calls
            ]
        out.append(message)
    return out


def check(run: Path, folder: Path, seed: int = 11) -> dict[str, float]:
    """Load the folder as anyone would; compare logits, token ids and the chat template with the training code."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    theirs.train(False)
    wrapped = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tok = Tokenizer.from_file(str(run / "tokenizer.json"))
    ours = TinyQwen3(Shape(), torch.float32).eval()
    ours.load_state_dict({k: v.float() for k, v in _unmapped(folder).items()})
    worst, dialogs, count = 0.0, data.dialogs(seed), 0
    while count < 200:
        dialog = next(dialogs)
        text = "".join(p.text for p in render(dialog))
        ids = tok.encode(text, add_special_tokens=False).ids
        if wrapped(text, add_special_tokens=False)["input_ids"] != ids:
            raise RuntimeError(f"the wrapped tokenizer disagrees on {text!r}")
        if count < 20:
            with torch.inference_mode():
                batch = torch.tensor([ids])
                worst = max(worst, float((theirs(batch).logits[0] - ours.logits(ours.hidden(batch)[0])).abs().max()))
        if not dialog.raw and all(t.thought is None for t in dialog.turns):
            shown = wrapped.apply_chat_template(messages(dialog), tools=list(dialog.tools) or None, tokenize=False)
            if shown != text:
                raise RuntimeError(f"the template says\n{shown}\nand the training text is\n{text}")
            last = text_of(dialog.turns[-1]) + "<|im_end|>\n"
            opened = wrapped.apply_chat_template(
                messages(dialog)[:-1],
                tools=list(dialog.tools) or None,
                tokenize=False,
                add_generation_prompt=True,
            )
            if f"{opened}{last}" != text:
                raise RuntimeError(f"the generation prompt differs: {opened!r}")
        count += 1
    if worst > 1e-2:
        raise RuntimeError(f"logits differ from transformers by {worst}")
    return {"max_logit_difference": worst, "texts_compared": float(count)}


def _unmapped(folder: Path) -> dict[str, Tensor]:
    back = {v: k for k, v in NAMES.items()}
    out: dict[str, Tensor] = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if name.startswith("model.layers."):
            layer, part = name[13:].removesuffix(".weight").split(".", 1)
            out[f"blocks.{layer}.{back[part]}"] = value
        else:
            out[{"model.embed_tokens.weight": "embed", "model.norm.weight": "norm"}[name]] = value
    return out
