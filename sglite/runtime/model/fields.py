"""Typed reading of a JSON object that somebody else wrote: every refusal names the file, the field and the value.

A field that is ``null`` counts as absent; absence is an error where no default is given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from sglite.runtime.model.errors import ModelError

MAX_JSON_BYTES = 64 * 2**20
"""Larger than any config or weight index in use; a bigger file is not one."""


class Fields:
    """One JSON object and where it stands, for messages."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def get(self, name: str) -> Any:
        """The raw value; ``None`` when absent."""
        return self.values.get(name)

    def named(self, *names: str) -> str:
        """The first of several names of one field that is there; the first at all where none is."""
        return next((name for name in names if self.get(name) is not None), names[0])

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A nested object; empty when absent."""
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._refuse(name, value, "an object")
        return value

    def sequence(self, name: str) -> list[Any]:
        """A list; empty when absent."""
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self._refuse(name, value, "a list")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._value(name, default, "a string")
        if not isinstance(value, str):
            self._refuse(name, value, "a string")
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        value = self._value(name, default, "true or false")
        if not isinstance(value, bool):
            self._refuse(name, value, "true or false")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._value(name, default, "a number")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self._refuse(name, value, "a finite number")
        return float(value)

    def positive_float(self, name: str, default: float | None = None) -> float:
        value = self.number(name, default)
        if value <= 0:
            self._refuse(name, value, "a number above 0")
        return value

    def positive_int(self, name: str, default: int | None = None) -> int:
        value = self._value(name, default, "a positive integer")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self._refuse(name, value, "a positive integer")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One id or a list of ids; empty when absent."""
        value = self.get(name)
        ids = self.sequence(name) if value is None or isinstance(value, list) else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
            self._refuse(name, value, "a token id or a list of token ids")
        return tuple(ids)

    def _value(self, name: str, default: object, wanted: str) -> object:
        value = self.get(name)
        if value is not None:
            return value
        if default is None:
            self._refuse(name, None, wanted)
        return default

    def _refuse(self, name: str, value: object, wanted: str) -> NoReturn:
        shown = "missing" if value is None else f"{value!r:.80}"
        raise ModelError(f"{self.where}: field {name!r} is {shown}; it must be {wanted}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ModelError when it is too large, not JSON or not an object."""
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ModelError(f"{path} has {size} bytes, more than the {MAX_JSON_BYTES} allowed; is it the right file?")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}); download the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {type(value).__name__}, not an object; download the model again")
    return value
