"""Recorder: what a recording is, what is kept out of it, and that it stands in nobody's way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.backends.base import Backend, GenCall, Hints, Output, Stream
from sglite.lang.formats import TableFormat
from sglite.lang.ir import Sampling
from sglite.lang.messages import Message, ToolSpec
from sglite.lang.testing import Call, Fail, Mock, Recorder, Replay, ReplayError


@sgl.function
def changing(s: Any, words: str, name: str = "b", heat: float = 0.0) -> None:
    s += "The quick brown fox " + words + " over the lazy dog, and then: " + sgl.gen("a", temperature=heat)
    s += "|" + sgl.gen(name)


def recorded() -> dict[str, Any]:
    recorder = Recorder(Mock({"a": "yes", "b": "no"}))
    changing.run("jumps", backend=recorder).sync()
    return recorder.dump()


# --- what a recording is ---


def test_a_recording_is_json_with_a_version(tmp_path: Path) -> None:
    data = recorded()
    assert json.loads(json.dumps(data)) == data and data["version"] == 1
    first = data["requests"][0]
    assert (first["kind"], first["name"]) == ("gen", "a") and first["node"].startswith("0/")
    assert first["prompt"].startswith("The quick") and first["outputs"][0]["text"] == "yes"
    for damaged, words in [
        ({**data, "version": 2}, "version 2; this sglite reads 1"),
        ({"a": 1}, "is no recording"),
        ({**data, "requests": [{"kind": "guess"}]}, "is damaged"),
        ({**data, "extra": 1}, "is damaged"),
    ]:
        with pytest.raises(ValueError, match=words):
            Replay(damaged)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is no recording"):
        Replay(tmp_path / "x.json")


def test_what_does_not_fit_is_answered_but_never_saved() -> None:
    for limits in ({"max_requests": 1}, {"max_chars": 10}):
        recorder = Recorder(Mock({"a": "yes", "b": "no"}), **limits)
        assert changing.run("jumps", backend=recorder)["b"] == "no"
        with pytest.raises(ValueError, match="1 requests were not recorded: max_requests="):
            recorder.dump()


def test_no_key_gets_into_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct-horse-battery")
    message = (
        "401 for https://me:hunter22@host/v1: key sk-proj-abcdefgh, header Bearer abcdefghij, api_key='zyxwvut', "
        "and correct-horse-battery"
    )
    recorder = Recorder(Mock({"a": Fail(message)}))
    changing.run("jumps", backend=recorder).sync()
    text = json.dumps(recorder.dump())
    assert "401 for https://[secret]host/v1" in text
    for secret in ("hunter22", "abcdefgh", "zyxwvut", "correct-horse"):
        assert secret not in text


def test_turns_are_spelled_as_they_were_recorded() -> None:
    form = TableFormat("odd", {"user": ("<u>", "</u>"), "assistant": ("<a>", "</a>")}, "Be odd.", ("</a>",))
    form = TableFormat("odd", {**form.turns, "system": ("<s>", "</s>")}, "Be odd.", ("</a>",))

    @sgl.function
    def f(s: Any, role: str) -> None:
        s += sgl.user("q") + sgl.assistant(sgl.gen("v"))
        with s._turn(role, None):
            s += "x"

    recorder = Recorder(Mock({"v": "answer"}, form))
    live = f.run("user", backend=recorder)
    again = f.run("user", backend=Replay(recorder.dump()))
    assert again.text() == live.text() == "<s>Be odd.</s><u>q</u><a>answer</a><u>x</u>"
    assert "has no role 'tool'" in str(f.run("tool", backend=Replay(recorder.dump())).error())


# --- back ends of other kinds ---


class Talk:
    """A conversation as a request carries it."""

    def __init__(self, *messages: Message) -> None:
        self.messages, self.role, self.open_text = list(messages), "assistant", "So"


class ByMessages(Mock):
    by_messages = True

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str | None:
        if not messages:
            raise ValueError("no messages")
        return f"{len(messages)} messages, {len(tools)} tools"


async def ask(backend: Backend, *calls: GenCall) -> list[Output]:
    stream: Stream = backend.open("")
    found = [step[0] for call in calls async for step in stream.generate(call)]
    await stream.aclose()
    return found


TOOL = ToolSpec("add", "Add.", {"type": "object", "properties": {"a": {"type": "integer"}}})


def test_messages_tools_and_renderings_replay() -> None:
    hello = Talk({"role": "user", "content": "hello"})
    call = GenCall(name="v", sampling=Sampling(), conversation=hello, tools=(TOOL,), hints=Hints(node="0/0"))
    recorder = Recorder(ByMessages([Call("add", a=1)]))
    assert recorder.by_messages and recorder.calls_tools
    live = asyncio.run(ask(recorder, call))
    texts = recorder.render(hello.messages, [TOOL])
    with pytest.raises(ValueError, match="no messages"):
        recorder.render([], [])
    data = recorder.dump()

    replay = Replay(data)
    assert replay.by_messages and replay.calls_tools
    assert asyncio.run(ask(replay, call)) == live and live[0].tool_calls[0].name == "add"
    assert replay.render(hello.messages, [TOOL]) == texts == "1 messages, 1 tools"
    with pytest.raises(ValueError, match="no messages"):
        replay.render([], [])
    with pytest.raises(ReplayError, match=r"the template's text for a conversation: .* differ at character"):
        replay.render([{"role": "user", "content": "help"}], [TOOL])

    other = GenCall(name="v", sampling=Sampling(), conversation=Talk({"role": "user", "content": "hey"}), tools=(TOOL,))
    with pytest.raises(ReplayError, match=r"the messages differ at character 15: recorded .*hello.*, now .*hey"):
        asyncio.run(ask(Replay(data), other))
    silent = GenCall(name="v", sampling=Sampling(), conversation=hello)
    with pytest.raises(ReplayError, match=r"tool_choice: recorded 'auto', now None; tools: recorded \[\{"):
        asyncio.run(ask(Replay(data), silent))


class Seeing(Mock):
    """A Mock that sees images."""

    def open(self, program_id: str) -> Stream:
        stream = super().open(program_id)
        stream.attach = lambda media: "<image>"  # type: ignore[method-assign]
        return stream


def test_images_are_told_apart_and_not_kept() -> None:
    @sgl.function
    def f(s: Any, image: bytes) -> None:
        s += sgl.image(image) + sgl.gen("v")

    recorder = Recorder(Seeing({"v": "a cat"}))
    assert f.run(b"cat", backend=recorder)["v"] == "a cat"
    f.run(b"lion", backend=recorder).sync()
    data = recorder.dump()
    assert "Y2F0" not in json.dumps(data)  # base64 of b"cat"
    assert f.run(b"cat", backend=Replay(data))["v"] == "a cat"
    data["requests"].pop()
    assert "the images or videos before it are not the same" in str(f.run(b"lion", backend=Replay(data)).error())
    assert "none of the images" in str(f.run(b"dog", backend=Replay(data)).error())


def test_the_recorder_passes_on_all_that_a_stream_is_told() -> None:
    told: list[Any] = []

    class Inner(Stream):
        def append(self, text: str) -> None:
            told.append(text)

        async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
            yield (Output("x"),)

        async def score(self, *args: Any, **kwargs: Any) -> Any:
            raise ValueError("no scores")

        def mark(self) -> object:
            return len(told)

        def rewind(self, mark: object) -> None:
            told.append(("rewind", mark))

        def prepare(self, text: str, call: GenCall) -> None:
            told.append(("prepare", text, call.name))

        def park(self, expected_s: float | None = None) -> None:
            told.append(("park", expected_s))

        def speculate(self, num_tokens: int) -> None:
            told.append(("speculate", num_tokens))

        async def fork(self, n: int) -> list[Stream]:
            return [Inner() for _ in range(n)]

        async def aclose(self) -> None:
            told.append("close")

    class Outer(Mock):
        def open(self, program_id: str) -> Stream:
            told.append(program_id)
            return Inner()

    async def use() -> None:
        stream = Recorder(Outer({})).open("id")
        stream.append("a")
        mark = stream.mark()
        stream.prepare("b", GenCall(name="v", sampling=Sampling()))
        stream.park(1.5)
        stream.speculate(3)
        stream.rewind(mark)
        await stream.aclose()

    asyncio.run(use())
    assert told == ["id", "a", ("prepare", "b", "v"), ("park", 1.5), ("speculate", 3), ("rewind", 2), "close"]
