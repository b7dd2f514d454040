"""The walk-through of a new family shows the family's source as it is, and stays short."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-model.md").read_text()


def test_the_source_shown_is_the_source() -> None:
    (shown,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    source = (ROOT / "sglite" / "runtime" / "model" / "olmo2.py").read_text()
    assert source.endswith(shown)
    assert len(source.splitlines()) < 100


def test_the_lines_shown_are_there() -> None:
    tables = ("sglite/runtime/model/architectures.py", "tests/model_families.py")
    known = {line.strip() for table in tables for line in (ROOT / table).read_text().splitlines()}
    shown = [line for block in re.findall(r"```text\n(.*?)```", PAGE, flags=re.S) for line in block.splitlines()]
    lines = [line for line in shown if line.startswith('"')]
    assert len(lines) == 3 and all(line in known for line in lines)
