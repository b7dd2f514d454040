"""Everything about constrained generation in one table: ``make bench-constrained``.

The shared harness runs sglite and, where they are installed, llguidance and xgrammar over the same items in the same
run; then come what only sglite has: everyday schemas, forward passes a token, and the cost of a mask. ``--quick`` takes
a part of each and some minutes; without it, an hour or more on one core. ``--docs`` puts the table into
``docs/constrained.md``, between its two marks.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.constrained import apply_mask, bfcl, everyday
from benchmarks.constrained.report import markdown
from benchmarks.constrained.shared import PROJECT, Shared, add_arguments, load_shared

ADAPTER = Path(__file__).with_name("sglite_engine.py")
DOCS = PROJECT / "docs" / "constrained.md"
BEGIN, END = "<!-- bench-constrained: begin -->", "<!-- bench-constrained: end -->"
PARTS = ("harness", "everyday", "passes", "mask")
QUICK_ITEMS = 60


@dataclass(frozen=True)
class Run:
    """One run of the harness."""

    column: str
    engine: str
    split: str
    spelling: str = "default"

    @property
    def key(self) -> str:
        return f"{self.column}/{self.split}" + ("" if self.spelling == "default" else f"/{self.spelling}")


def planned(peers: bool) -> list[Run]:
    """What the harness is asked, sglite first."""
    runs = [Run("sglite", f"{ADAPTER}:SgliteEngine", split) for split in ("dev", "jsts", "regex", "features")]
    runs += [
        Run("sglite, schema order", f"{ADAPTER}:SgliteSchemaOrder", split) for split in ("dev", "jsts", "features")
    ]
    runs.append(Run("sglite, schema order", f"{ADAPTER}:SgliteCompact", "dev", "compact"))
    for name in ("llguidance", "xgrammar"):
        if not peers or importlib.util.find_spec(name) is None:
            continue
        runs += [Run(name, name, split) for split in ("dev", "jsts", "regex", "features")]
        if name == "llguidance":
            runs.append(Run(name, f"{name}-compact", "dev", "compact"))
            runs.append(Run(name, f"{name}-fixedws", "dev", "fixed"))
    return runs


def run_harness(shared: Shared, run: Run, limit: int, timeout_s: float) -> dict[str, Any]:
    """The summary of one run, in a process of its own; ``{"failed": ...}`` when there is none."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-B", "harness.py", "--engine", run.engine, "--split", run.split, "--json", str(out)]
        command += ["--limit", str(limit), "--timeout", str(timeout_s)]
        command += ["--ser", "compact" if run.spelling == "compact" else "default"]
        path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "PYTHONPATH": path}
        environment |= {"SGLITE_CONSTRAINT_ENGINE": shared.engine}
        done = subprocess.run(command, cwd=shared.folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not out.exists():
            lines = (done.stderr or done.stdout).strip().splitlines()
            return {"failed": lines[-1] if lines else f"exit status {done.returncode}"}
        summary: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))["summary"]
        return summary


def measure(shared: Shared, arguments: argparse.Namespace) -> dict[str, Any]:
    """All the numbers, as far as asked for."""
    limit = QUICK_ITEMS if arguments.quick else 0
    found: dict[str, Any] = {"host": _host(), "limit": limit, "harness": {}}
    if "harness" in arguments.parts:
        for run in planned(not arguments.no_peers):
            started = time.time()
            found["harness"][run.key] = run_harness(shared, run, limit, arguments.timeout)
            _say(f"{run.key}: {time.time() - started:.0f} s")
    if "everyday" in arguments.parts:
        outcomes = everyday.measure(shared, limit=limit)
        found["everyday"] = {name: vars(outcome) for name, outcome in outcomes.items()}
        _say("everyday schemas")
    if "passes" in arguments.parts:
        costs = bfcl.measure(shared, limit=limit)
        found["passes"] = {name: cost.summary() for name, cost in costs.items()}
        _say("forward passes")
    if "mask" in arguments.parts:
        found["mask"] = apply_mask.measure()
    return found


def _host() -> dict[str, Any]:
    return {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def put_into_docs(table: str, path: Path = DOCS) -> None:
    """Replace what stands between the two marks of the page."""
    text = path.read_text(encoding="utf-8")
    head, found, rest = text.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not (found and closed):
        sys.exit(f"{path.name} has no {BEGIN} ... {END}; put the marks where the table belongs")
    path.write_text(f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ITEMS} items of every set")
    parser.add_argument("--no-peers", action="store_true", help="sglite alone")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--timeout", type=float, default=3.0, help="CPU seconds an engine has for one item")
    parser.add_argument("--json", type=Path, default=PROJECT / "build" / "bench-constrained.json")
    parser.add_argument("--from-json", type=Path, help="print the table of an earlier run and measure nothing")
    parser.add_argument("--docs", action="store_true", help="also put the table into docs/constrained.md")
    arguments = parser.parse_args()
    if arguments.from_json is not None:
        found = json.loads(arguments.from_json.read_text(encoding="utf-8"))
    else:
        found = measure(load_shared(arguments), arguments)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    table = markdown(found)
    print(table)
    if arguments.docs:
        put_into_docs(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
