"""The metadata of a GGUF model that belong to its architecture, read so that none of them is overlooked. No torch."""

from __future__ import annotations

from sglite.runtime.gguf import GGUF
from sglite.runtime.model.errors import ModelError


class Keys:
    """The keys of one architecture, each of which somebody must have asked for in the end."""

    def __init__(self, file: GGUF, architecture: str) -> None:
        self.file = file
        self.prefix = f"{architecture}."
        self._asked: set[str] = set()

    def key(self, name: str) -> str:
        """The whole key, which counts as asked for."""
        self._asked.add(self.prefix + name)
        return self.prefix + name

    def integer(self, name: str) -> int | None:
        """A whole number, the same for all layers where it is listed by layer; ``None`` when absent."""
        key = self.key(name)
        if not self.file.is_array(key):
            return self.file.integer(key)
        listed = self.file.numbers(key) or []
        if len(set(listed)) != 1 or type(listed[0]) is not int:
            raise ModelError(
                f"{self.file.path}: {key} differs between layers ({listed[:4]} ...), which is not supported"
            )
        return listed[0]

    def size(self, name: str, limit: int = 2**30) -> int:
        """A whole number from 1 to ``limit`` that must be there."""
        found = self.integer(name)
        if found is None or not 1 <= found <= limit:
            raise ModelError(f"{self.file.path}: {self.prefix}{name} is {found}; it must be from 1 to {limit}")
        return found

    def number(self, name: str) -> float | None:
        """A finite number; ``None`` when absent."""
        return self.file.number(self.key(name))

    def text(self, name: str) -> str | None:
        """A text; ``None`` when absent."""
        return self.file.text(self.key(name))

    def flag(self, name: str) -> bool | None:
        """True or false; ``None`` when absent."""
        return self.file.flag(self.key(name))

    def must_be(self, name: str, *values: float | None) -> None:
        """A key that is served with these values, and absent, only."""
        key = self.key(name)
        found = "a list" if self.file.is_array(key) else self.file.scalar(key)
        if key in self.file and found not in values:
            raise ModelError(f"{self.file.path}: {key}={found!s:.80} is not supported; only {values[0]} is")

    def refuse_others(self) -> None:
        """ModelError names a key that nobody asked for."""
        for key in self.file:
            if key.startswith(self.prefix) and key not in self._asked:
                raise ModelError(
                    f"{self.file.path}: key {key!r:.80} is not known for this architecture and may change results; "
                    "use the model in safetensors format"
                )
