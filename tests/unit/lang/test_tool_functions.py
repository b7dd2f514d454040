"""Functions as tools: what a model is told of them, what is refused, and threads that do not come back."""

from __future__ import annotations

import functools
import threading
import time
from typing import Annotated

import pytest
from pydantic import BaseModel, Field

import sglite as sgl
from sglite.lang.history import noted
from sglite.lang.tool_threads import MAX_ABANDONED, ToolThreads
from sglite.lang.tools import Tool, as_tools


class Place(BaseModel):
    """A place."""

    city: str


def weather(place: Place, days: Annotated[int, Field(description="How many.")] = 1) -> str:
    """The weather
    of a place.

    And more that no model needs.

    Args:
        place: Where.
    """
    return f"{place.city} {days}"


def test_a_tool_is_told_by_its_signature_and_docstring_and_stays_a_function() -> None:
    tool = sgl.tool(weather)
    assert (tool.name, tool.spec.description) == ("weather", "The weather of a place.")
    properties = tool.spec.parameters["properties"]
    assert list(properties) == ["place", "days"] and tool.spec.parameters["required"] == ["place"]
    assert properties["days"]["description"] == "How many." and tool.spec.parameters["additionalProperties"] is False
    assert tool(Place(city="Oslo"), days=2) == "Oslo 2" and tool.__doc__ == weather.__doc__
    assert tool.arguments('{"place": {"city": "Oslo"}}') == {"place": Place(city="Oslo")}


def test_a_tool_may_be_named_and_described_otherwise() -> None:
    @sgl.tool(name="forecast", description="Tells.", timeout=None)
    def f(city: str) -> str:
        return city

    assert (f.spec.name, f.spec.description, f.timeout, f("x")) == ("forecast", "Tells.", None, "x")
    assert list(as_tools([f, weather])) == ["forecast", "weather"]
    partial = Tool(functools.partial(weather, days=3), name="three")
    assert partial.invoke(partial.arguments('{"place": {"city": "Rome"}}')) == "Rome 3"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sgl.tool(lambda x: x), (TypeError, ValueError), "lambda"),
        (lambda: sgl.tool(name="a b")(weather), ValueError, "'a b' is no name for a tool"),
        (lambda: sgl.tool(name="none")(weather), ValueError, "'none' is no name for a tool"),
        (lambda: sgl.tool(timeout=0)(weather), ValueError, "timeout=0"),
        (lambda: sgl.tool(on_error="ignore")(weather), ValueError, "on_error='ignore'"),
        (lambda: sgl.tool(context="ctx")(weather), ValueError, "context='ctx'"),
        (lambda: as_tools([weather, weather]), ValueError, "two tools are called 'weather'"),
        (lambda: as_tools([]), ValueError, "without tools"),
        (lambda: as_tools(["weather"]), TypeError, "'weather' is no tool"),
    ],
)
def test_what_cannot_be_a_tool_is_refused(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()  # type: ignore[operator]


def test_threads_are_bounded_and_the_abandoned_do_not_count() -> None:
    threads, gate, running = ToolThreads(2, "test-tool"), threading.Event(), []

    def hang() -> None:
        running.append(1)
        gate.wait(30)

    calls = [threads.submit(hang, "hang") for _ in range(4)]
    [call.started.result(5) for call in calls[:2]]
    assert len(running) == 2 and not calls[2].started.done()
    threads.abandon(calls[3])
    threads.abandon(calls[0])
    calls[2].started.result(5)
    assert threads.num_abandoned == 1 and not calls[3].started.done()
    gate.set()
    [call.done.result(5) for call in calls[:3]]
    end = time.monotonic() + 5
    while threads.num_abandoned and time.monotonic() < end:
        time.sleep(0.002)
    assert threads.num_abandoned == 0 and threads.submit(lambda: 7, "seven").done.result(5) == 7


def test_too_many_that_hang_are_refused() -> None:
    threads, gate = ToolThreads(MAX_ABANDONED + 1, "test-tool"), threading.Event()
    for _ in range(MAX_ABANDONED):
        call = threads.submit(lambda: gate.wait(30), "hang")
        call.started.result(5)
        threads.abandon(call)
    with pytest.raises(RuntimeError, match=f"{MAX_ABANDONED} calls of tools took too long and still go on"):
        threads.submit(lambda: None, "more")
    gate.set()


def test_a_note_joins_the_system_text_or_the_first_turn() -> None:
    user, system = {"role": "user", "content": "Q"}, {"role": "system", "content": "S"}
    assert noted([system, user], "N") == [{"role": "system", "content": "S\n\nN"}, user]
    assert noted([user], "N") == [{"role": "user", "content": "N\n\nQ"}]
    assert noted([], "N") == [{"role": "user", "content": "N"}] and noted([user], "") == [user]
    assert user["content"] == "Q"
