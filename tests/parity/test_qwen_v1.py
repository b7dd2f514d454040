"""The first Qwen in its own layout, against the Qwen2 of transformers with the same weights: the same function."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
from model_families import Family, random_model
from paged_runner import Extend, PagedRunner, computed_in_chunks
from safetensors.torch import save_file
from torch import Tensor
from unit.text import vocabularies as v

from sglite import Engine
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.loader import load_model
from sglite.runtime.text.chat_template import ChatTemplate
from sglite.runtime.text.tokenizer import load_tokenizer

VOCAB_SIZE = 640
CONFIG: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
    "bf16": False,
    "emb_dropout_prob": 0.0,
    "hidden_size": 64,
    "intermediate_size": 2 * 96,
    "kv_channels": 16,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 4096,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "rotary_emb_base": 5000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_dynamic_ntk": True,
    "use_flash_attn": "auto",
    "use_logn_attn": True,
    "vocab_size": VOCAB_SIZE,
}
RENAMED = {
    "self_attn.o_proj": "attn.c_proj",
    "mlp.gate_proj": "mlp.w2",
    "mlp.up_proj": "mlp.w1",
    "mlp.down_proj": "mlp.c_proj",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
}
WHOLE = {"model.embed_tokens.weight": "transformer.wte.weight", "model.norm.weight": "transformer.ln_f.weight"}


def make_oracle() -> Any:
    fields: dict[str, Any] = {
        "num_key_value_heads": 4,
        "head_dim": None,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
    }
    fields |= {"rms_norm_eps": 1e-5, "rope_theta": 5000.0, "vocab_size": VOCAB_SIZE}
    return random_model(Family("qwen2", fields))


def make_folder(folder: Path, oracle: Any, **config: Any) -> Path:
    """The oracle's weights as the hub's Qwen-7B has them, with its tiktoken vocabulary."""
    state = {name: tensor.contiguous() for name, tensor in oracle.state_dict().items()}
    tensors = {"lm_head.weight": state["lm_head.weight"], **{to: state[name] for name, to in WHOLE.items()}}
    for layer in range(3):
        theirs, ours = f"model.layers.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            parts = [state[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{ours}.attn.c_attn.{kind}"] = torch.cat(parts)
        for name, to in RENAMED.items():
            tensors[f"{ours}.{to}.weight"] = state[f"{theirs}.{name}.weight"]
    folder.mkdir(parents=True)
    extra = {"transformer.rotary_emb.inv_freq": torch.ones(8), "transformer.visual.conv1.weight": torch.ones(2, 2)}
    save_file({**tensors, **extra}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    settings = {"chat_format": "chatml", "eos_token_id": 151643, "top_p": 0.8, "top_k": 0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    named = {"model_max_length": 512, "tokenizer_class": "QWenTokenizer", "auto_map": {"AutoTokenizer": ["x", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    lines = (b"%s %d" % (base64.b64encode(token), rank) for token, rank in v.qwen_ranks().items())
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    return folder


@pytest.fixture(scope="module")
def oracle() -> Any:
    return make_oracle()


@pytest.fixture(scope="module")
def folder(oracle: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("qwen") / "m", oracle)


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB_SIZE), k=length)


@torch.no_grad()
def expected(oracle: Any, ids: list[int]) -> Tensor:
    logits: Tensor = oracle(torch.tensor([ids]), use_cache=False).logits[0].float()
    return logits


def test_logits_are_those_of_the_same_function(oracle: Any, folder: Path) -> None:
    runner = PagedRunner(load_model(folder, backend=CPUBackend()), CPUBackend())
    logits = expected(oracle, prompt(90))
    assert logits.std() > 0.5
    torch.testing.assert_close(runner.step([Extend("row", prompt(90))])[0], logits, atol=1e-4, rtol=0)


def test_chunks_equal_the_full_pass(oracle: Any, folder: Path) -> None:
    prompts = {"a": prompt(75, 1), "b": prompt(9, 2)}
    runner = PagedRunner(load_model(folder, backend=CPUBackend()), CPUBackend(), page_size=4)
    for row, logits in computed_in_chunks(runner, prompts, 7).items():
        torch.testing.assert_close(logits, expected(oracle, prompts[row]), atol=1e-4, rtol=0)


def test_greedy_tokens_are_those_of_the_same_function_cold_and_warm(oracle: Any, folder: Path) -> None:
    ids = prompt(30, 3)
    whole = list(ids)
    for _ in range(64):
        whole.append(int(expected(oracle, whole)[-1].argmax()))
    sampling = {"temperature": 0, "max_new_tokens": 64, "ignore_eos": True}
    with Engine(folder, max_total_tokens=2048) as engine:
        cold = engine.generate(input_ids=ids, sampling_params=sampling)
        warm = engine.generate(input_ids=ids, sampling_params=sampling)
    assert cold["output_ids"] == warm["output_ids"] == whole[30:]
    assert warm["meta_info"]["cached_tokens"] >= 29


def test_the_context_ends_where_the_keys_would_begin_to_change(folder: Path) -> None:
    assert load_model(folder, backend=CPUBackend()).max_context == 512


@pytest.mark.parametrize(
    ("field", "value"),
    [("rotary_pct", 0.5), ("scale_attn_weights", False), ("use_cache_quantization", True), ("intermediate_size", 193)],
)
def test_what_is_not_served_is_refused_by_name(field: str, value: Any, oracle: Any, tmp_path: Path) -> None:
    made = make_folder(tmp_path / "m", oracle, **{field: value})
    with pytest.raises(ModelError, match=field):
        load_model(made, backend=CPUBackend())


def test_biases_are_wanted_where_the_config_has_them(oracle: Any, tmp_path: Path) -> None:
    made = make_folder(tmp_path / "m", oracle, no_bias=False)
    with pytest.raises(ModelError, match=r"layers\.0\.attn\.c_proj\.bias"):
        load_model(made, backend=CPUBackend())


def test_texts_are_cut_as_tiktoken_cuts_them(folder: Path) -> None:
    ranks = v.qwen_ranks()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    special = {name: len(ranks) + i for i, name in enumerate(names)}
    # As Qwen's own tokenization code has it.
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    theirs = tiktoken.Encoding("Qwen", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    ours = load_tokenizer(folder)
    assert ours.vocab_size == theirs.n_vocab and set(special.values()) == ours.special_token_ids
    for text in [*v.TEXTS, " lead", "a<|im_end|>b<|extra_204|>", "<|im_start|>user\nhi<|im_end|>\n"]:
        ids = theirs.encode(text, allowed_special="all")
        assert ours.encode(text) == ids
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
        assert ours.encode(text, parse_special=False) == theirs.encode(text, disallowed_special=())


def test_a_conversation_is_written_as_its_own_code_writes_it(folder: Path, tmp_path: Path) -> None:
    template = ChatTemplate.load(folder)
    assert template is not None and template.default_system == "You are a helpful assistant."
    said = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "no"},
    ]
    system, turns = "You are a helpful assistant.", [("hi", "yes?")]
    for messages in (said, [{"role": "system", "content": "Be brief."}, *said]):
        system = messages[0]["content"] if messages[0]["role"] == "system" else system
        whole = f"<|im_start|>system\n{system}<|im_end|>"
        for asked, answered in turns:
            whole += f"\n<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{answered}<|im_end|>"
        whole += "\n<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\n"
        assert template.render(messages, add_generation_prompt=True) == whole
    assert load_tokenizer(folder).id_of("<|im_end|>") in load_tokenizer(folder).eos_token_ids


def test_a_model_that_was_not_trained_to_chat_has_no_template(oracle: Any, tmp_path: Path) -> None:
    made = make_folder(tmp_path / "m", oracle)
    (made / "generation_config.json").write_text(json.dumps({"chat_format": "raw"}))
    assert ChatTemplate.load(made) is None
