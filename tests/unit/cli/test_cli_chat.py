"""``sglite chat`` over a pipe and on a terminal, with a server and with one that misbehaves."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from sglite.cli import main
from sglite.cli_chat_session import Session
from sglite.cli_chat_wire import ChatFailed, Piece


def pipe(monkeypatch: pytest.MonkeyPatch, text: str, *argv: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return main(["chat", *argv])


def test_each_line_of_a_pipe_is_a_turn_and_commands_work(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    saved = tmp_path / "saved.json"
    lines = [
        "/system Be short.", "Hello", f"/json {tmp_path / 'schema.json'}", "Give me a", "/json off", "/set temperature",
        f"/save {saved}", "/reset", "/exit", "never asked",
    ]  # fmt: skip
    code = pipe(monkeypatch, "\n".join(lines), "--url", url + "/v1/", "--max-tokens", "16", "--temperature", "0")
    out = capsys.readouterr().out.splitlines()
    assert code == 0 and json.loads(out[-1])["a"] in ("x", "y")
    messages = json.loads(saved.read_text())["messages"]
    assert [turn["role"] for turn in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[0]["content"] == "Be short." and messages[4]["content"] == out[-1]
    assert "\n".join(out) == "\n".join(turn["content"] for turn in messages if turn["role"] == "assistant")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/nope", "there is no command /nope"),
        ("/json {", "is no JSON"),
        ("/json /no/such/file", "No such file"),
        ("/save", "needs a file's name"),
        ("/set model x", "cannot be set"),
        ("/set max_tokens -5\nhi", "max_tokens"),
    ],
)
def test_a_mistake_is_a_line_and_the_exit_code_of_a_pipe(
    line: str, said: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipe(monkeypatch, line, "--url", url) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ") and said in told


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--url", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
        (["--url", "localhost:1"], "'localhost:1' is no URL"),
        (["m", "--url", "http://127.0.0.1:9"], "leave MODEL"),
    ],
)
def test_a_server_that_is_not_there_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sglite chat: ") and said in line


class Scripted:
    """A server that answers with given pieces; an exception among them is raised."""

    url, model = "http://x", "m"

    def __init__(self, *pieces: Any) -> None:
        self.pieces = pieces
        self.asked: list[list[dict[str, str]]] = []
        self.closed = 0

    def answer(self, messages: list[dict[str, str]], fields: Any) -> Generator[Piece, None, None]:
        self.asked.append(messages)
        try:
            for piece in self.pieces:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self.closed += 1


def session(*pieces: Any) -> tuple[Session, Scripted]:
    server = Scripted(*pieces)
    return Session(server), server  # type: ignore[arg-type]


def test_ctrl_c_stops_an_answer_and_keeps_what_came(capsys: pytest.CaptureFixture[str]) -> None:
    talk, server = session(Piece("so "), Piece("far"), KeyboardInterrupt())
    assert talk.take("go") and server.closed == 1
    assert talk.messages == [{"role": "user", "content": "go"}, {"role": "assistant", "content": "so far"}]
    assert capsys.readouterr().out == "so far\n"


def test_an_answer_that_fails_leaves_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    talk, server = session(Piece("half"), ChatFailed("the engine died"))
    assert not talk.take("go") and talk.messages == [] and server.closed == 1
    assert "error: the engine died" in capsys.readouterr().err


def test_a_terminal_is_not_obeyed_and_shows_thinking_and_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}
    talk, _ = session(Piece(reasoning="hm"), Piece("a\x1b]0;x\x07b\tc"), Piece(finish="length"), Piece(usage=usage))
    assert talk.take("go")
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out and "\x07" not in shown.out and "b\tc" in shown.out and "hm" in shown.out
    assert "length" in shown.err and "prompt 9 (8 cached)" in shown.err
    assert talk.messages[-1]["content"] == "a\x1b]0;x\x07b\tc"


def test_a_pipe_gets_the_answer_alone(capsys: pytest.CaptureFixture[str]) -> None:
    talk, server = session(Piece(reasoning="hm"), Piece("yes"), Piece(finish="stop"))
    assert talk.take("/path/like text\n") and capsys.readouterr().out == "yes\n"
    assert server.asked == [[{"role": "user", "content": "/path/like text"}]]


@pytest.mark.slow
def test_a_model_is_served_for_the_conversation(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Its server is another process, which ends with the conversation."""
    code = pipe(monkeypatch, "Hello\n", "--max-tokens", "4", "--", "--dtype=float32", "--num-threads=1")
    assert code == 0 and capfd.readouterr().out.strip()
    assert pipe(monkeypatch, "Hello\n", "/no/such/model", "--", "--offline") == 2
    assert "/no/such/model" in capfd.readouterr().err
