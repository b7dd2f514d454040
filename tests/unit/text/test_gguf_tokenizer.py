"""Tokenizers and chat templates out of GGUF files, against the tokenizers that they were written from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from gguf_files import U32, value, write_gguf
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from unit.text import vocabularies as v

from sglite.runtime.pooling import Pooling, Undeclared, read_pooling
from sglite.runtime.text.chat_template import ChatTemplate
from sglite.runtime.text.gguf_vocabulary import SPLITTINGS
from sglite.runtime.text.spm import SentencePieceModel
from sglite.runtime.text.tokenizer import TokenizerError, load_tokenizer

TEXTS = [
    *v.TEXTS,
    " leading",
    "  two leading",
    "trailing  ",
    "Ａ１２３４ ½ ４٤ 12345678",
    "e\u0301 composes",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<tool_call>{}</tool_call>",
    "camelCaseWord HTTPServer ALLCAPS /path/to/file.txt\n/\n",
    "它说：“你好” カタカナ ひらがな",
]


O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
"""As tiktoken's o200k_base has it."""


def from_json(state: dict[str, Any], path: Path, **more: Any) -> Path:
    """A GGUF file with the vocabulary of a tokenizer.json, and ten ids of padding behind it."""
    pieces = {**state["model"]["vocab"], **{token["content"]: token["id"] for token in state["added_tokens"]}}
    by_id = {i: piece for piece, i in pieces.items()}
    kinds = {token["id"]: 3 if token["special"] else 4 for token in state["added_tokens"]}
    size = max(by_id) + 11
    keys = {
        "general.architecture": "qwen3",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [by_id.get(i, f"[PAD{i}]") for i in range(size)],
        "tokenizer.ggml.token_type": [kinds.get(i, 1 if i in by_id else 5) for i in range(size)],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": U32(pieces["<|im_end|>"]),
        "tokenizer.ggml.bos_token_id": U32(pieces["<|endoftext|>"]),
        **{key.replace("__", "."): item for key, item in more.items()},
    }
    return write_gguf(path, {key: item for key, item in keys.items() if item is not None}, {})


def published(name: str) -> Tokenizer:
    """A tokenizer as the published ones of that name are built, from what their tokenizer.json holds."""
    rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    start = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    low, up = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
    tekken = (
        rf"[^\r\n\p{{L}}\p{{N}}]?{up}*{low}+|[^\r\n\p{{L}}\p{{N}}]?{up}+{low}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*"
    )
    deepseek = (
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
    )
    patterns = {
        "llama-bpe": [start + r"\p{N}{1,3}|" + rest],
        "qwen2": [start + r"\p{N}|" + rest],
        "tekken": [tekken + r"|\s*[\r\n]+|\s+(?!\S)|\s+"],
        "gpt-4o": [O200K],
        "deepseek-v3": [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", deepseek],
    }
    made = v.byte_level_backend()
    if name in patterns:
        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns[name]]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if name == "qwen2":
        made.normalizer = normalizers.NFC()
    if name in ("llama-bpe", "tekken", "gpt-4o"):
        state = json.loads(made.to_str())
        state["model"]["ignore_merges"] = True
        made = Tokenizer.from_str(json.dumps(state))
    return made


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-v3", "tekken", "gpt-4o"])
def test_equals_the_published_tokenizer(name: str, tmp_path: Path) -> None:
    theirs = published(name)
    ours = load_tokenizer(from_json(json.loads(theirs.to_str()), tmp_path / "m.gguf", tokenizer__ggml__pre=name))
    assert ours.vocab_size == theirs.get_vocab_size()
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)


def test_every_name_is_one_of_those_or_another_word_for_it() -> None:
    assert SPLITTINGS["llama3"] == SPLITTINGS["llama-v3"] == SPLITTINGS["llama-bpe"]
    assert SPLITTINGS["deepseek-r1-qwen"] == SPLITTINGS["qwen2"]
    assert len(set(SPLITTINGS.values())) == 7


def test_a_word_in_the_vocabulary_is_whole_where_the_published_tokenizer_keeps_it(tmp_path: Path) -> None:
    """Llama 3 has words that no merges lead to."""
    state = json.loads(v.byte_level_backend().to_str())
    state["model"]["vocab"]["zqzq"] = 500
    whole = load_tokenizer(from_json(state, tmp_path / "a.gguf", tokenizer__ggml__pre="llama-bpe"))
    cut = load_tokenizer(from_json(state, tmp_path / "b.gguf", tokenizer__ggml__pre="qwen2"))
    assert whole.encode("zqzq") == [500] and len(cut.encode("zqzq")) == 4


def from_sentencepiece(folder: Path, path: Path, **more: Any) -> Path:
    model = SentencePieceModel.parse((folder / "tokenizer.model").read_bytes())
    keys = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [text for text, _, _ in model.pieces],
        "tokenizer.ggml.scores": [float(score) for _, score, _ in model.pieces],
        "tokenizer.ggml.token_type": [kind for _, _, kind in model.pieces],
        **{f"tokenizer.ggml.{key}_token_id": U32(model.ids[name]) for key, name in (("bos", "bos"), ("eos", "eos"))},
        **{key.replace("__", "."): item for key, item in more.items()},
    }
    return write_gguf(path, keys, {})


def test_equals_sentencepiece(tmp_path: Path) -> None:
    folder = v.sentencepiece_folder("bpe")
    theirs = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    ours = load_tokenizer(from_sentencepiece(folder, tmp_path / "m.gguf"))
    assert ours.adds_bos and ours.bos_token_id == theirs.bos_id() and theirs.eos_id() in ours.eos_token_ids
    assert ours.vocab_size == theirs.get_piece_size()
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text, parse_special=False) == ids
        assert ours.decode(ids) == theirs.decode(ids)


def test_runs_of_spaces_that_were_made_tokens_are_found(tmp_path: Path) -> None:
    """As in Gemma, whose texts get no space in front."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for each in v.CORPUS for line in each.splitlines() if line.strip()),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        character_coverage=0.999,
        user_defined_symbols=["\u2581\u2581", "\u2581\u2581\u2581", "\n", "\n\n", "<td>"],
        control_symbols=["<start_of_turn>"],
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        minloglevel=2,
        num_threads=1,
    )
    theirs = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    ours = load_tokenizer(from_sentencepiece(tmp_path, tmp_path / "m.gguf", tokenizer__ggml__add_space_prefix=False))
    for text in [*TEXTS, "a  b", "def f():\n    return  1\n\n\n     x", "<td>  </td>"]:
        ids = theirs.encode(text)
        assert ours.encode(text, parse_special=False) == ids
        assert ours.decode(ids) == theirs.decode(ids)


def test_a_space_follows_each_special_token_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    folder = v.sentencepiece_folder("bpe")
    ours = load_tokenizer(from_sentencepiece(folder, tmp_path / "a.gguf"))
    bare = load_tokenizer(from_sentencepiece(folder, tmp_path / "b.gguf", tokenizer__ggml__add_space_prefix=False))
    end = ours.id_of("<|im_end|>")
    assert ours.encode("<|im_end|>a") == [end, *ours.encode("a")]
    assert ours.encode("a") != bare.encode("a") and bare.decode(bare.encode(" a")) == " a"


def test_squeezed_spaces_are_refused(tmp_path: Path) -> None:
    folder = v.sentencepiece_folder("bpe")
    with pytest.raises(TokenizerError, match="remove_extra_whitespaces=true"):
        load_tokenizer(from_sentencepiece(folder, tmp_path / "m.gguf", tokenizer__ggml__remove_extra_whitespaces=True))


def test_bos_eos_and_turn_ends_come_from_the_file(tmp_path: Path) -> None:
    state = json.loads(v.byte_level_backend().to_str())
    told = {"tokenizer__ggml__add_bos_token": True, "tokenizer__ggml__add_eos_token": True}
    plain = load_tokenizer(from_json(state, tmp_path / "a.gguf"))
    assert not plain.adds_bos and plain.eos_token_ids == (2,) and plain.bos_token_id == 0
    both = load_tokenizer(from_json(state, tmp_path / "b.gguf", **told, tokenizer__ggml__eot_token_id=U32(1)))
    assert both.eos_token_ids == (2, 1)
    assert both.encode("a", add_bos=True) == [0, *plain.encode("a")]
    assert both.encode_whole("a") == [0, *plain.encode("a"), 2]
    llama = load_tokenizer(from_json(state, tmp_path / "c.gguf", tokenizer__ggml__pre="llama-bpe"))
    assert llama.adds_bos


def test_chat_templates_come_from_the_file(tmp_path: Path) -> None:
    state = json.loads(v.byte_level_backend().to_str())
    template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    named = {
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "tools: {{ messages[0].content }}",
    }
    made = from_json(state, tmp_path / "m.gguf", tokenizer__chat_template=template, **named)
    found = ChatTemplate.load(made)
    assert found is not None
    assert found.render([{"role": "user", "content": "hi"}]) == "<|endoftext|>hi<|im_end|>"
    assert found.render([{"role": "user", "content": "hi"}], tools=[{"type": "function"}]) == "tools: hi"
    assert ChatTemplate.load(from_json(state, tmp_path / "n.gguf")) is None


@pytest.mark.parametrize(("kind", "said"), [(None, "no pooling"), (3, ""), (1, "mean"), (4, "rank"), (9, "9")])
def test_pooling_is_declared_by_the_file(kind: int | None, said: str, tmp_path: Path) -> None:
    keys = {"general.architecture": "qwen3"} | ({} if kind is None else {"qwen3.pooling_type": U32(kind)})
    path = write_gguf(tmp_path / "m.gguf", keys, {})
    if said:
        with pytest.raises(Undeclared, match=said):
            read_pooling(path)
    if kind in (None, 3):
        assert read_pooling(path, asked=True) == Pooling()


@pytest.mark.parametrize(
    ("key", "item", "said"),
    [
        ("tokenizer.ggml.pre", "poro-chat", "poro-chat"),
        ("tokenizer.ggml.pre", None, "pre=None"),
        ("tokenizer.ggml.model", "t5", "t5"),
        ("tokenizer.ggml.tokens", ["a", "a"], "types"),
        ("tokenizer.ggml.token_type", [1], "types"),
        ("tokenizer.ggml.token_type", None, "in the vocabulary twice"),
        ("tokenizer.ggml.token_type", "no list", "not a list"),
        ("tokenizer.ggml.merges", ["a b", "no such"], "not usable"),
        ("tokenizer.ggml.eos_token_id", "two", "not a whole number"),
        ("tokenizer.chat_template", 3, "not a text"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_line(key: str, item: Any, said: str, tmp_path: Path) -> None:
    more = {"tokenizer.ggml.tokens": ["a", "a"]} if said.startswith("in the") else {}
    path = from_json(json.loads(v.byte_level_backend().to_str()), tmp_path / "m.gguf", **{key: item, **more})
    with pytest.raises(TokenizerError, match=said) as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_the_writer_of_these_tests_writes_what_the_format_says() -> None:
    assert value(True) == b"\x07\0\0\0\x01"
    assert value(["a"]) == b"\x09\0\0\0\x08\0\0\0\x01" + b"\0" * 7 + b"\x01" + b"\0" * 7 + b"a"
