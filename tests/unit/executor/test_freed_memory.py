"""Freed memory stays: a step that wants what the last one gave up gets it without the system."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource, sys
import numpy as np
from sglite.runtime.executor.freed import keep_freed_memory

def faults(n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        parts = [np.zeros(2**size, dtype=np.uint8) + 1 for size in (17, 20, 22)]
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(3)
before = faults(20)
kept = keep_freed_memory()
faults(3)
print(int(kept), before, faults(20))
"""


def test_memory_of_a_step_is_fetched_once() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    kept, before, after = map(int, done.stdout.split())
    assert after < 100 if kept else after >= 0, (before, after)
    assert not kept or before > 2000, "the test shows nothing: there were no faults before"
