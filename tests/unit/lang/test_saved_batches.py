"""Batches that were cut off go on where they stopped; rows that fail spoil themselves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.saved_rows import SavedRow


def program(fails_at: int | None = None) -> Any:
    @sgl.function
    def f(s: Any, i: int) -> Any:
        if i == fails_at:
            raise LookupError("row of all rows")
        s += f"{i}:" + sgl.gen("x")
        return {"double": 2 * i}

    return f


ROWS = [{"i": i} for i in range(7)]


@pytest.mark.parametrize("threads", ["auto", 1, 3])
def test_an_exception_spoils_its_own_row_where_that_is_asked_for(echo: Any, threads: Any) -> None:
    states = program(2).run_batch(ROWS, backend=echo, num_threads=threads, on_error="return")
    assert [s.error() is None for s in states] == [i != 2 for i in range(7)]
    assert isinstance(states[2].error().__cause__, LookupError)
    assert states[6].text() == "6:" + echo.answer("6:")
    with pytest.raises(LookupError, match="row of all rows"):
        program(2).run_batch(ROWS, backend=echo, num_threads=threads)
    with pytest.raises(ValueError, match="on_error='ignore'"):
        program().run_batch(ROWS, backend=echo, on_error="ignore")


def test_a_batch_goes_on_where_its_file_ends(echo: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    batch = program().run_batch(ROWS, backend=echo, output=path, generator_style=True, num_threads=1)
    for _ in range(3):
        next(batch)
    batch.close()
    with path.open("a") as file:
        file.write('{"row": 3, "arg')  # the machine went down here
    echo.calls.clear()
    states = program().run_batch(ROWS, backend=echo, output=path)
    assert sorted(prompt for prompt, _ in echo.calls) == [f"{i}:" for i in range(3, 7)]
    assert [type(s) is SavedRow for s in states] == [True] * 3 + [False] * 4
    assert [s.text() for s in states] == [f"{i}:{echo.answer(f'{i}:')}" for i in range(7)]
    assert [s["x"] for s in states] == [echo.answer(f"{i}:") for i in range(7)]
    assert [s.ret_value for s in states] == [{"double": 2 * i} for i in range(7)]
    echo.calls.clear()
    assert len(program().run_batch(ROWS, backend=echo, output=path)) == 7 and echo.calls == []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("row") for line in lines] == [None, *range(7)] and lines[1]["usage"]["requests"] == 1


def test_failed_rows_are_written_down_as_failed(echo: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    program(2).run_batch(ROWS[:4], backend=echo, output=path, on_error="return")
    rows = [json.loads(line) for line in path.read_text().splitlines()][1:]
    assert [row["error"] is None for row in rows] == [True, True, False, True] and "row of all rows" in rows[2]["error"]


def test_a_file_of_another_program_or_batch_is_refused(echo: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    program().run_batch(ROWS, backend=echo, output=path)

    @sgl.function
    def other(s: Any, i: int) -> None:
        s += "x"

    with pytest.raises(ValueError, match="'f', not 'other'"):
        other.run_batch(ROWS, backend=echo, output=path)
    with pytest.raises(ValueError, match="row 0 is of another batch"):
        program().run_batch([{"i": 9}], backend=echo, output=path)
    with pytest.raises(ValueError, match="row 3 is of another batch"):
        program().run_batch(ROWS[:3], backend=echo, output=path)
