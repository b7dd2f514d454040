"""The pages keep their promises: links lead somewhere, tables are complete, what is shown as printed is printed."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import sglite

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}


def prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", TEXT[page], flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    titles = re.findall(r"^#{1,6} (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(there), f"{target}: {there.name} has no such heading"


def test_every_page_is_reached_from_the_index() -> None:
    seen, todo = set(), [DOCS / "index.md"]
    while todo:
        page = todo.pop()
        if page in seen or page not in TEXT:
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+\.md)", prose(page))
        todo += [(page.parent / link).resolve() for link in links if not link.startswith("http")]
    assert seen == set(PAGES)


@pytest.mark.parametrize(
    ("page", "function", "others"),
    [
        ("language.md", sglite.gen, set()),
        ("tools.md", sglite.tool_loop, {"s", "tools", "sampling"}),
        ("tools.md", sglite.tool, {"function", "options"}),
    ],
)
def test_tables_have_every_argument(page: str, function: Any, others: set[str]) -> None:
    rows = [line.split("|")[1] for line in TEXT[DOCS / page].split("\n") if line.startswith("| `")]
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    wanted = {name for name in inspect.signature(function).parameters if name not in others}
    if function is sglite.tool:
        wanted |= set(inspect.signature(sglite.lang.tools.Tool).parameters) - others
    assert wanted <= named


def test_the_table_of_errors_has_every_error() -> None:
    page = TEXT[DOCS / "language.md"] + TEXT[DOCS / "tools.md"]
    public = [getattr(sglite, name) for name in sglite.__all__]
    errors = [value.__name__ for value in public if inspect.isclass(value) and issubclass(value, Exception)]
    assert errors
    assert [name for name in errors if f"`sgl.{name}`" not in page] == []


def test_the_graph_in_the_docs_is_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", TEXT[DOCS / "graphs.md"], flags=re.DOTALL)
    assert shown is not None
    script = tmp_path / "page.py"
    script.write_text(shown[1])
    runpy.run_path(str(script))
    assert capsys.readouterr().out == shown[2]
