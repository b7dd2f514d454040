"""``sglite graph`` and ``sglite run`` on files: what they print, and what they say to mistakes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sglite.cli_graph import add_commands, read_arguments
from sglite.lang.graph import ProgramGraph

SOURCE = """
import sglite as sgl
from dataclasses import dataclass
from helper import PREFIX

@dataclass
class Here:
    name: str = __name__

@sgl.function
def f(s, topic, n=2):
    s += PREFIX + topic
    for branch in s.fork(n):
        branch += "view:" + sgl.gen("view", max_tokens=4)
    print("EFFECT")

other = 3
if __name__ == "__main__":
    raise SystemExit("as a script")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text('PREFIX = "Topic: "\n')
    (tmp_path / "prog.py").write_text(SOURCE)
    return tmp_path / "prog.py"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*argv: object) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        add_commands(parser.add_subparsers())
        given = parser.parse_args([str(arg) for arg in argv])
        code = given.run(given)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_graph_shows_a_program_without_running_it(file: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = command("graph", file, "--arg", "topic=cats", "--arg", "n=3", "--explain")
    assert code == 0 and "fork(3)" in out and "gen('view', max_new_tokens=4)" in out and "'Topic: cats'" in out
    assert "EFFECT" not in out and "4 requests, 1 fork; estimated" in err
    assert "argument 'topic'" in command("graph", f"{file}:f")[1]


@pytest.mark.parametrize(
    ("suffix", "flags", "start"),
    [
        ("txt", [], "program 'f'"),
        ("svg", [], "<svg"),
        ("html", [], "<!DOCTYPE html>"),
        ("mmd", [], "flowchart"),
        ("x", ["--format", "svg"], "<svg"),
    ],
)
def test_graph_writes_the_form_that_is_asked_for(
    file: Path, command: Callable[..., tuple[int, str, str]], suffix: str, flags: list[str], start: str
) -> None:
    target = file.parent / f"out.{suffix}"
    assert command("graph", file, "-o", target, *flags)[:2] == (0, "")
    assert target.read_text().startswith(start)


def test_mistakes_are_one_line_that_says_what_to_do(file: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    (file.parent / "two.py").write_text(SOURCE + "\n@sgl.function\ndef g(s):\n    s += 'x'\n")
    (file.parent / "none.py").write_text("x = 1\n")
    (file.parent / "broken.py").write_text("import nothing_of_that_name\n")
    for spec, why in [
        (file.parent / "missing.py", "no such file"),
        (f"{file}:g", "has no program 'g'; it has f"),
        (file.parent / "two.py", "say which: .*two.py:f, .*two.py:g"),
        (file.parent / "none.py", "defines no program; decorate one"),
        (file.parent / "broken.py", "cannot be imported: ModuleNotFoundError"),
    ]:
        with pytest.raises(ValueError, match=why):
            command("graph", spec)
    with pytest.raises(ValueError, match="write it as name=value"):
        command("graph", file, "--arg", "topic")
    with pytest.raises(ValueError, match="signature"):
        command("graph", file, "--arg", "unknown=1")


def test_values_are_json_or_else_text() -> None:
    given = ["a=1", "b=one=two", 'c="1"', "d=[1, 2]", "e="]
    assert read_arguments(given) == {"a": 1, "b": "one=two", "c": "1", "d": [1, 2], "e": ""}


def test_run_prints_what_the_program_returns_and_keeps_its_trace(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    file, trace = tmp_path / "p.py", tmp_path / "t.jsonl"
    file.write_text(
        "import sglite as sgl\n"
        "@sgl.function\n"
        "def f(s, q, fail=False):\n"
        "    s += q + sgl.gen('a', max_tokens=3, temperature=0)\n"
        "    if fail:\n"
        "        raise KeyError('mine')\n"
        "    return {'answer': s['a']}\n"
    )
    code, out, err = command("run", file, "--arg", "q=hello", "--trace", trace, "--explain")
    assert code == 0 and list(json.loads(out)) == ["answer"] and "1 request, 0 forks; counted" in err
    assert ProgramGraph.load(trace).records[1].text == json.loads(out)["answer"]
    code, out, err = command("run", file, "--arg", "q=hello", "--arg", "fail=true")
    assert code == 1 and "KeyError: 'mine'" in err and out == ""
