"""The operator's page has every metric, and none that is not."""

from __future__ import annotations

import re
from pathlib import Path

from sglite.runtime.observe.metrics import EngineState, Metrics
from sglite.runtime.observe.observer import Observer
from sglite.runtime.observe.series import ENGINE_COUNTERS, ENGINE_GAUGES, HISTOGRAMS, OWN_GAUGES, REQUEST_COUNTERS

PAGE = Path(__file__).parents[3] / "docs" / "operators.md"


def shown() -> set[str]:
    """Names of all families, of an engine that says everything."""
    statistics = dict.fromkeys(("num_running", "num_waiting", "num_compiling", "num_steps", "step_tokens"), 1)
    metrics = Metrics(Observer(), lambda: EngineState(up=True, statistics=statistics), prefix="sglite", model="m")
    found = {family.name.removeprefix("sglite:") for family in metrics.collect()}
    return found | {*ENGINE_COUNTERS, *ENGINE_GAUGES, *HISTOGRAMS, *OWN_GAUGES, *REQUEST_COUNTERS}


def test_every_metric_is_on_the_page_and_no_other() -> None:
    tables = PAGE.read_text(encoding="utf-8").partition("## Metrics")[2].partition("## One request")[0]
    rows = [line.split("|")[1] for line in tables.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == shown()
