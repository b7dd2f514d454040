"""Outputs that follow each other quickly go together: none is lost, late or overtaken."""

from __future__ import annotations

import threading

import pytest

from sglite.runtime.engine import paced
from sglite.runtime.engine.paced import PacedOutputs
from sglite.runtime.protocol import RequestOutput

SOON = 10.0


class Wire:
    """What was sent: (request, tokens) of each message."""

    def __init__(self) -> None:
        self.sent: list[list[tuple[str, list[int]]]] = []
        self.came = threading.Semaphore(0)
        self.paced = PacedOutputs(self.send)

    def send(self, outputs: list[RequestOutput]) -> None:
        self.sent.append([(output.request_id, output.new_token_ids) for output in outputs])
        self.came.release()

    @property
    def num_tokens(self) -> int:
        return sum(len(ids) for message in self.sent for _, ids in message)

    def put(self, token: int, more: bool = True, name: str = "a") -> None:
        self.paced.put([RequestOutput(request_id=name, new_token_ids=[token])], more)


def test_the_first_goes_at_once_and_quick_ones_with_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paced, "PACE_SECONDS", 60.0)
    wire = Wire()
    wire.put(1)
    assert wire.sent == [[("a", [1])]]
    for token in (2, 3):
        wire.put(token)
    wire.put(4, name="b")
    assert len(wire.sent) == 1
    wire.put(5, more=False)
    assert wire.sent[1:] == [[("a", [2, 3, 5]), ("b", [4])]]


def test_what_is_held_goes_before_something_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paced, "PACE_SECONDS", 60.0)
    wire = Wire()
    wire.put(1)
    wire.put(2)
    wire.paced.flush()
    wire.paced.flush()
    assert wire.sent == [[("a", [1])], [("a", [2])]]


def test_what_no_step_takes_along_goes_in_time() -> None:
    wire = Wire()
    for token in range(0, 40, 2):
        wire.put(token)
        wire.put(token + 1)
        while wire.num_tokens < token + 2:
            assert wire.came.acquire(timeout=SOON)
    assert [token for message in wire.sent for _, ids in message for token in ids] == list(range(40))


def test_after_silence_one_goes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paced, "PACE_SECONDS", 0.0)
    wire = Wire()
    for token in range(5):
        wire.put(token)
    assert wire.sent == [[("a", [token])] for token in range(5)]
