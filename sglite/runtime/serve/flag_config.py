"""``--config FILE``: flags in a file, one key each, as YAML or JSON.

    model-path: Qwen/Qwen3-0.6B
    max-running-requests: 32
    served-model-name: [small, default]

A key is a flag's name without its dashes, under any of its spellings; ``null`` leaves a flag out. What a key may have
is what its flag may have: both are read by the same code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sglite.runtime.config import ConfigError
from sglite.runtime.serve.flag_advice import ACCEPTED, instead
from sglite.runtime.serve.flag_table import OFF
from sglite.runtime.serve.flags import Flag, serve_flags

_MAX_BYTES = 1 << 20


def read_config(path: str) -> list[str]:
    """The file's keys as flags. ConfigError, naming file and key, for what it cannot have."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise ConfigError(f"--config {path} has more than {_MAX_BYTES} bytes; is that the right file?")
        content = _parsed(path, raw.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--config {path} is not UTF-8 text") from None
    if content is None:
        return []
    if not isinstance(content, dict):
        raise ConfigError(
            f"--config {path} must be keys with values, one for each flag; it is a {type(content).__name__}"
        )
    names = {spelling: flag for flag in serve_flags() for spelling in (flag.name, *flag.aliases)}
    return [word for key, value in content.items() for word in _words(path, key, value, names)]


def _parsed(path: str, text: str) -> Any:
    if Path(path).suffix.lower() == ".json":
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--config {path} is no JSON: {error}") from None
    try:
        import yaml
    except ModuleNotFoundError:
        message = "PyYAML is not installed; pip install 'sglite[runtime]', or name the file .json and write JSON"
        raise ConfigError(f"--config {path}: {message}") from None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"--config {path} is no YAML: {' '.join(str(error).split())}") from None


def _words(path: str, key: Any, value: Any, names: dict[str, Flag]) -> Iterator[str]:
    """One key as flags."""
    where = f"--config {path}: {key}"
    dashed = "--" + str(key).replace("_", "-")
    if dashed in OFF or dashed in ACCEPTED:
        if value not in (True, False, None):
            raise ConfigError(f"{where} must be true or false, got {value!r}")
        yield from [dashed] if value else []
        return
    if not isinstance(key, str) or dashed not in names:
        raise ConfigError(f"{where}: {instead(dashed, names)}")
    hint = names[dashed].hint
    values = value if isinstance(value, list) else [value]
    if isinstance(value, list) and hint in (bool, int, float, str):
        raise ConfigError(f"{where} takes one value, got {value!r}")
    for one in values:
        if one is None:
            continue
        if hint is bool or isinstance(one, bool):
            if hint is not bool or not isinstance(one, bool):
                wanted = "true or false" if hint is bool else "a value, not true or false"
                raise ConfigError(f"{where} must be {wanted}, got {one!r}")
            yield f"--{'' if one else 'no-'}{dashed[2:]}"
        elif isinstance(one, str) or (hint in (int, float) and isinstance(one, (int, float))):
            yield f"{dashed}={one}"
        else:
            # YAML reads 0123 as 83 and 1e3 as text: a key or name that looks like a number must say that it is text
            raise ConfigError(f"{where} must be text, got {one!r}; write it in quotes")
