"""The code in the documentation runs as it stands, page by page and each page from top to bottom, on the bundled model.

Blocks marked ``python`` run; those marked ``py`` need an account or another package, and only have to be Python. The
pages share one process, so that PyTorch is loaded once; what a page leaves behind is taken away before the next.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [
    "language.md",
    "typed_programs.md",
    "tools.md",
    "graphs.md",
    "backends.md",
    "testing_programs.md",
    "migrating/sglang.md",
    "migrating/guidance.md",
    "migrating/outlines.md",
    "migrating/pydantic_ai.md",
]
RUN = """
import json, runpy, sys, traceback
import sglite
told = {}
for path in sys.argv[1:]:
    sglite.set_default_backend(None)
    try:
        runpy.run_path(path, run_name="__main__")
        told[path] = ""
    except BaseException:
        told[path] = traceback.format_exc()
open("told.json", "w").write(json.dumps(told))
"""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each page: its traceback, or nothing."""
    folder = tmp_path_factory.mktemp("pages")
    scripts = {page: folder / (page.replace("/", "_").removesuffix(".md") + ".py") for page in PAGES}
    for page, script in scripts.items():
        script.write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    command = [sys.executable, "-c", RUN, *map(str, scripts.values())]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(DOCS.parent)}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=110, env=env, check=False, cwd=folder)
    assert ran.returncode == 0, ran.stderr[-2000:]
    ends = json.loads((folder / "told.json").read_text())
    return {page: ends[str(script)] for page, script in scripts.items()}


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: str, told: dict[str, str]) -> None:
    assert blocks(page, "python")
    assert told[page] == ""


@pytest.mark.parametrize("page", PAGES)
def test_code_that_is_not_run_is_python_all_the_same(page: str) -> None:
    for block in blocks(page, "py"):
        ast.parse(block)


def test_every_page_with_code_that_runs_is_run() -> None:
    about_programs = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if "import sglite" in path.read_text()]
    others = {"quickstart.md", "engine.md", "constrained.md", "reference.md"}
    assert sorted(set(about_programs) - others) == sorted(PAGES)
