"""The first five minutes, as a person runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_quickstart_runs_on_the_bundled_model():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert re.search(r"The date is \d{4}-\d{2}-\d{2}\.", done.stdout)
    assert re.search(r"<\|im_start\|>assistant\s+(positive|negative|neutral)<\|im_end\|>", done.stdout)
    assert "valid by construction: {'name': 'get_weather', 'arguments': {'city':" in done.stdout
    prompt, shared, computed = map(int, re.search(
        r"(\d+) prompt tokens, (\d+) of them shared, (\d+) computed", " ".join(done.stdout.split())
    ).groups())  # fmt: skip
    assert prompt == shared + computed and shared > computed
