"""Where a program that is replayed first departs from its recording, in a line that says which request, which recorded
one comes nearest, and what is different, both sides shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglite.lang.testing.recording import Record

_AROUND = 30
"""Characters shown on each side of the place where two texts part."""
_SHOWN_PARAMS = 5


def difference(asked: Record, recorded: Sequence[Record], used: set[int], *, strict: bool) -> str:
    """What sets ``asked`` apart from all of ``recorded``. ``used``: indices of records that were replayed already."""
    if not recorded:
        return f"{asked} has no answer: the recording has no requests"
    key = asked.key(strict=strict)
    same = sum(record.key(strict=strict) == key for record in recorded)
    if same:
        return f"{asked} was recorded {_times(same)} and is asked for once more, after {_tail(asked.text)}"
    index = max(range(len(recorded)), key=lambda i: (_likeness(asked, recorded[i]), i not in used, -i))
    near = recorded[index]
    reasons = [reason for reason in (_names(asked, near), _texts(asked, near), _media(asked, near)) if reason]
    reasons += _params(asked, near, strict=strict)
    if strict and asked.node != near.node:
        reasons.append(f"its place: recorded {near.node!r}, now {asked.node!r}")
    return f"{asked} was not recorded; nearest is request {index}, {near}; {'; '.join(reasons)}"


def common_start(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _likeness(asked: Record, record: Record) -> float:
    """Higher for a record that is more likely what the program meant."""
    a, b = asked.text, record.text
    text = 1.0 if a == b else common_start(a, b) / max(len(a), len(b))
    node = asked.node != "" and asked.node == record.node
    return 2.0 * node + 2.0 * (asked.name == record.name) + (asked.kind == record.kind) + text


def _names(asked: Record, near: Record) -> str:
    if asked.kind != near.kind:
        return f"the kind of request: recorded {near.kind}, now {asked.kind}"
    return f"the name: recorded {near.name!r}, now {asked.name!r}" if asked.name != near.name else ""


def _texts(asked: Record, near: Record) -> str:
    if (asked.messages is None) != (near.messages is None):
        return "one has a prompt and the other has messages"
    if asked.text == near.text:
        return ""
    what = "the prompts" if asked.messages is None else "the messages"
    at = common_start(asked.text, near.text)
    return f"{what} differ at character {at}: recorded {_around(near.text, at)}, now {_around(asked.text, at)}"


def _media(asked: Record, near: Record) -> str:
    return "the images or videos before it are not the same" if asked.media != near.media else ""


def _params(asked: Record, near: Record, *, strict: bool) -> list[str]:
    reasons = []
    for name in sorted({*asked.params, *near.params} - (set() if strict else {"seed"})):
        then, now = near.params.get(name), asked.params.get(name)
        if then != now:
            reasons.append(f"{name}: recorded {_short(then)}, now {_short(now)}")
    more = len(reasons) - _SHOWN_PARAMS
    return [*reasons[:_SHOWN_PARAMS], f"{more} more parameters"] if more > 0 else reasons


def _around(text: str, at: int) -> str:
    start, end = max(0, at - _AROUND), at + _AROUND
    return f"{'...' if start else ''}{text[start:end]!r}{'...' if end < len(text) else ''}"


def _tail(text: str) -> str:
    return f"{'...' if len(text) > 2 * _AROUND else ''}{text[-2 * _AROUND :]!r}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:120] + "..."


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
