"""Jump-forward: forced bytes become tokens, as many as are certain.

    committed ids | context |   forced bytes    | unknown
                            ^ run ... ^ crossing: an allowed token starts here and runs into the unknown

Promise. A run is what the tokenizer gives for the finished text, whatever comes after the forced bytes, provided
that the committed tokens are what it gives before them. Committed ids are never changed.

Why it holds. A boundary between two tokens separates a byte-pair encoding (no merge crossed it) and a best path of a
unigram model, so left of a boundary the tokens are those of the text to its left alone. In the finished text either
the end of the forced bytes is a boundary, or one token crosses it, and then that token starts at one of the
`crossings`. A token that begins every one of these encodings is therefore certain. Three things could still differ:

- A pre-tokenizer looks ahead: how white space or a word is split may depend on what follows it. Wherever that can be
  (`_unsettled`), the encodings of the shorter texts have to agree as well.
- A pre-tokenizer looks back: the text is encoded from a place where each known one starts anew (`_starts_anew`).
- An encoder may add a space in front, or change the text. Then the text is encoded behind an anchor that takes the
  space, and a run ends where its bytes are not the forced ones; without a usable anchor there are no runs.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from sglite.constrained.matcher import ForcedText
from sglite.constrained.vocab import Vocabulary

_CONTEXT = 32  # committed tokens looked at for a place to encode from
_KNOWN = 4096  # places that are remembered
_SPACES = 16  # places inside a run of white space that are tried
_PROBES = ('{"a": 1}', "a", " a")
_ANCHORS = ("", "\n", "\x01", "|", "。")
_APOSTROPHES = "'’"


class StableTokens:
    """The tokenizer of one vocabulary, asked what is certain; shared by all requests. It remembers some of its answers.

    To make one takes a look at the whole vocabulary.
    """

    def __init__(self, vocab: Vocabulary) -> None:
        self.vocab = vocab
        found = [(piece, i) for i in range(len(vocab.token_bytes)) if (piece := vocab.content(i))]
        found.sort()
        self._pieces, self._ids = [piece for piece, _ in found], [i for _, i in found]
        self._anew: set[tuple[int, bytes]] = set()  # tokens behind which what follows is encoded by itself
        self._longest = max(map(len, self._pieces), default=1)
        self._anchors: list[tuple[str, list[int]]] = []  # texts that can stand in front, and their ids
        self._find_anchors()

    def context(self, ids: Sequence[int], forced: bytes) -> tuple[int, ...] | None:
        """The last committed ids, as few as needed to encode what is forced after them; None when unknown."""
        after = forced[:4]
        if ids and (ids[-1], after) in self._anew:
            return ()
        for count in range(min(len(ids), _CONTEXT) + 1):
            piece = self.vocab.content(ids[-1 - count]) if count < len(ids) else None
            if piece is None:  # the text begins here, or a special token ends
                return tuple(ids[len(ids) - count :])
            before = piece
            if 0x80 <= before[-1] < 0xC0 and len(before) < 4:  # perhaps the rest of a character
                before = self._bytes(ids[max(len(ids) - count - 4, 0) : len(ids) - count])
            if _starts_anew(before[-4:], after):
                if not count and before is piece:
                    if len(self._anew) >= _KNOWN:
                        self._anew.clear()
                    self._anew.add((ids[-1], after))
                return tuple(ids[len(ids) - count :])
            after = (piece + after)[:4]
        return None

    def run(self, context: Sequence[int], forced: ForcedText, limit: int = 64) -> list[int]:
        """The tokens, at most `limit`, that are certain to encode the forced text from its beginning.

        `context` is what `context` returned for the same text.
        """
        before = self._bytes(context)
        data = before + forced.text
        text = _whole(data)
        if text is None:
            return []
        found = self._split(text)
        if found[: len(context)] != list(context):
            # other tokens were committed than the tokenizer would give: the forced text stands for itself
            return self.run((), forced, limit) if context else []
        run = found[len(context) :]
        for witness in self._witnesses(text, data, len(before), forced.crossings):
            if not run:
                break
            other = self._split(witness)
            run = _common(run, other[len(context) :]) if other[: len(context)] == list(context) else []
        return run[:limit]

    def spell(self, data: bytes) -> list[int] | None:
        """Tokens with exactly these bytes, the tokenizer's own where it can give them. None when there are none."""
        text = _whole(data)
        ids = [] if text is None else self._split(text)
        rest = data[len(self._bytes(ids)) :]
        while rest:
            size = next((n for n in range(self._longest, 0, -1) if self.ids_of(rest[:n])), 0)
            if not size:
                return None
            ids.append(self.ids_of(rest[:size])[0])
            rest = rest[size:]
        return ids

    def ids_of(self, piece: bytes) -> list[int]:
        """The ids whose bytes are `piece`."""
        low = high = bisect_left(self._pieces, piece)
        while high < len(self._pieces) and self._pieces[high] == piece:
            high += 1
        return self._ids[low:high]

    def ids_from(self, start: bytes) -> list[int]:
        """The ids whose bytes begin with `start`, of at least one byte."""
        low = bisect_left(self._pieces, start)
        return self._ids[low : bisect_left(self._pieces, True, lo=low, key=lambda piece: not piece.startswith(start))]

    def _witnesses(self, text: str, data: bytes, start: int, crossings: Sequence[int]) -> Iterator[str]:
        """Texts whose encodings the run has to begin: left of every place that may be a boundary.

        `text` is the whole characters of `data`, whose forced part begins at `start`.
        """
        whole = text.encode()
        places = self._character_places(whole, data, start, [len(data), *(start + b for b in crossings)])
        for place in sorted(places):
            if place == start:
                yield whole[:start].decode(errors="ignore")  # nothing is certain
                return
            head = whole[:place].decode()
            if len(head) < len(text):
                yield head
            for shorter in _unsettled(head, text[len(head) : len(head) + 1]):
                yield head[:shorter]

    def _character_places(self, whole: bytes, data: bytes, start: int, places: list[int]) -> set[int]:
        """`places`, with one inside a character replaced by where the tokens that may end there begin."""
        waiting, seen, found = places, set[int](), set[int]()
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            if at == start or (at <= len(whole) and (at == len(whole) or whole[at] & 0xC0 != 0x80)):
                found.add(at)
            else:
                first = max(start, at - self._longest)
                # a token that began in the context would be a committed one, and those end at `start`
                waiting += [i for i in range(first, at) if self.ids_of(data[i:at])]
        return found

    def _split(self, text: str) -> list[int]:
        """The tokenizer's ids for `text`, up to the first whose bytes are not the text's."""
        for anchor, before in self._anchors:
            ids = self.vocab.encode(anchor + text)
            if ids[: len(before)] == before:  # else the text has joined the anchor
                return self._agreeing(ids[len(before) :], text.encode())
        return []

    def _agreeing(self, ids: list[int], data: bytes) -> list[int]:
        at = 0
        for index, token_id in enumerate(ids):
            piece = self.vocab.content(token_id)
            if piece is None:
                # the spelling of a special token: ordinary text to us, and what stands beside it may join it
                return self._before_special(ids[:index], data, at)
            if not data.startswith(piece, at):
                return ids[:index]
            at += len(piece)
        return ids

    def _before_special(self, ids: list[int], data: bytes, at: int) -> list[int]:
        while ids and not _starts_anew(data[max(at - 4, 0) : at], data[at : at + 4]):
            at -= len(self.vocab.content(ids.pop()) or b"")
        return ids

    def _find_anchors(self) -> None:
        for anchor in _ANCHORS:
            before = self.vocab.encode(anchor) if anchor else []
            found = [self.vocab.encode(anchor + probe) for probe in _PROBES]
            if all(
                ids[: len(before)] == before and self._bytes(ids[len(before) :]) == probe.encode()
                for ids, probe in zip(found, _PROBES, strict=True)
            ):
                self._anchors.append((anchor, before))
            if self._anchors and not anchor:
                return

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join([self.vocab.content(i) or b"" for i in ids])


def _whole(data: bytes) -> str | None:
    """The text of the whole characters at the beginning. None when something else follows than a part of one."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if error.end < len(data) or error.reason != "unexpected end of data":
            return None
        return data[: error.start].decode()


def _starts_anew(before: bytes, after: bytes) -> bool:
    """Whether every known pre-tokenizer has a boundary between these two, whatever is around them.

    A space after anything but white space begins a word, and so does what is neither a letter nor a digit, nor joins
    them, after one that is.
    """
    left, right = before.decode(errors="replace")[-1:], after.decode(errors="replace")[:1]
    if "\ufffd" in (left, right) or not left or not right:
        return False
    if right == " ":
        return not left.isspace()
    return left.isalnum() and not _in_word(right)


def _in_word(char: str) -> bool:
    return char.isalnum() or char == "_" or char in _APOSTROPHES or unicodedata.category(char)[0] == "M"


def _unsettled(text: str, after: str) -> Iterator[int]:
    """Lengths of shorter texts that may be split otherwise than `text` is at its end, when `after` (or the unknown)
    follows it."""
    spaces = len(text) - len(text.rstrip())
    if spaces > 1:  # the last space may belong to the word that follows it, or only line ends belong together
        start = len(text) - spaces
        yield from range(start, min(start + _SPACES, len(text)))
    elif not spaces and (not after or _in_word(after)):
        start = len(text)
        while start and _in_word(text[start - 1]):
            start -= 1
        if _open_word(text[start:]):
            yield max(start - 1, 0)


def _open_word(word: str) -> bool:
    """Whether what follows may move a boundary inside `word`: a contraction, or a capital after caseless letters."""
    if any(char in _APOSTROPHES for char in word[-3:]):
        return True
    stem = word.rstrip("".join({char for char in word if char.isupper()}))
    return stem != word and stem[-1:].isalpha() and not stem[-1:].islower()


def _common(one: list[int], other: list[int]) -> list[int]:
    size = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:size]
