"""Tokenizers: equal to the reference libraries, honest about bytes, clear about broken folders."""

from __future__ import annotations

import base64
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
from unit.text import vocabularies as v

from sglite.runtime.text.ranks import QWEN
from sglite.runtime.text.tokenizer import Tokenizer, TokenizerError, load_tokenizer

EDGES = ["a<|im_end|>b", " lead", "  two", "<|im_end|> x", "a<|im_end|> b <tool> c", "<tool_call>{}</tool_call>"]


def changed(folder: Path, tmp_path: Path, **files: object) -> Path:
    """A copy of `folder` with some JSON files replaced (None: removed)."""
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    for name, value in files.items():
        path = copy / f"{name}.json"
        if value is None:
            path.unlink()
        else:
            path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return copy


@pytest.mark.parametrize("name", ["byte_level", "nfc", "bos", "spm_bpe"])
def test_equals_the_reference_tokenizer(name: str) -> None:
    import transformers

    folder = v.ALL_FOLDERS[name]()
    reference, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in [*v.TEXTS, *EDGES]:
        ids = ours.encode(text)
        assert ids == reference.encode(text, add_special_tokens=False), text
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip), text


@pytest.mark.parametrize("kind", ["bpe", "bpe_nfkc", "unigram"])
def test_equals_sentencepiece_itself(kind: str) -> None:
    folder = v.sentencepiece_folder(kind)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ours = load_tokenizer(folder)
    # A space before the first word is one with the space that the encoder adds; only squeezing models agree on it.
    edges = [" lead", "  two", "trail  "] if kind != "bpe" else []
    for text in [*v.TEXTS, *edges]:
        ids = reference.encode(text)
        assert ours.encode(text) == ids, text
        assert 0 in ids or ours.decode(ids) == reference.decode(ids), text


def test_equals_tiktoken() -> None:
    reference = tiktoken.Encoding("q", pat_str=QWEN.pattern, mergeable_ranks=v.qwen_ranks(), special_tokens={})
    ours = load_tokenizer(v.qwen_folder())
    for text in v.TEXTS:
        assert ours.encode(text) == reference.encode(text), text
        assert ours.decode(ours.encode(text)) == text


def test_ranks_may_come_in_any_order_and_need_not_be_built_from_others(tmp_path: Path) -> None:
    # No pair of tokens joins to b" zqzq", yet a whole word in the vocabulary is one token.
    ranks = v.qwen_ranks() | {b" zqzq": len(v.qwen_ranks())}
    lines = [b"%s %d" % (base64.b64encode(token), rank) for token, rank in ranks.items()]
    (tmp_path / "qwen.tiktoken").write_bytes(b"\n".join(reversed(lines)))
    reference = tiktoken.Encoding("q", pat_str=QWEN.pattern, mergeable_ranks=ranks, special_tokens={})
    ours = load_tokenizer(tmp_path)
    for text in [*v.TEXTS, "a zqzq b"]:
        assert ours.encode(text) == reference.encode(text), text
    assert ours.encode(" zqzq") == [len(ranks) - 1]


def test_a_legacy_configuration_spaces_every_segment(tmp_path: Path) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True}
    legacy = load_tokenizer(changed(v.sentencepiece_folder("bpe"), tmp_path, tokenizer_config=config))
    current = load_tokenizer(v.sentencepiece_folder("bpe"))
    assert legacy.decode(legacy.encode("a<tool>b")) == "a<tool> b"
    assert current.decode(current.encode("a<tool>b")) == "a<tool>b"


def test_qwen_specials_follow_the_ranks() -> None:
    ours, start = load_tokenizer(v.qwen_folder()), len(v.qwen_ranks())
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_204|>"]
    assert [ours.id_of(name) for name in names] == [start, start + 1, start + 2, start + 3, start + 207]
    assert ours.vocab_size == start + 208
    assert ours.eos_token_ids == (start, start + 2)
    assert (ours.bos_token_id, ours.adds_bos) == (None, False)


def test_kimi_ranks_split_han_and_take_names_from_the_configuration(tmp_path: Path) -> None:
    start = len(v.qwen_ranks())
    added = {str(start + 5): {"content": "<|im_end|>", "special": True}}
    config = {"tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": added}
    folder = changed(v.qwen_folder(), tmp_path, config={"model_type": "kimi_k2"}, tokenizer_config=config)
    (folder / "qwen.tiktoken").rename(folder / "tiktoken.model")
    ours = load_tokenizer(folder)
    assert ours.id_of("<|im_end|>") == start + 5
    assert ours.id_of(f"<|reserved_token_{start + 6}|>") == start + 6
    assert ours.vocab_size == start + 256
    text = "中文English混合 WordsAndMORE 12345"
    assert ours.decode(ours.encode(text)) == text


def test_eos_is_the_union_of_all_that_name_one(tmp_path: Path) -> None:
    generation = {"eos_token_id": [5, 0]}
    config = {"text_config": {"eos_token_id": 7}, "eos_token_id": None}
    folder = changed(v.byte_level_folder(), tmp_path, config=config, generation_config=generation)
    assert load_tokenizer(folder).eos_token_ids == (7, 5, 0, 2)


def test_bos_is_added_once_and_only_where_configured(tmp_path: Path) -> None:
    ours = load_tokenizer(v.bos_folder())
    bos = ours.bos_token_id
    assert bos is not None and ours.adds_bos
    assert ours.encode("river")[0] != bos
    assert ours.encode("river", add_bos=True) == [bos, *ours.encode("river")]
    assert ours.encode("<|begin_of_text|>river", add_bos=True) == [bos, *ours.encode("river")]
    assert ours.encode("", add_bos=True) == [bos]
    config = json.loads((v.bos_folder() / "tokenizer_config.json").read_text()) | {"add_bos_token": False}
    told = load_tokenizer(changed(v.bos_folder(), tmp_path, tokenizer_config=config))
    assert told.encode("river", add_bos=True) == ours.encode("river")


def test_sentencepiece_defaults_come_from_the_model() -> None:
    ours = load_tokenizer(v.sentencepiece_folder("bpe"))
    assert (ours.bos_token_id, ours.eos_token_ids, ours.adds_bos) == (1, (2, 3), True)
    assert ours.special_token_ids == {0, 1, 2, 3}
    assert ours.id_of("<tool>") == 4


@pytest.mark.parametrize("name", v.ALL_FOLDERS)
def test_special_tokens_can_be_plain_text(name: str) -> None:
    ours = load_tokenizer(v.ALL_FOLDERS[name]())
    specials = [ours.token_text(token_id) for token_id in sorted(ours.special_token_ids)[:6]]
    for special in specials:
        assert ours.special_token_ids & set(ours.encode(f"a{special}b"))
        plain = ours.encode(f"a{special}b", parse_special=False)
        # A piece a vocabulary lacks is <unk> whatever is asked; no named token may appear.
        assert not (ours.special_token_ids - {ours.id_of("<unk>")}) & set(plain)
        if name not in ("spm_bpe_nfkc", "spm_unigram"):
            assert ours.decode(plain) == f"a{special}b"
    assert ours.encode("plain river", parse_special=False) == ours.encode("plain river")


@pytest.mark.parametrize("name", v.ALL_FOLDERS)
def test_token_bytes_join_to_the_text(name: str) -> None:
    ours = load_tokenizer(v.ALL_FOLDERS[name]())
    table = ours.token_bytes()
    assert len(table) == ours.vocab_size
    assert {i for i, data in enumerate(table) if data is None} == ours.special_token_ids
    for text in v.TEXTS:
        ids = ours.encode(text)
        if ours.special_token_ids & set(ids):
            continue  # <unk>
        data = b"".join(table[i] or b"" for i in ids).decode()
        if name.startswith("spm"):
            assert data.removeprefix(" ") == ours.decode(ids)
        else:
            assert data == text


def test_added_tokens_have_bytes_unless_special() -> None:
    ours = load_tokenizer(v.byte_level_folder())
    assert ours.token_bytes()[ours.id_of("<tool_call>") or 0] == b"<tool_call>"
    assert ours.token_bytes()[ours.id_of("<|im_end|>") or 0] is None


def test_names_of_added_tokens_are_plain_text(tmp_path: Path) -> None:
    backend = v.byte_level_backend()
    names = ["é", "<\uff5ctool\u2581call\uff5c>", "two words"]
    backend.add_tokens(names)
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    for name in names:
        assert ours.token_bytes()[ours.id_of(name) or 0] == name.encode()
        assert ours.decode(ours.encode(name)) == name


def test_token_text_keeps_the_space_and_marks_broken_bytes() -> None:
    ours = load_tokenizer(v.sentencepiece_folder("bpe"))
    assert ours.token_text(ours.id_of("\u2581the") or 0) == " the"
    assert ours.token_text(ours.id_of("<0xE6>") or 0) == "\ufffd"
    assert ours.token_text(2) == "</s>"
    assert ours.token_text(10**9) == ""


def test_ids_without_a_token_are_empty_and_negative_ones_refused() -> None:
    ours = load_tokenizer(v.byte_level_folder())
    ids = ours.encode("river")
    assert ours.decode([*ids, ours.vocab_size + 3]) == "river"
    with pytest.raises(TokenizerError, match="token id -1 is negative"):
        ours.decode([-1])


def test_lone_surrogates_are_refused_with_their_place() -> None:
    with pytest.raises(TokenizerError, match="lone surrogate at index 2"):
        load_tokenizer(v.byte_level_folder()).encode("ab\ud800c")


def test_truncation_and_padding_of_a_file_are_not_obeyed(tmp_path: Path) -> None:
    backend = v.byte_level_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.decode(ours.encode("the old river mill")) == "the old river mill"


def test_configuration_adds_tokens_at_their_ids(tmp_path: Path) -> None:
    size = load_tokenizer(v.byte_level_folder()).vocab_size
    added = {str(size + 1): {"content": "<b>", "special": False}, str(size): {"content": "<a>", "special": True}}
    folder = changed(v.byte_level_folder(), tmp_path, tokenizer_config={"added_tokens_decoder": added})
    ours = load_tokenizer(folder)
    assert ours.encode("<a><b>") == [size, size + 1]
    assert ours.decode([size, size + 1]) == "<b>"
    assert size in ours.special_token_ids and size + 1 not in ours.special_token_ids


def test_a_named_token_becomes_special(tmp_path: Path) -> None:
    config = {"eos_token": {"content": "</tool_call>"}}
    ours = load_tokenizer(changed(v.byte_level_folder(), tmp_path, tokenizer_config=config))
    assert ours.id_of("</tool_call>") in ours.special_token_ids
    assert ours.decode(ours.encode("a</tool_call>")) == "a"


def test_many_threads_read_one_tokenizer() -> None:
    ours = load_tokenizer(v.byte_level_folder())

    def work(text: str) -> tuple[list[int], list[int], str]:
        return ours.encode(text), ours.encode(text, parse_special=False), ours.decode(ours.encode(text))

    alone = [work(text) for text in v.TEXTS]
    fresh: Tokenizer = load_tokenizer(v.byte_level_folder())
    ours = fresh
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, v.TEXTS * 8)) == alone * 8


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer": "{"}, "tokenizer.json: not a tokenizer"),
        ({"tokenizer": None}, "no tokenizer.json, tokenizer.model or"),
        ({"config": "[1]"}, "config.json: a JSON object was expected, not list"),
        ({"tokenizer_config": "{'a'}"}, "tokenizer_config.json: not valid JSON"),
        ({"config": {"eos_token_id": "x"}}, "eos_token_id holds 'x'"),
        ({"tokenizer_config": {"added_tokens_decoder": {"900": {"content": "<z>"}}}}, "wants id 900 but would get 402"),
        ({"tokenizer_config": {"added_tokens_decoder": {"q": {"content": "<z>"}}}}, "has the id 'q'"),
        ({"tokenizer_config": {"added_tokens_decoder": {"402": {}}}}, r"added_tokens_decoder\['402'\] has no content"),
    ],
)
def test_broken_folders_are_named_in_one_line(files: dict[str, object], message: str, tmp_path: Path) -> None:
    folder = changed(v.byte_level_folder(), tmp_path, **files)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"QQ== x\n", "line 1 is not 'base64 rank'"),
        (b"QQ== 1\n", r"ranks are not 0..0"),
        (b"QQ== 0\n", "byte 0x00 has no token"),
    ],
)
def test_broken_rank_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_a_rank_file_of_an_unknown_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.tiktoken").write_bytes(b"QQ== 0\n")
    with pytest.raises(TokenizerError, match="no splitting pattern is known"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x0a\xff\xff\xff\x7fabc", b"\x0b", b"version https://git-lfs", b"\xff" * 12]
)
def test_broken_sentencepiece_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match="not a usable SentencePiece model"):
        load_tokenizer(tmp_path)


def test_every_prefix_of_a_sentencepiece_file_loads_or_is_refused(tmp_path: Path) -> None:
    data = (v.sentencepiece_folder("bpe") / "tokenizer.model").read_bytes()
    for size in range(0, len(data), 97):
        (tmp_path / "tokenizer.model").write_bytes(data[:size])
        try:
            load_tokenizer(tmp_path)
        except TokenizerError as error:
            assert "\n" not in str(error)


def test_a_decoder_that_is_no_concatenation_is_refused(tmp_path: Path) -> None:
    from tokenizers import decoders

    backend = v.byte_level_backend()
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="decoder WordPiece is not supported"):
        load_tokenizer(tmp_path)


def test_loading_imports_no_torch_and_no_transformers() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from sglite.runtime.text.tokenizer import load_tokenizer; "
        f"load_tokenizer({str(v.byte_level_folder())!r}); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
