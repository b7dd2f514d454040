"""For all tests: one thread a library (the tests share the machine, and sums must not depend on how many there are).

Settings of ``pytest`` itself (marks, time limits) are in ``pyproject.toml``. Hypothesis runs without a deadline of its
own, since a loaded machine is no failure, and repeats the same examples in every run unless it is told otherwise.
"""

from __future__ import annotations

import gc
import importlib.util
import os

from hypothesis import HealthCheck, settings

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
    os.environ.setdefault(_name, "false" if _name == "TOKENIZERS_PARALLELISM" else "1")

if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anybody imports triton: there is no GPU
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["unit/backend/test_cuda_*.py"]  # it is for Linux

settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))


def pytest_collection_finish() -> None:
    """What has been imported and collected stays to the end: a collection that goes through it takes a second, in
    whatever thread it happens."""
    gc.collect()
    gc.freeze()
