"""Incremental text equals decoding at once, for any ids in any chunks."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.text import vocabularies as v

from sglite.runtime.text.detokenizer import IncrementalDetokenizer
from sglite.runtime.text.tokenizer import load_tokenizer

TOKENIZERS = {name: load_tokenizer(folder()) for name, folder in v.ALL_FOLDERS.items()}
NAMES = pytest.mark.parametrize("name", sorted(TOKENIZERS))


def chunks(draw: st.DrawFn, ids: list[int]) -> list[list[int]]:
    cuts = sorted({0, len(ids), *draw(st.lists(st.integers(0, len(ids)), max_size=8))})
    return [ids[a:b] for a, b in pairwise(cuts)]


@NAMES
@given(data=st.data(), skip=st.booleans())
def test_deltas_join_to_the_decoded_text(name: str, data: st.DataObject, skip: bool) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))
    parts = data.draw(st.composite(chunks)(ids))
    stream = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    deltas = [stream.push(part) for part in parts]
    for end, shown in zip(_ends(parts), _sums(deltas), strict=True):
        whole = tokenizer.decode(ids[:end], skip_special_tokens=skip)
        assert whole.startswith(shown)
        # Nothing is held back but an unfinished character.
        assert whole[len(shown) :] in ("", "\ufffd")
    deltas.append(stream.finish())
    assert "".join(deltas) == stream.text == tokenizer.decode(ids, skip_special_tokens=skip)
    assert stream.finish() == ""


@NAMES
@given(text=st.text(max_size=40))
def test_valid_text_streams_without_replacement(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    stream = IncrementalDetokenizer(tokenizer)
    shown = "".join(stream.push([token_id]) for token_id in ids)
    assert stream.finish() == ""
    assert shown == tokenizer.decode(ids)
    assert shown.count("\ufffd") <= text.count("\ufffd")


@given(st.binary(max_size=60))
def test_any_bytes_read_as_utf8_with_replacement(data: bytes) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    singles = {piece: token_id for token_id, piece in enumerate(tokenizer.token_bytes()) if piece and len(piece) == 1}
    stream = IncrementalDetokenizer(tokenizer)
    shown = "".join(stream.push([singles[bytes([byte])]]) for byte in data) + stream.finish()
    assert shown == data.decode("utf-8", "replace")


@given(text=st.text(max_size=60), name=st.sampled_from(["byte_level", "bos", "qwen"]))
def test_bytes_of_encoded_text_are_its_utf8(text: str, name: str) -> None:
    tokenizer = TOKENIZERS[name]
    composed = text if name != "qwen" else unicodedata.normalize("NFC", text)
    table = tokenizer.token_bytes()
    assert b"".join(table[i] or b"" for i in tokenizer.encode(text, parse_special=False)) == composed.encode()


def _ends(parts: list[list[int]]) -> list[int]:
    ends, total = [], 0
    for part in parts:
        total += len(part)
        ends.append(total)
    return ends


def _sums(deltas: list[str]) -> list[str]:
    return ["".join(deltas[: i + 1]) for i in range(len(deltas))]
