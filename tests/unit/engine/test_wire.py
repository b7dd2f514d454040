"""Frames between processes: what is sent arrives, once and in order; what is no message is said to be none."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.config import EngineArgs, Facts
from sglite.runtime.engine import messages, wire
from sglite.runtime.engine.wire import MAX_FRAME, Channel, WireError
from sglite.runtime.protocol import (
    Accounting,
    FinishReason,
    GenerateRequest,
    LogprobOptions,
    ProgramRef,
    RequestOutput,
    ThinkingLimit,
    TokenLogprob,
)
from sglite.runtime.resolve import resolve
from sglite.runtime.sample.params import SamplingParams

SOON = 10.0
REQUEST = GenerateRequest(
    request_id="r-ü",
    token_ids=[0, 1, 2**31 - 1],
    sampling=SamplingParams(
        max_new_tokens=None, stop=("a", "\n"), stop_regex=("b+",), stop_token_ids=(3,), logit_bias={7: -100.0, 9: 1.5},
        allowed_token_ids=(1, 2), temperature=0.7, top_k=5, seed=2**64 - 1, on_limit="try_close",
    ),
    constraint=ConstraintSpec.json_schema({"type": "object"}, whitespace="compact", strict=False, order="any"),
    constraint_after=(4, 5),
    reasoning_budget=0,
    thinking=ThinkingLimit(begin="", end="</t>", tokens=0),
    logprobs=LogprobOptions(start_len=0, top_n=3, token_ids=(1, 2)),
    priority=-3,
    namespace="a\0b",
    program=ProgramRef(program_id="p", node_id="0/1", group_id="g", group_size=4, upcoming=2),
    pin="1/p",
    queue_timeout_s=0.5,
    timeout_s=60,
)  # fmt: skip
OUTPUT = RequestOutput(
    request_id="r",
    new_token_ids=[1, 2],
    logprobs=[TokenLogprob(1, -0.25, [(1, -0.25), (2, -3.0)], [(9, -9.0)]), TokenLogprob(2, None)],
    prompt_logprobs=[TokenLogprob(5, -1.0)],
    finish_reason=FinishReason(type="stop", matched="x"),
    constraint_complete=False,
    constraint_filled=["/a"],
    accounting=Accounting(prompt_tokens=3, queue_ms=1.5),
)
ARGS = EngineArgs(model_path="m", max_total_tokens=64, mem_fraction_static=None, log_level="error")
FACTS = Facts(max_context=32, vocab_size=9, bytes_per_token=1, free_memory=None, dtype="float32", device="cpu")
TO_ENGINE: list[Any] = [
    messages.LoadModel(args=ARGS, folder="/f", log_level=30),
    messages.Submit([REQUEST, GenerateRequest(request_id="s", token_ids=[1])]),
    messages.Abort("r"),
    messages.AbortAll("why"),
    messages.CompileAhead(ConstraintSpec.regex("a+")),
    messages.Unpin("1/"),
    messages.Park("1/p", None),
    messages.Park("1/p", 2.5),
    messages.Ask(3, "pause", "retract"),
    messages.Shutdown(),
]
FROM_ENGINE: list[Any] = [
    messages.Loaded(config=resolve(ARGS, FACTS), eos_ids=(2, 3), weight_bytes=2**40, statistics={}),
    messages.NotLoaded("no", users=True),
    messages.Outputs([OUTPUT, RequestOutput(request_id="s")]),
    messages.Answer(3, {"a": [1, None]}),
    messages.Answer(4, error="no"),
    messages.Dying("a bug"),
    messages.LogRecord("sglite.x", 40, "line\nline"),
]


class Pair:
    """A channel and what is at its other end: another, or a bare socket."""

    def __init__(self, bare: bool = False, incoming: Any = messages.ToEngine) -> None:
        ours, theirs = socket.socketpair()
        self.near = Channel(ours, messages.FromEngine)
        self.bare = theirs
        self.far = None if bare else Channel(theirs, incoming)

    def close(self) -> None:
        self.near.close()
        (self.far or self.bare).close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def collect(channel: Channel) -> tuple[list[Any], threading.Thread]:
    """What a channel receives, and the thread that does until its end."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(channel.messages()), daemon=True)
    thread.start()
    return found, thread


def raw(payload: bytes, magic: bytes = b"sgl", version: int = wire.VERSION, length: int | None = None) -> bytes:
    return struct.pack(">3sBI", magic, version, len(payload) if length is None else length) + payload


def test_every_message_arrives_as_it_was(pair: Pair) -> None:
    assert pair.far is not None
    there, one = collect(pair.far)
    back, two = collect(pair.near)
    for message in TO_ENGINE:
        pair.near.send(message)
    for message in FROM_ENGINE:
        pair.far.send(message)
    pair.near.drain(SOON)
    pair.far.drain(SOON)
    time.sleep(0.05)
    pair.close()
    one.join(SOON)
    two.join(SOON)
    assert there == TO_ENGINE and back == FROM_ENGINE
    assert isinstance(there[1].requests[0].sampling.stop, tuple), "frozen values stay hashable"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_messages_do_not_depend_on_how_the_bytes_come(data: st.DataObject) -> None:
    """Any cut of the stream, a cut end included: what was whole is read, nothing else is."""
    chosen = data.draw(st.lists(st.sampled_from(TO_ENGINE), max_size=5))
    frames = [raw(msgspec.msgpack.encode(message)) for message in chosen]
    stream = b"".join(frames)
    end = data.draw(st.integers(0, len(stream)))
    cuts = sorted(data.draw(st.lists(st.integers(0, end), max_size=6)))
    ours, theirs = socket.socketpair()
    channel = Channel(theirs, messages.ToEngine)
    found, thread = collect(channel)
    for start, stop in zip([0, *cuts], [*cuts, end], strict=True):
        ours.sendall(stream[start:stop])
        if data.draw(st.booleans()):
            time.sleep(0.0005)
    ours.close()
    thread.join(SOON)
    channel.close()
    whole = sum(sum(map(len, frames[: i + 1])) <= end for i in range(len(frames)))
    assert found == chosen[:whole]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not begin a message"),
        (raw(b"", version=9), "version 9 of the protocol"),
        (raw(b"", length=MAX_FRAME + 1), f"{MAX_FRAME + 1} bytes was announced"),
        (raw(b"\xc1"), "a frame of 1 bytes holds no message"),
        (raw(msgspec.msgpack.encode({"type": "eval", "code": "1"})), "Invalid value 'eval'"),
        (raw(msgspec.msgpack.encode({"type": "submit", "requests": [{"request_id": 1}]})), "Expected `str`"),
        (raw(msgspec.msgpack.encode(["submit", []])), "holds no message"),
        (raw(b"\x91" * 100_000), "holds no message"),
        (raw(msgspec.msgpack.encode({"type": "ask", "number": 1, "question": "exit"})), "Invalid enum value 'exit'"),
        (
            raw(msgspec.msgpack.encode(messages.Submit([REQUEST])).replace(b"\xa5top_k\x05", b"\xa5top_k\xd1\x80\x00")),
            "top_k",
        ),
    ],
)
def test_what_is_no_message_is_said_to_be_none(data: bytes, said: str) -> None:
    pair = Pair(bare=True)
    reader = Channel(pair.bare, messages.ToEngine)
    other = socket.socket(fileno=pair.near._socket.detach())
    other.sendall(raw(msgspec.msgpack.encode(messages.Shutdown())) + data)
    found = reader.messages()
    assert next(found) == messages.Shutdown()
    with pytest.raises(WireError, match=said) as caught:
        next(found)
    assert "\n" not in str(caught.value)
    assert list(found) == []
    other.close()
    reader.close()


def test_random_bytes_harm_nobody() -> None:
    rng = random.Random(0)
    for _ in range(300):
        ours, theirs = socket.socketpair()
        channel = Channel(theirs, messages.ToEngine)
        data = rng.randbytes(rng.randrange(200))
        ours.sendall(raw(data) if rng.random() < 0.7 else data)
        ours.close()
        with contextlib.suppress(WireError):
            assert list(channel.messages()) == []
        channel.close()


def test_who_sends_never_waits_and_nothing_is_lost(pair: Pair) -> None:
    """Far more than a socket holds, to a peer that reads nothing yet; then all of it in order."""
    sent = [messages.Abort(f"{i}" + "x" * (1_000_000 if i % 100 == 0 else 9_000)) for i in range(1000)]
    slowest = 0.0
    for message in sent:
        start = time.perf_counter()
        pair.near.send(message)
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 0.5
    assert pair.far is not None
    found, thread = collect(pair.far)
    pair.near.drain(SOON)
    time.sleep(0.1)
    pair.near.close()
    thread.join(SOON)
    assert found == sent


def test_many_threads_share_a_channel(pair: Pair) -> None:
    """Frames stay whole, and each thread's stay in order."""
    assert pair.far is not None
    found, reader = collect(pair.far)

    def work(name: int) -> None:
        for i in range(300):
            pair.near.send(messages.Abort(f"{name}/{i}/" + "x" * (i % 7 * 3000)))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pair.near.drain(SOON)
    time.sleep(0.1)
    pair.near.close()
    reader.join(SOON)
    parts = [message.request_id.split("/") for message in found]
    assert len(parts) == 1800
    for name in range(6):
        assert [int(i) for who, i, _ in parts if who == str(name)] == list(range(300))


def test_a_send_inside_a_send_comes_after_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalizer may send at any time, in a thread that is sending: no deadlock, and no frame inside another."""
    inner, send_frames = iter(range(3)), pair.near._send_frames

    def interrupted(flags: int) -> bool:
        for i in inner:
            pair.near.send(messages.Abort(f"inner {i}"))
        return send_frames(flags)

    monkeypatch.setattr(pair.near, "_send_frames", interrupted)
    assert pair.far is not None
    found, reader = collect(pair.far)
    pair.near.send(messages.Abort("outer"))
    pair.near.drain(SOON)
    time.sleep(0.05)
    pair.near.close()
    reader.join(SOON)
    assert [message.request_id for message in found] == ["outer", "inner 0", "inner 1", "inner 2"]


def test_a_peer_that_reads_nothing_is_given_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_WAITING", 50)
    big = messages.Abort("x" * 2**20)
    for _ in range(60):
        pair.near.send(big)
    assert len(pair.near._frames) <= 50
    assert list(pair.near.messages()) == []


@pytest.mark.parametrize(
    "message",
    [
        messages.Abort("\ud800"),
        messages.Ask(2**70, "statistics"),
        messages.Park("p", object()),  # type: ignore[arg-type]
        messages.Abort("x" * 2000),
    ],
)
def test_what_cannot_be_sent_is_refused_and_the_rest_goes_on(
    pair: Pair, message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME", 1000)
    assert pair.far is not None
    with pytest.raises(WireError, match=r"this \w+ (cannot be sent|has \d+ bytes)"):
        pair.near.send(message)
    pair.near.send(messages.Abort("next"))
    assert next(pair.far.messages()) == messages.Abort("next")


def test_an_ended_channel_says_nothing_and_hears_nothing(pair: Pair) -> None:
    assert pair.far is not None
    pair.far.close()
    pair.near.send(messages.Abort("a"))
    pair.near.send(messages.Abort("b"))
    assert list(pair.near.messages()) == []
    pair.near.close()
    pair.near.send(messages.Abort("c"))
    pair.near.close()
