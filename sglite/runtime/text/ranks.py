r"""tiktoken vocabularies: a file of `base64(token) rank` lines as a `tokenizers` backend.

The file holds no pre-tokenizer and no special tokens, so the family must be known: Qwen (`qwen.tiktoken`)
and Kimi (`tiktoken.model`) are. Their patterns and names of special tokens are facts of the published
models.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from sglite.runtime.text.folder import TokenizerError, TokenizerFiles, read_bytes
from sglite.runtime.text.pieces import gpt2_alphabet

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"


@dataclass(frozen=True)
class RankFamily:
    """What a rank file leaves out: the splitting pattern, and names of special tokens after the last rank."""

    pattern: str
    nfc: bool
    special: tuple[str, ...]  # in id order; "{id}" stands for the token's id
    bos_token: str | None
    eos_token: str
    adds_bos: bool = False


QWEN = RankFamily(
    pattern=rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",
    nfc=True,
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))),
    bos_token=None,
    eos_token="<|endoftext|>",
)
KIMI = RankFamily(
    pattern="|".join(
        [
            r"[\p{Han}]+",
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?",
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?",
            r"\p{N}{1,3}",
            _REST,
        ]
    ),
    nfc=False,
    special=("[BOS]", "[EOS]", *(["<|reserved_token_{id}|>"] * 254)),
    bos_token="[BOS]",
    eos_token="[EOS]",
)


def find_rank_file(folder: Path) -> Path | None:
    """The rank file of a folder, or None. Raises `TokenizerError` when there are several."""
    found = sorted([*folder.glob("*.tiktoken"), *folder.glob("tiktoken.model")])
    if len(found) > 1:
        raise TokenizerError(f"{folder}: several rank files ({', '.join(p.name for p in found)}); keep the model's own")
    return found[0] if found else None


def load_ranks(path: Path, files: TokenizerFiles) -> tuple[Backend, TokenizerFiles]:
    """The backend of a rank file, and `files` completed with the family's own names."""
    family = _family(path, files)
    ranks = read_ranks(path)
    alphabet = gpt2_alphabet()
    spelled = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    merges = [(spelled[left], spelled[right]) for left, right in _merges(ranks)]
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    if family.nfc:
        backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(family.pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    names = _special_names(family, files, start=len(ranks))
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    named = {"bos_token": family.bos_token, "eos_token": family.eos_token, "add_bos_token": family.adds_bos}
    return backend, files.with_defaults(named)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token bytes -> rank. Raises `TokenizerError` unless ranks are 0..n-1 and every single byte has one."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise TokenizerError(f"{path}: line {number} is not 'base64 rank'; download the file again") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(f"{path}: ranks are not 0..{len(ranks) - 1}; download the file again")
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise TokenizerError(f"{path}: byte 0x{missing:02x} has no token; download the file again")
    return ranks


def _family(path: Path, files: TokenizerFiles) -> RankFamily:
    model_type = str(files.config.get("model_type", ""))
    known = files.tokenizer_config.get("tokenizer_class")
    if path.name == "qwen.tiktoken" or model_type.startswith("qwen") or known == "QWenTokenizer":
        return QWEN
    if model_type.startswith("kimi") or known == "TikTokenTokenizer":
        return KIMI
    raise TokenizerError(
        f"{path}: no splitting pattern is known for it (Qwen and Kimi are); convert it to tokenizer.json"
    )


def _special_names(family: RankFamily, files: TokenizerFiles, *, start: int) -> list[str]:
    """Names for the ids after the ranks: the configuration's where it gives one, else the family's."""
    given = {spec.token_id: spec.content for spec in files.added()}
    last = max([start + len(family.special) - 1, *(i for i in given if i is not None)])
    if last - start > 100_000:
        raise TokenizerError(
            f"{files.folder}: added token id {last} is far past the vocabulary ({start}); repair the file"
        )
    own = [name.replace("{id}", str(start + i)) for i, name in enumerate(family.special)]
    own += [f"<|reserved_token_{i}|>" for i in range(start + len(own), last + 1)]
    return [given.get(start + i, name) for i, name in enumerate(own)]


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way to join two tokens into a third, in the order of the third's rank, as tiktoken joins at run time."""
    ranked = [
        (rank, ranks[token[:cut]], ranks[token[cut:]], token[:cut], token[cut:])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]
