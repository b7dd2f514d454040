"""How far loading is."""

from __future__ import annotations

import io

import pytest

from sglite.runtime.model import progress as module
from sglite.runtime.model.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def load(out: io.StringIO, shown: bool | None, parts: int = 100) -> str:
    with progress("loading weights", parts * 10**7, shown, out) as advance:
        for _ in range(parts):
            advance(10**7)
    return out.getvalue()


def test_elsewhere_than_on_a_terminal_each_tenth_is_a_line() -> None:
    lines = load(io.StringIO(), True).splitlines()
    assert [line.split()[2] for line in lines] == [str(10 * tenth) for tenth in range(1, 11)]
    assert "1.0 of 1.0 GB" in lines[-1] and lines[-1].endswith("GB/s")
    assert len(load(io.StringIO(), True, parts=3).splitlines()) == 3


def test_what_is_quick_needs_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(io.StringIO(), None) == ""
    monkeypatch.setattr(module, "_MOMENT_SECONDS", 0.0)
    assert len(load(io.StringIO(), None).splitlines()) == 10


def test_a_terminal_gets_a_bar_with_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert "loading weights" in load(Terminal(), None) and "/s" in load(Terminal(), None)


def test_it_can_be_silent() -> None:
    assert load(Terminal(), False) == "" and load(Terminal(), None, parts=0) == ""
