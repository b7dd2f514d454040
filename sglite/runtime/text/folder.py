"""The small JSON files that stand beside a tokenizer in a checkpoint folder.

Promise: nothing is executed, nothing is fetched, every file is bounded in size, a missing file reads as
empty and a broken one is a `TokenizerError` that names it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sglite.runtime.gguf import GGUFError, is_gguf, open_gguf

MAX_FILE_BYTES = 512 << 20
GGUF_BOS = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""Names of GGUF's pre-tokenizers with which texts begin with BOS where the file does not say it."""
_GGUF_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class TokenizerError(ValueError):
    """A tokenizer file that is missing, broken or not supported, or text that cannot be tokenized."""


def read_bytes(path: Path) -> bytes:
    """The whole file, refused above `MAX_FILE_BYTES`."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TokenizerError(
                f"{path}: {size} bytes is more than the {MAX_FILE_BYTES} allowed; is it the right file?"
            )
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def read_text(path: Path) -> str:
    """The whole file as UTF-8 text."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 at byte {error.start}; download the file again") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, or `{}` when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise TokenizerError(f"{path}: not valid JSON ({error}); download the file again") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: a JSON object was expected, not {type(value).__name__}; download the file again")
    return value


@dataclass(frozen=True)
class AddedSpec:
    """One token the configuration adds to the vocabulary, with the id it must have (None: any)."""

    content: str
    token_id: int | None
    special: bool
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class TokenizerFiles:
    """What the configuration files of one folder say, read once.

    Token names come from `tokenizer_config.json`, then `special_tokens_map.json`; ids from `config.json`
    (and its `text_config`) and `generation_config.json`.
    """

    folder: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    special_tokens_map: dict[str, Any]
    added_tokens: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """Read every file that exists, or what a GGUF file says in their place.

        Raises `TokenizerError` when the folder does not exist or a file is broken.
        """
        if is_gguf(folder):
            return cls(folder, *_of_gguf(folder), {}, {})
        if not folder.is_dir():
            raise TokenizerError(f"{folder}: no such folder; pass the folder that holds the model's files")
        names = ("config", "generation_config", "tokenizer_config", "special_tokens_map", "added_tokens")
        return cls(folder, *(read_json(folder / f"{name}.json") for name in names))

    def with_defaults(self, defaults: dict[str, Any]) -> TokenizerFiles:
        """These files, with `defaults` for what they do not mention (a vocabulary that names its own tokens)."""
        missing = {name: value for name, value in defaults.items() if not self.says(name)}
        return replace(self, tokenizer_config={**self.tokenizer_config, **missing})

    def says(self, name: str) -> bool:
        """Whether a tokenizer file mentions `name` at all; an explicit null counts: it means there is no such token."""
        return name in self.tokenizer_config or name in self.special_tokens_map

    def token(self, name: str) -> str | None:
        """The text of a named token such as `bos_token`, or None."""
        for source in (self.tokenizer_config, self.special_tokens_map):
            if name in source:
                return _content(source[name])
        return None

    def special_texts(self) -> list[str]:
        """Every token that the files call special, in a stable order."""
        found = [self.token(name) for name in _SPECIAL_NAMES]
        for source in (self.tokenizer_config, self.special_tokens_map):
            for key in ("additional_special_tokens", "extra_special_tokens"):
                more = source.get(key) or []
                found += [_content(token) for token in (more.values() if isinstance(more, dict) else more)]
        return list(dict.fromkeys(text for text in found if text))

    def added(self) -> list[AddedSpec]:
        """Tokens the files add, those with an id first, by id."""
        specs: dict[str, AddedSpec] = {}
        special = set(self.special_texts())
        for text, token_id in self.added_tokens.items():
            specs[text] = AddedSpec(text, self._id(token_id, text), text in special)
        for key, entry in (self.tokenizer_config.get("added_tokens_decoder") or {}).items():
            content = _content(entry)
            if content is None or not isinstance(entry, dict):
                raise TokenizerError(
                    f"{self.folder}: added_tokens_decoder[{key!r}] has no content; repair tokenizer_config.json"
                )
            flags = {name: bool(entry.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
            is_special = bool(entry.get("special", False)) or content in special
            specs[content] = AddedSpec(content, self._id(key, content), is_special, **flags)
        return sorted(specs.values(), key=lambda spec: (spec.token_id is None, spec.token_id or 0))

    def ids(self, name: str) -> tuple[int, ...]:
        """Ids under `name` (an integer or a list) in config, its text_config and generation_config, without repeats.

        Negative values and nulls mean "none" in published configurations and are left out.
        """
        text_config = self.config.get("text_config")
        sources = [self.config, text_config if isinstance(text_config, dict) else {}, self.generation_config]
        found: list[int] = []
        for source in sources:
            value = source.get(name)
            for item in value if isinstance(value, list) else [value]:
                if item is not None and not isinstance(item, bool) and not isinstance(item, int):
                    raise TokenizerError(
                        f"{self.folder}: {name} holds {item!r}; an integer or a list of integers was expected"
                    )
                if item is not None and item >= 0:
                    found.append(int(item))
        return tuple(dict.fromkeys(found))

    def _id(self, value: Any, token: str) -> int:
        try:
            return int(value)
        except (TypeError, ValueError):
            raise TokenizerError(
                f"{self.folder}: added token {token!r} has the id {value!r}; an integer was expected"
            ) from None


def _of_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What stands for config.json, generation_config.json and tokenizer_config.json, as far as texts are concerned."""
    try:
        file = open_gguf(path)
        ids = {key: file.integer(f"tokenizer.ggml.{key}_token_id") for key in (*_GGUF_NAMES, "eot", "eom")}
        tokens = file.texts("tokenizer.ggml.tokens") or []
        named = {ours: ids[key] for key, ours in _GGUF_NAMES.items()}
        settings: dict[str, Any] = {ours: tokens[i] for ours, i in named.items() if i is not None and i < len(tokens)}
        adds_bos = file.flag("tokenizer.ggml.add_bos_token")
        if adds_bos is None:
            adds_bos = file.text("tokenizer.ggml.model") == "llama" or file.text("tokenizer.ggml.pre") in GGUF_BOS
        template = file.text("tokenizer.chat_template")
        others = {
            name: file.text(f"tokenizer.chat_template.{name}") for name in file.texts("tokenizer.chat_templates") or []
        }
    except GGUFError as error:
        raise TokenizerError(str(error)) from None
    templates = {"default": template, **others}
    listed = [{"name": name, "template": text} for name, text in templates.items() if text is not None]
    settings |= {"add_bos_token": adds_bos, "chat_template": listed or None}
    return {"eos_token_id": [ids["eos"], ids["eot"], ids["eom"]]}, {}, settings


def _content(entry: Any) -> str | None:
    """A token is written as a string or as an object with `content`."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None
