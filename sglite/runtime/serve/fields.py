"""Reading a JSON object field by field: each value checked where it is read, fields that nobody read known by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import TracebackType
from typing import Any

from sglite.runtime.sample.params import InvalidParameter
from sglite.runtime.serve.errors import Refused

IGNORED_HEADER = "X-Sglite-Ignored"
"""Response header that names the fields of a request that had no effect."""
_MAX_NAMED = 16


class Fields:
    """The fields of one object. ``where``: what precedes a field's name in messages. ``null`` is the same as absent.

    Most fields that a route knows are absent from most requests: asking for one of those costs a look into the object.
    """

    def __init__(self, body: Mapping[str, Any], where: str = "") -> None:
        self._body = body
        self._where = where
        self._read: set[str] = set()

    def raw(self, name: str) -> Any:
        """The value as it came; ``None``: none."""
        value = self._body.get(name)
        if value is not None:
            self._read.add(name)
        return value

    def given(self, names: Iterable[str]) -> dict[str, Any]:
        """Those of ``names`` that have a value, in their order, as they came."""
        body = self._body
        found = {name: value for name in names if (value := body.get(name)) is not None}
        if found:
            self._read.update(found)
        return found

    def flag(self, name: str, default: bool = False) -> bool:
        """true or false."""
        value = self._body.get(name)
        if value is None:
            return default
        self._read.add(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "must be true or false")
        return value

    def text(self, name: str, most: int | None = None) -> str | None:
        """Text of at most ``most`` characters."""
        value = self._body.get(name)
        if value is None:
            return None
        self._read.add(name)
        if not isinstance(value, str):
            raise self.wrong(name, "must be text")
        if most is not None and len(value) > most:
            raise self.wrong(name, f"must have at most {most} characters, got {len(value)}")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """An integer in ``[low, high]``."""
        value = self._body.get(name)
        if value is None:
            return None
        self._read.add(name)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"must be an integer in [{low}, {high}]")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number in ``[low, high]``."""
        value = self._body.get(name)
        if value is None:
            return None
        self._read.add(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.wrong(name, f"must be a number in [{low:g}, {high:g}]")
        return float(value)

    def object(self, name: str) -> dict[str, Any] | None:
        """An object."""
        value = self.raw(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "must be an object")
        return value

    def items(self, name: str) -> list[Any] | None:
        """A list."""
        value = self.raw(name)
        if value is not None and not isinstance(value, list):
            raise self.wrong(name, "must be a list")
        return value

    def objects(self, name: str) -> list[dict[str, Any]] | None:
        """A list of objects."""
        value = self.items(name)
        if value is not None and not all(isinstance(item, dict) for item in value):
            raise self.wrong(name, "must be a list of objects")
        return value

    def one_of(self, name: str, values: Collection[str]) -> str | None:
        """One of some words."""
        value = self._body.get(name)
        if value is None:
            return None
        self._read.add(name)
        if not isinstance(value, str) or value not in values:
            raise self.wrong(name, f"must be one of {', '.join(sorted(values))}")
        return value

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Fields that cannot be honoured, with the reason; those whose value asks for nothing pass."""
        for name, value in self.given(reasons).items():
            if value not in (False, [], {}, ""):
                raise Refused(400, f"{self._where}{name} is not supported: {reasons[name]}", param=self._where + name)

    def wrong(self, name: str, rule: str) -> Refused:
        """The refusal of a value."""
        shown = _shown(self._body.get(name))
        return Refused(400, f"{self._where}{name} {rule}, got {shown}", param=self._where + name)

    def unread(self) -> list[str]:
        """Names of the fields that nobody asked for and that have a value."""
        return [name for name in self._body if name not in self._read and self._body[name] is not None]


def ignored_header(names: Collection[str]) -> dict[str, str]:
    """The header for fields without effect; no header where there are none."""
    shown = [ascii(name[:64])[1:-1] for name in list(names)[:_MAX_NAMED]]
    return {IGNORED_HEADER: ", ".join(shown)} if shown else {}


class spelled:
    """``with spelled(names)``: refusals of parameters, under the names that the client knows them by: native name ->
    its own."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, InvalidParameter):
            own = self._names.get(error.field, error.field)
            raise Refused(400, str(error).replace(error.field, own), param=own) from None


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return ascii(value[:60]) + ("..." if len(value) > 60 else "")
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value) if value.bit_length() < 128 else f"an integer of {value.bit_length()} bits"
    return "a list" if isinstance(value, list) else "an object"
