"""How a checkpoint makes one vector of a text, where it says so: the layout of sentence-transformers, read as JSON.

    modules.json                          Transformer, Pooling, Normalize: what follows what, and in which folder
    1_Pooling/config.json                 pooling_mode_lasttoken, or pooling_mode: "lasttoken"
    config_sentence_transformers.json     prompts that texts are to begin with, by name
    sentence_bert_config.json             max_seq_length

The vector is the hidden state after the final norm at the last token. What would make another vector of it (mean
pooling, further layers, attention in both directions) is refused with the reason, never approximated. Nothing in a
folder is executed. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglite.runtime.config import ConfigError
from sglite.runtime.gguf import GGUFError, is_gguf, open_gguf

MAX_FILE_BYTES = 2**20
MAX_PROMPT_CHARS = 10_000
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_GGUF_POOLING = {1: "mean", 2: "cls", 4: "rank"}
_NOTHING_SAID = "the checkpoint declares no pooling; if it was trained for that of the last token, use --is-embedding"


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """Last-token pooling, and what belongs to it."""

    normalize: bool = True
    """Vectors are brought to length 1."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """What texts are to begin with, by name."""
    default_prompt: str | None = None
    """The prompt of texts for which none is named."""
    max_tokens: int | None = None
    """Longest text that the checkpoint was made for; ``None``: its context."""


class Undeclared(ConfigError):
    """What a checkpoint does not declare, or in a way that cannot be honoured or read; one line."""


def read_pooling(folder: Path, asked: bool = False) -> Pooling:
    """The pooling of the checkpoint in ``folder``. ``asked``: where it declares none, last-token pooling is meant.

    Raises ``Undeclared`` when it declares none and none is asked for, or one that cannot be honoured.
    """
    if is_gguf(folder):
        return _of_gguf(folder, asked)
    modules = read_modules(folder)
    if not modules and not asked:
        raise Undeclared(_NOTHING_SAID)
    _refuse_other_attention(folder)
    if not modules:
        return Pooling()
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        shown = ", ".join(kinds)[:200]
        raise Undeclared(f"modules.json of the checkpoint says {shown}; supported: Transformer, Pooling, Normalize")
    modes = _modes(_read(folder / modules[1][1] / "config.json"))
    if modes != ["lasttoken"]:
        shown = " and ".join(modes) or "none"
        raise Undeclared(f"the checkpoint declares {shown} pooling; only last-token pooling is supported")
    settings, text = _read(folder / "config_sentence_transformers.json"), _read(folder / "sentence_bert_config.json")
    if text.get("do_lower_case"):
        raise Undeclared("the checkpoint's sentence_bert_config.json has do_lower_case=true, which is not supported")
    longest = text.get("max_seq_length")
    prompts = _prompts(settings)
    default = settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise Undeclared(f"{folder}: default_prompt_name is {default!r:.80}, and there is no prompt of that name")
    return Pooling(
        normalize=len(modules) == 3,
        prompts=prompts,
        default_prompt=default,
        max_tokens=longest if type(longest) is int and longest > 0 else None,
    )


def _of_gguf(path: Path, asked: bool) -> Pooling:
    """GGUF says it by a number; vectors are of length 1 by custom."""
    try:
        file = open_gguf(path)
        kind = file.integer(f"{file.text('general.architecture')}.pooling_type") or 0
    except GGUFError as error:
        raise Undeclared(str(error)) from None
    if kind == 0 and not asked:
        raise Undeclared(_NOTHING_SAID)
    if kind not in (0, 3):
        said = _GGUF_POOLING.get(kind, str(kind))
        raise Undeclared(f"{path}: pooling_type says {said}; only last-token pooling is supported")
    return Pooling()


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """The modules that ``modules.json`` lists: class name, and folder inside of ``folder``; none without the file."""
    path = folder / "modules.json"
    listed = _json(path) if path.is_file() else []
    found = []
    for module in listed if isinstance(listed, list) else [None]:
        kind, place = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        # A name, never a path: a list must not make us read outside its folder.
        if not isinstance(kind, str) or not isinstance(place, str) or not re.fullmatch(r"|\w[\w-]*", place):
            raise Undeclared(f"{path} is not a list of modules with type and path; download the model again")
        found.append((kind.rpartition(".")[2], place))
    return found


def read_labels(folder: Path) -> tuple[int | str, int | str] | None:
    """The tokens, ids or spellings, that say "not relevant" and "relevant" after a query and a document.

    Declared as a ``LogitScore`` module, or as ``classifier_from_token`` in ``config.json``; ``None``: not declared.
    Raises ``Undeclared`` where one token alone is to say it, whose probability says nothing by itself.
    """
    modules = dict(read_modules(folder))
    if "LogitScore" in modules:
        config = _read(folder / modules["LogitScore"] / "config.json")
        no, yes = config.get("false_token_id"), config.get("true_token_id")
        if type(no) is not int or type(yes) is not int:
            raise Undeclared(f"{folder}: LogitScore is to score by one token; two, true and false, are supported")
        return no, yes
    tokens = _read(folder / "config.json").get("classifier_from_token")
    if tokens is None:
        return None
    if not isinstance(tokens, list) or len(tokens) != 2 or not all(isinstance(token, str) for token in tokens):
        raise Undeclared(f"{folder}: classifier_from_token is {tokens!r:.80}; two tokens, no and yes, are supported")
    return tokens[0], tokens[1]


def _refuse_other_attention(folder: Path) -> None:
    """Vectors of a model that looks ahead, or brings code of its own, would not be those it was trained for."""
    config = _read(folder / "config.json")
    if config.get("is_causal") is False or config.get("use_bidirectional_attention"):
        raise Undeclared("the checkpoint attends in both directions (config.json); only causal attention is supported")
    if config.get("auto_map"):
        raise Undeclared("the checkpoint brings code of its own (auto_map in config.json), which is never run")


def _modes(config: Mapping[str, Any]) -> list[str]:
    """The modes that a Pooling module's config turns on, in its older and newer spelling."""
    given = config.get("pooling_mode")
    if given is not None:
        return [str(mode)[:40] for mode in (given if isinstance(given, list) else [given])]
    return [mode for name, mode in _MODES.items() if config.get(name)]


def _prompts(settings: Mapping[str, Any]) -> dict[str, str]:
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise Undeclared("config_sentence_transformers.json: prompts must be texts by name; download the model again")
    if any(len(text) > MAX_PROMPT_CHARS for text in prompts.values()):
        raise Undeclared(f"config_sentence_transformers.json: a prompt is longer than {MAX_PROMPT_CHARS} characters")
    return prompts


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none."""
    value = _json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise Undeclared(f"{path} holds {type(value).__name__}, not an object; download the model again")
    return value


def _json(path: Path) -> Any:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise Undeclared(f"{path} has more than {MAX_FILE_BYTES} bytes; is it the right file?")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise Undeclared(f"{path} is not valid JSON ({error}); download the model again") from None
