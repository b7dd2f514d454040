"""The benchmarks of constrained generation run: what needs neither the shared folder nor the real vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from constrained_walks import small_vocabulary

from benchmarks.constrained import apply_mask, run
from benchmarks.constrained.bfcl import choice_schema, tool_answers
from benchmarks.constrained.everyday import check_tools, in_order
from benchmarks.constrained.replay import Answer, replay_engine
from benchmarks.constrained.report import markdown
from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.spec import ConstraintSpec

VOCAB = small_vocabulary()
CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "forecast", "parameters": CITY}}
ITEM = {"id": "one", "tools": [TOOL], "calls": [{"name": "forecast", "arguments": {"days": 3, "city": "Oslo"}}]}


def test_declared_properties_come_first_and_in_order() -> None:
    assert list(in_order(CITY, {"x": 1, "days": 3, "city": "Oslo"})) == ["city", "days", "x"]
    nested = {"type": "array", "items": CITY}
    assert list(in_order(nested, [{"days": 3, "city": "Oslo"}])[0]) == ["city", "days"]


def test_gold_calls_are_checked_and_invalid_ones_left_out() -> None:
    compiler = ConstraintCompiler(VOCAB)
    wrong = {"id": "two", "tools": [TOOL], "calls": [{"name": "forecast", "arguments": {"days": "soon"}}]}
    outcome, skipped = check_tools(compiler, VOCAB, [ITEM, wrong])
    compiler.close()
    assert (outcome.schemas, outcome.compiled, outcome.accepted, outcome.problems, skipped) == (1, 1, 1, [], 1)
    assert len(tool_answers([ITEM, wrong], "compact")[0]) == 1


@pytest.mark.parametrize("overlap", [False, True], ids=["sync", "overlap"])
def test_a_replay_counts_the_passes_of_the_answers_that_came_out(overlap: bool) -> None:
    answers, _ = tool_answers([ITEM], "compact")
    other = Answer("off", ConstraintSpec.json_schema(choice_schema(ITEM), whitespace="fixed"), answers[0].text)
    with replay_engine(VOCAB, ConstraintCompiler(VOCAB), overlap=overlap) as engine:
        good, bad = engine.replay([answers[0], other]).costs
    assert good.problem == "" and len(answers[0].text) <= good.completion_tokens <= len(answers[0].text) + 1
    assert 0 < good.forward_passes <= good.completion_tokens + 2 and good.forced_tokens > 20
    assert bad.problem.startswith("diverged at token ")


def test_the_mask_table_has_a_row_for_every_mask() -> None:
    found = apply_mask.measure(repeats=1)
    assert list(found) == list(apply_mask.ALLOWED)
    assert apply_mask.table(found).count("\n") == 1 + len(found)


def summary(**more: Any) -> dict[str, Any]:
    times = dict.fromkeys(("p50", "p99", "p99.9", "max"), 1000.0)
    names = ("compiled", "items_all_right", "items_over_constrained", "items_under_constrained", "timed_out")
    counts = dict.fromkeys((*names, "valid_rejected", "valid_tested", "invalid_accepted", "invalid_tested"), 0)
    return {"items": 4, **counts, "compile_plus_first_mask_us": times, "mask_us": times, **more}


def test_the_report_shows_every_engine_and_every_failure(tmp_path: Path) -> None:
    found = {
        "harness": {"sglite/dev": summary(compiled=3), "llguidance/dev": {"failed": "no such engine"}},
        "everyday": {"openai": {"schemas": 2, "compiled": 2, "accepted": 5, "rejected": 6, "problems": []}},
        "passes": {"bfcl/compact/sync": {"passes_per_token": 0.6, "answers": 3, "left_out": 0}},
        "mask": {"10": {"backend": 40.0, "xgrammar kernel": None}},
        "limit": 4,
    }
    table = markdown(found)
    assert "| measure | sglite | llguidance |" in table and "| 75.0 % | failed: no such engine |" in table
    assert "| everyday: OpenAI's strict subset | 2 of 2; 11 verdicts right, 0 problems | - |" in table
    assert "sync 0.600 (3 answers, 0 left out)" in table and "10 ids allowed | 40 | - |" in table
    page = tmp_path / "page.md"
    page.write_text(f"before\n{run.BEGIN}\nold\n{run.END}\nafter\n")
    run.put_into_docs(table, page)
    assert page.read_text() == f"before\n{run.BEGIN}\n\n{table}\n\n{run.END}\nafter\n"


def test_the_page_has_the_marks_of_the_table() -> None:
    text = run.DOCS.read_text(encoding="utf-8")
    assert text.count(run.BEGIN) == text.count(run.END) == 1


def test_a_missing_folder_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["run", "--shared", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"no harness in .*; name its folder with --shared or SGLITE_BENCH_SHARED"):
        run.main()
