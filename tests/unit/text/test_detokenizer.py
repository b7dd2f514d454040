"""Streaming text: whole characters only, the leading space once."""

from __future__ import annotations

import time

from unit.text import vocabularies as v

from sglite.runtime.text.detokenizer import IncrementalDetokenizer
from sglite.runtime.text.tokenizer import load_tokenizer


def test_a_character_waits_for_its_last_byte() -> None:
    tokenizer = load_tokenizer(v.byte_level_folder())
    ids = tokenizer.encode("𓀀!")
    assert len(ids) == 5
    stream = IncrementalDetokenizer(tokenizer)
    assert [stream.push([token_id]) for token_id in ids] == ["", "", "", "𓀀", "!"]
    assert stream.finish() == ""


def test_what_cannot_become_a_character_is_not_held_back() -> None:
    tokenizer = load_tokenizer(v.byte_level_folder())
    head = tokenizer.encode("𓀀")[0]
    stream = IncrementalDetokenizer(tokenizer)
    assert stream.push([head]) == ""
    assert stream.push(tokenizer.encode("a")) == "\ufffda"
    assert stream.push([head]) == ""
    assert stream.finish() == "\ufffd"
    assert stream.text == "\ufffda\ufffd"


def test_only_the_first_word_loses_its_space() -> None:
    tokenizer = load_tokenizer(v.sentencepiece_folder("bpe"))
    the = tokenizer.id_of("\u2581the") or 0
    stream = IncrementalDetokenizer(tokenizer)
    assert [stream.push([i]) for i in (1, the, the)] == ["", "the", " the"]
    shown = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
    assert [shown.push([i]) for i in (1, the, the)] == ["<s>", " the", " the"]


def test_metaspace_drops_the_markers_of_the_first_token() -> None:
    from tokenizers import Tokenizer, decoders, models

    from sglite.runtime.text import folder, tokenizer

    pieces = {"\u2581\u2581": 0, "\u2581a\u2581b": 1, "c": 2, "<unk>": 3}
    backend = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    files = folder.TokenizerFiles(v.byte_level_folder(), {}, {}, {}, {}, {})
    ours = tokenizer.Tokenizer(backend, files)
    for ids in ([0, 1, 2], [1, 0], [2, 1], []):
        stream = IncrementalDetokenizer(ours)
        assert "".join(stream.push([i]) for i in ids) == backend.decode(ids) == ours.decode(ids)


def test_cost_does_not_grow_with_the_text() -> None:
    tokenizer = load_tokenizer(v.byte_level_folder())
    ids = tokenizer.encode("the old mill and the river ") * 2000
    stream = IncrementalDetokenizer(tokenizer)

    def push_all() -> float:
        began = time.perf_counter()
        for token_id in ids:
            stream.push([token_id])
        return time.perf_counter() - began

    first = push_all()
    for _ in range(4):
        last = push_all()
    assert last < 5 * first + 0.05
