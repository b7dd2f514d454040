"""Forced bytes and the tokens that are certain: what is held back, and what a tokenizer may do to the text."""

from __future__ import annotations

import re

import pytest
from raw_matchers import VOCAB

from sglite.constrained.jump_forward import StableTokens
from sglite.constrained.matcher import ForcedText
from sglite.constrained.vocab import Vocabulary

PIECES = [bytes([i]) for i in range(256)] + [b"ab", b"abc", b" a", b"  ", b'",', b'":"', "é".encode(), b"a\xc3"]


def longest_first(text: str, pieces: list[bytes] = PIECES) -> list[int]:
    data, ids = text.encode(), []
    while data:
        ids.append(max((i for i, p in enumerate(pieces) if data.startswith(p)), key=lambda i: len(pieces[i])))
        data = data[len(pieces[ids[-1]]) :]
    return ids


def vocabulary(encode=longest_first) -> Vocabulary:  # type: ignore[no-untyped-def]
    return Vocabulary([*PIECES, None], [len(PIECES)], encode)


def run(vocab: Vocabulary, committed: str, forced: bytes, *crossings: int) -> list[bytes]:
    stable = StableTokens(vocab)
    ids = vocab.encode(committed)
    context = stable.context(ids, forced)
    assert context is not None and ids[len(ids) - len(context) :] == list(context)
    return [vocab.content(i) or b"" for i in stable.run(context, ForcedText(forced, crossings))]


def test_a_token_that_a_longer_one_may_replace_is_held_back() -> None:
    vocab = vocabulary()
    assert run(vocab, "", b'"x":"ab') == [b'"', b"x", b'":"', b"ab"]
    assert run(vocab, "", b'"x":"ab', 5) == [b'"', b"x", b'":"'], "an allowed token starts with ab and goes on"
    assert run(vocab, "", b'"x":"ab', 2, 6) == [b'"', b"x"]
    assert run(vocab, "", b'"x":"ab', 0) == []


def test_white_space_at_the_end_waits_for_what_follows() -> None:
    vocab = vocabulary()
    assert run(vocab, "", b"x ") == [b"x", b" "]
    assert run(vocab, "", b"x  ") == [b"x"] and run(vocab, "", b"x \n\t ") == [b"x"]
    assert run(vocab, "", b"x  y") == [b"x", b"  ", b"y"]


def test_a_cut_character_waits() -> None:
    vocab = vocabulary()
    assert run(vocab, "", b"x\xc3") == [b"x"] and run(vocab, "", b"\xc3") == []
    assert run(vocab, "", b"xa\xc3") == [b"x"], "a token begins before the cut and ends at it"
    assert run(vocab, "", "xaéy".encode(), 3) == [b"x"], "and where another may start inside the character"
    assert run(vocab, "", b"\xff\xfex") == [] and run(vocab, "", b"x\xffx") == []


def test_the_encoding_begins_where_a_word_does() -> None:
    stable = StableTokens(VOCAB)
    ids = VOCAB.encode('{"name": "x y", "n')
    for count, forced in ((len(ids), b'": '), (len(ids), b'ame": '), (0, b"{")):
        context = stable.context(ids[:count], forced)
        assert context is not None and len(context) <= 3
    assert stable.context(VOCAB.encode("{" * 200), b"{") is None, "no such place near: nothing is certain"
    special = VOCAB.eos_ids[0]
    assert stable.context([*VOCAB.encode("{" * 200), special], b"{") == (), "it begins anew after a special token"


def test_what_stands_before_decides_where_a_word_begins() -> None:
    """A quote alone joins the word after it; behind a brace it belongs to the brace."""
    merges = [b'"a', b"}", b'"', b"a"]

    def words(text: str) -> list[int]:
        return [i for part in re.findall(r'[{}"]?\w+|[^\w\s]+|\s', text) for i in longest_first(part, pieces)]

    pieces = [*merges, *(bytes([i]) for i in range(256) if bytes([i]) not in merges)]
    vocab = Vocabulary([*pieces, None], [len(pieces)], words)
    stable = StableTokens(vocab)
    assert vocab.encode('a}"a') == [3, 1, 2, 3] and vocab.encode('"a') == [0]
    context = stable.context([3, 1], b'"a')
    assert context == (1,) and stable.run(context, ForcedText(b'"a')) == [2, 3]


def test_other_tokens_than_the_tokenizers_stand_for_themselves() -> None:
    stable = StableTokens(VOCAB)
    split = [VOCAB.encode(c)[0] for c in "name"]
    context = stable.context(split, b'": "x"}')
    assert context == () and stable.run(split, ForcedText(b'": "x"}')) == VOCAB.encode('": "x"}')


def test_the_spelling_of_a_special_token_is_not_made_one() -> None:
    special = len(PIECES)

    def encode(text: str) -> list[int]:
        parts = text.split("<s>")
        return [i for n, part in enumerate(parts) for i in ([special] if n else []) + longest_first(part)]

    vocab = vocabulary(encode)
    assert run(vocab, "", b"x ab<s>y") == [b"x", b" a", b"b"]
    assert run(vocab, "", b'x"<s>y') == [b"x"], "the quote may join what is beside it"


def test_a_space_in_front_and_other_changes_of_the_text() -> None:
    def spaced(text: str) -> list[int]:
        return longest_first(" " + text)

    assert run(vocabulary(spaced), "", b"ab,x") == [b"ab", b",", b"x"], "behind an anchor"

    def folded(text: str) -> list[int]:
        return longest_first(text.replace("\u2161", "II"))

    assert run(vocabulary(folded), "", "ab\u2161c".encode()) == [b"ab"], "up to where the text is changed"

    def upper(text: str) -> list[int]:
        return longest_first(text.upper())

    assert run(vocabulary(upper), "", b"abc") == [] and StableTokens(vocabulary(upper)).spell(b"abc") is not None


def test_the_limit_counts_tokens() -> None:
    stable = StableTokens(vocabulary())
    assert len(stable.run((), ForcedText(b"x" * 200))) == 64 and len(stable.run((), ForcedText(b"x" * 200), 3)) == 3


@pytest.mark.parametrize("data", [b"", b'{"a": 1}', b"ab\xc3", b"\xff\x00", "é中".encode()])
def test_every_text_is_spelled_by_its_bytes(data: bytes) -> None:
    ids = StableTokens(vocabulary()).spell(data)
    assert ids is not None and b"".join(PIECES[i] for i in ids) == data
    assert StableTokens(Vocabulary([b"a", b"bc", None], [2], lambda text: [])).spell(b"abc") == [0, 1]
    assert StableTokens(Vocabulary([b"a", b"bc", None], [2], lambda text: [])).spell(b"ab") is None


def test_tokens_are_found_by_their_bytes() -> None:
    stable = StableTokens(Vocabulary([b"a", b"ab", b"b", b"a", None, b"abc"], [4], lambda text: []))
    assert stable.ids_of(b"a") == [0, 3] and stable.ids_of(b"c") == [] and stable.ids_of(b"abc") == [5]
    assert stable.ids_from(b"a") == [0, 3, 1, 5] and stable.ids_from(b"ab") == [1, 5] and stable.ids_from(b"c") == []
