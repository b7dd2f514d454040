"""What is said between the two processes: frames of a few byte strings, JSON and int32.

    frame    count, 1 byte | lengths, 4 bytes each | parts
    setup    limits, special tokens                          once, to the process
    ready    READY                                           once, from it
    job      spec                                            to the process
    answer   verdict | checks | report | stream              from it; the last three when the spec was read

Nothing is run that came over the socket, and lengths are checked before anything is read.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from sglite.constrained.budget import Budget
from sglite.constrained.grammar import Check
from sglite.constrained.json_schema.asked import Asked, Question, checker_of
from sglite.constrained.limits import Limits
from sglite.constrained.report import KeywordReport
from sglite.constrained.spec import ConstraintSpec

READY = b"ready"
MAX_PART = 64 << 20
"""Bytes of one part."""


class Verdict(TypedDict):
    """What became of a job."""

    kind: Literal["read", "error", "refused", "failed"]
    reason: str
    pointer: str
    keyword: str
    lasting: bool
    """The front end said it, and will say the same again."""
    full: bool
    """The process has grown and had better be replaced."""


def send(connection: socket.socket, parts: Sequence[bytes | memoryview]) -> None:
    """Send a frame, whole. Raises OSError."""
    head = struct.pack(f">B{len(parts)}I", len(parts), *(len(part) for part in parts))
    connection.sendall(head + bytes(parts[0]))
    for part in parts[1:]:
        connection.sendall(part)


def lengths(head: bytes) -> list[int]:
    """The lengths of a frame's parts, without their count. Raises ConnectionError for what is no frame."""
    found = [length for (length,) in struct.iter_unpack(">I", head)]
    if max(found) > MAX_PART:
        raise ConnectionError(f"a part of {max(found)} bytes was announced, {MAX_PART} is the most")
    return found


def setup_to_json(limits: Limits, specials: Mapping[str, int]) -> bytes:
    """What a process has to know before its first job."""
    return _written({"limits": dataclasses.asdict(limits), "specials": dict(specials)})


def setup_of(data: bytes) -> tuple[Limits, dict[str, int]]:
    """The way back."""
    found = _read(data)
    return Limits(**found["limits"]), found["specials"]


def spec_to_json(spec: ConstraintSpec) -> bytes:
    """A job."""
    return _written(dataclasses.asdict(spec))


def spec_of(data: bytes) -> ConstraintSpec:
    """The way back."""
    return ConstraintSpec(**_read(data))


def verdict_to_json(verdict: Verdict) -> bytes:
    """The first part of an answer."""
    return _written(verdict)


def verdict_of(data: bytes) -> Verdict:
    """The way back."""
    verdict: Verdict = _read(data)
    return verdict


def checks_to_json(checks: Sequence[Check]) -> bytes:
    """The questions of a grammar and the documents they are about."""
    documents: dict[int, int] = {}
    trees: list[Any] = []
    questions = []
    for check in checks:
        if not isinstance(check, Asked):
            raise TypeError(f"{check!r:.80} cannot be asked by another process")
        number = documents.setdefault(id(check.document), len(trees))
        if number == len(trees):
            trees.append(check.document)
        questions.append((number, check.question))
    return _written({"documents": trees, "questions": questions})


def checks_of(data: bytes, limits: Limits, budget: Budget) -> tuple[Asked, ...]:
    """The way back; `budget` is spent on making the rules of the documents."""
    found = _read(data)
    checkers = [checker_of(document, limits, budget) for document in found["documents"]]
    return tuple(
        Asked(found["documents"][number], Question(*question), checkers[number])
        for number, question in found["questions"]
    )


def report_to_json(report: KeywordReport) -> bytes:
    """Verdicts and reasons."""
    return _written({"verdicts": dict(report.verdicts), "reasons": dict(report.reasons)})


def report_of(data: bytes) -> KeywordReport:
    """The way back."""
    return KeywordReport(**_read(data))


def _written(value: Any) -> bytes:
    """JSON. Halves of surrogate pairs stay what they are, side by side too."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _read(data: bytes) -> Any:
    return json.loads(data.decode("utf-8", "surrogatepass"))
