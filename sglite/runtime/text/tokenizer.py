"""Tokenizers: text to ids and back, and the bytes of every id.

Ids are the state and text is a view, so decoding has one definition: the bytes of the tokens are joined and
read as UTF-8, each broken part becoming U+FFFD. It is the same for every vocabulary and it streams (see
`detokenizer`).

Folders are read in this order: `tokenizer.json`, a rank file (`*.tiktoken`, `tiktoken.model`),
`tokenizer.model`. Nothing in a folder is ever executed.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from sglite.runtime.gguf import is_gguf
from sglite.runtime.text.folder import TokenizerError, TokenizerFiles, read_bytes
from sglite.runtime.text.gguf_vocabulary import load_gguf_vocabulary
from sglite.runtime.text.pieces import PieceRule, without_special_tokens
from sglite.runtime.text.ranks import find_rank_file, load_ranks
from sglite.runtime.text.spm import load_sentencepiece

__all__ = ["Tokenizer", "TokenizerError", "load_tokenizer"]

# Tokens that end an assistant turn in published chat formats. They stop generation when the vocabulary has
# them as added tokens, even where config.json names only the end of a document.
_CHAT_END = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|eot|>",
    "<|end_of_turn|>",
    "<|endofturn|>",
)


class Tokenizer:
    """A loaded tokenizer. Safe to read from several threads at once.

    Attributes:
        vocab_size: highest id + 1 (the logits of a model may be wider).
        eos_token_ids: every id that ends a generation: config, generation_config, tokenizer, chat end tokens.
        bos_token_id, pad_token_id: None when the tokenizer has none.
        special_token_ids: ids that `decode` leaves out by default.
        adds_bos: whether this tokenizer is configured to put a BOS before a text.
    """

    def __init__(self, backend: Backend, files: TokenizerFiles) -> None:
        """Wrap `backend`, which must not be changed afterwards; `files` names its special tokens."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._plain_backend: Backend | None = None
        self._plain_lock = threading.Lock()
        self._rule = PieceRule.of(backend)
        self._bytes = self._rule.table(backend)
        added = backend.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self.vocab_size: int = len(self._bytes)
        self.special_token_ids: frozenset[int] = frozenset(i for i, token in added.items() if token.special)
        self.bos_token_id: int | None = self._named(files, "bos_token")
        self.pad_token_id: int | None = self._named(files, "pad_token")
        self.eos_token_ids: tuple[int, ...] = self._find_eos(files)
        self.adds_bos: bool = self._find_adds_bos(files)

    def encode(self, text: str, *, add_bos: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of `text`.

        Args:
            add_bos: put BOS first, if this tokenizer is configured to add one and the text does not bring
            its own. parse_special: read `<|im_end|>` and the like as the token; False encodes them as
            ordinary text.

        Raises `TokenizerError` for text that is not Unicode (a lone surrogate).
        """
        ids = _ids(self._backend if parse_special else self._plain(), text, whole=False)
        return self._with_bos(ids) if add_bos else ids

    def encode_whole(self, text: str) -> list[int]:
        """Token ids of a text that stands alone, with all that the tokenizer's own rules put around it.

        Embedding models are trained on these: some end every text with a token of its own. Raises as `encode`.
        """
        return self._with_bos(_ids(self._backend, text, whole=True))

    def _with_bos(self, ids: list[int]) -> list[int]:
        if self.adds_bos and self.bos_token_id is not None and ids[:1] != [self.bos_token_id]:
            ids.insert(0, self.bos_token_id)
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Ids without a token (padding of a model's vocabulary) are empty text."""
        data, _ = self.join(ids, skip_special_tokens=skip_special_tokens, at_start=True)
        return data.decode("utf-8", "replace")

    def join(self, ids: Sequence[int], *, skip_special_tokens: bool, at_start: bool) -> tuple[bytes, bool]:
        """Bytes of a run of ids, and whether the text is still at its start afterwards.

        At its start a SentencePiece text loses the space that its encoder put there; pass the second result
        on to the next run. Raises `TokenizerError` for a negative id.
        """
        table, size, skipped = self._bytes, self.vocab_size, self.special_token_ids
        parts: list[bytes] = []
        for token_id in ids:
            if skip_special_tokens and token_id in skipped:
                continue
            if token_id < 0:
                raise TokenizerError(f"token id {token_id} is negative; ids run from 0 to {size - 1}")
            data = table[token_id] if token_id < size else None
            if data is None:
                continue
            if at_start:
                data, at_start = self._at_start(token_id, data)
            parts.append(data)
        return b"".join(parts), at_start

    def pieces(self, ids: Iterable[int], *, skip_special_tokens: bool, shown: Collection[int] = ()) -> list[bytes]:
        """Bytes of each of `ids` inside a text. `shown`: special tokens that are not skipped.

        Raises `TokenizerError` for a negative id.
        """
        table, size, skipped = self._bytes, self.vocab_size, self.special_token_ids if skip_special_tokens else ()
        found = []
        for token_id in ids:
            if token_id < 0:
                raise TokenizerError(f"token id {token_id} is negative; ids run from 0 to {size - 1}")
            hidden = token_id >= size or (token_id in skipped and token_id not in shown)
            found.append(b"" if hidden else table[token_id] or b"")
        return found

    def token_bytes(self) -> list[bytes | None]:
        """Bytes of every id, for masks and stop matching; None for special tokens and ids without a token."""
        special = self.special_token_ids
        return [None if token_id in special else data for token_id, data in enumerate(self._bytes)]

    def token_text(self, token_id: int) -> str:
        """One token for a row of log-probabilities: its leading space kept, broken UTF-8 as U+FFFD."""
        if not 0 <= token_id < self.vocab_size:
            return ""
        return (self._bytes[token_id] or b"").decode("utf-8", "replace")

    def spelling(self, token_id: int) -> str:
        """One token as the vocabulary spells it (``Ġship``)."""
        found: str | None = self._backend.id_to_token(token_id)
        return found or ""

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token: no token stands for more characters."""
        return max((len(data) for data in self._bytes if data), default=1)

    def id_of(self, token: str) -> int | None:
        """Id of a token by its spelling in the vocabulary, or None."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def _at_start(self, token_id: int, data: bytes) -> tuple[bytes, bool]:
        if self._rule.lead == "keep":
            return data, False
        if self._rule.lead == "drop":
            return (data if token_id in self._added_ids else data.replace(b" ", b"")), False
        return data.removeprefix(b" "), not data

    def _plain(self) -> Backend:
        """A second backend that reads special tokens as text; the switch is state of a backend, hence the copy."""
        with self._plain_lock:
            if self._plain_backend is None:
                self._plain_backend = without_special_tokens(self._backend)
            return self._plain_backend

    def _named(self, files: TokenizerFiles, name: str) -> int | None:
        if files.says(name):
            text = files.token(name)
            return None if text is None else self.id_of(text)
        known = [i for i in files.ids(f"{name}_id") if i < self.vocab_size]
        return known[0] if known else None

    def _find_eos(self, files: TokenizerFiles) -> tuple[int, ...]:
        own = files.token("eos_token")
        candidates = [*files.ids("eos_token_id"), None if own is None else self.id_of(own)]
        candidates += [i for i in map(self.id_of, _CHAT_END) if i in self._added_ids]
        return tuple(dict.fromkeys(i for i in candidates if i is not None))

    def _find_adds_bos(self, files: TokenizerFiles) -> bool:
        stated = files.tokenizer_config.get("add_bos_token")
        if isinstance(stated, bool):
            return stated
        first: list[int] = self._backend.encode("", add_special_tokens=True).ids
        return self.bos_token_id is not None and first[:1] == [self.bos_token_id]


def _ids(backend: Backend, text: str, whole: bool) -> list[int]:
    try:
        # A batch of one: that lets go of the interpreter, and keeps no places of tokens that nobody asks for.
        ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=whole)[0].ids
    except (UnicodeEncodeError, TypeError):
        at = next((i for i, char in enumerate(text) if 0xD800 <= ord(char) <= 0xDFFF), -1)
        raise TokenizerError(f"text has a lone surrogate at index {at}; send valid Unicode") from None
    return ids


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the tokenizer of a checkpoint folder or of a GGUF file.

    Raises `TokenizerError` (one line: path, what is wrong, what to do) when a file is missing, broken or
    unsupported.
    """
    path = Path(folder)
    files = TokenizerFiles.read(path)
    if is_gguf(path):
        backend = load_gguf_vocabulary(path)
    elif (path / "tokenizer.json").is_file():
        backend = _read_tokenizer_json(path / "tokenizer.json")
    elif rank_file := find_rank_file(path):
        backend, files = load_ranks(rank_file, files)
    elif (path / "tokenizer.model").is_file():
        backend, files = load_sentencepiece(path / "tokenizer.model", files)
    else:
        raise TokenizerError(
            f"{path}: no tokenizer.json, tokenizer.model or *.tiktoken; copy the model's tokenizer files there"
        )
    try:
        _add_tokens(backend, files)
        return Tokenizer(backend, files)
    except TokenizerError as error:
        message = str(error)
        raise TokenizerError(message if message.startswith(str(path)) else f"{path}: {message}") from None


def _read_tokenizer_json(path: Path) -> Backend:
    try:
        return Backend.from_buffer(read_bytes(path))
    except TokenizerError:
        raise
    except Exception as error:  # the parser raises bare Exception
        raise TokenizerError(f"{path}: not a tokenizer ({error}); download the file again") from None


def _add_tokens(backend: Backend, files: TokenizerFiles) -> None:
    """Tokens that the configuration adds, and the special flag of those it names."""
    present = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for spec in files.added():
        known = backend.token_to_id(spec.content)
        if spec.content in present and (present[spec.content].special or not spec.special):
            continue
        following = len(backend.get_vocab(with_added_tokens=True)) if known is None else known
        if spec.token_id is not None and spec.token_id != following:
            raise TokenizerError(
                f"added token {spec.content!r} wants id {spec.token_id} but would get {following}; "
                "tokenizer_config.json and the vocabulary do not belong together"
            )
        token = AddedToken(
            spec.content,
            single_word=spec.single_word,
            lstrip=spec.lstrip,
            rstrip=spec.rstrip,
            normalized=spec.normalized,
            special=spec.special,
        )
        (backend.add_special_tokens if spec.special else backend.add_tokens)([token])
    present_special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    named = [
        text for text in files.special_texts() if backend.token_to_id(text) is not None and text not in present_special
    ]
    if named:
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in named])
