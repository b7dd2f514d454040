"""A batch's results as JSON Lines, one row a line, in the order of the rows, so that a batch that was cut off goes on.

A line: ``{"row": 3, "arguments": digest, "text": ..., "variables": {...}, "failed": {...}, "value": ..., "error": ...,
"usage": {...}}``. The first line names the program. A line that was only half written is written again.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sglite.lang.errors import ProgramError
from sglite.lang.program import ProgramState
from sglite.lang.values import settled, values_in

logger = logging.getLogger(__name__)
_VERSION = 1


@dataclass(frozen=True)
class SavedRow:
    """A row that an earlier batch has run; reads like its state: ``text()``, ``["x"]``, ``ret_value``, ``error()``."""

    row: int
    saved_text: str
    variables: dict[str, Any] = field(default_factory=dict)
    ret_value: Any = None
    message: str | None = None
    failed: dict[str, str] = field(default_factory=dict)
    """Why variables have no value, of a row that went well apart from them (a branch failed)."""

    def text(self) -> str:
        """The row's text."""
        return self.saved_text

    def error(self) -> str | None:
        """What went wrong, as text; None if nothing did."""
        return self.message

    def __getitem__(self, name: str) -> Any:
        if name in self.failed:
            raise KeyError(self.failed[name])
        return self.variables[name]

    def __contains__(self, name: str) -> bool:
        return name in self.variables


def digest(arguments: inspect.BoundArguments) -> str:
    """What tells a row's arguments from others."""
    return blake2b(repr((arguments.args[1:], arguments.kwargs)).encode("utf-8", "replace"), digest_size=12).hexdigest()


def read_rows(path: Path, program: str, rows: list[inspect.BoundArguments]) -> list[SavedRow]:
    """The rows that ``path`` has, the first ones of the batch; cuts off what was half written.

    ValueError for a file of another program, version or batch.
    """
    if not path.exists() or not path.stat().st_size:
        return []
    lines = path.read_bytes().split(b"\n")
    whole = lines[:-1]
    if lines[-1]:
        logger.warning("%s: the last line was only half written; its row is run again", path)
        path.write_bytes(b"".join(line + b"\n" for line in whole))
    if not whole:
        return []
    head = json.loads(whole[0])
    if head.get("version") != _VERSION or head.get("program") != program:
        raise ValueError(
            f"output={str(path)!r} holds rows of {head.get('program')!r}, not {program!r}; name another file"
        )
    saved = []
    for index, line in enumerate(whole[1:]):
        data = json.loads(line)
        if index >= len(rows) or data["arguments"] != digest(rows[index]):
            raise ValueError(f"output={str(path)!r}: row {index} is of another batch; name another file")
        saved.append(SavedRow(index, data["text"], data["variables"], data["value"], data["error"], data["failed"]))
    return saved


def line_of(index: int, arguments: inspect.BoundArguments, state: ProgramState) -> str:
    """The line of a finished row."""
    error = state.error()
    variables, failed = ({}, {}) if error is not None else _variables(state)
    value = None
    if error is None:
        try:
            for one in values_in(state.ret_value):
                one.value()
            value = settled(state.ret_value)
        except ProgramError as missing:
            error = missing
    return json.dumps(
        {
            "row": index,
            "arguments": digest(arguments),
            "text": error.partial_text if error is not None else state.text(),
            "variables": variables,
            "failed": failed,
            "value": plain(value),
            "error": None if error is None else str(error),
            "usage": asdict(state.usage),
        }
    )


def _variables(state: ProgramState) -> tuple[dict[str, Any], dict[str, str]]:
    """The variables that have a value, and why others, of branches that failed, have none."""
    values, failed = {}, {}
    for name in state.variable_names():
        try:
            values[name] = plain(state[name])
        except ProgramError as error:
            failed[name] = str(error)
    return values, failed


def plain(value: Any) -> Any:
    """A value as JSON: models and dataclasses as objects, what JSON has no word for as text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, fallback=str, bytes_mode="base64")


def saved(path: Path, program: str, rows: list[inspect.BoundArguments], batch: Any) -> Iterator[Any]:
    """The batch's rows: those that ``path`` has, then those that are run now, each written down before it is given."""
    done = read_rows(path, program, rows)
    yield from done
    with path.open("a", encoding="utf-8") as file:
        if not path.stat().st_size:
            file.write(json.dumps({"version": _VERSION, "program": program}) + "\n")
        for index, state in enumerate(batch(len(done)), start=len(done)):
            file.write(line_of(index, rows[index], state) + "\n")
            file.flush()
            yield state
