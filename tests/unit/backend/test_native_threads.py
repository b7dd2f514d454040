"""The threads that kernels run on, under gcc's sanitizers: no races, no memory used after a job is gone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sglite.runtime.backend.native_build import SOURCES

DRIVER = Path(__file__).parents[2] / "native_threads.cpp"


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_callers_take_turns_and_every_piece_is_done_once(sanitizers: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    program = tmp_path / "threads"
    flags = ["-std=c++17", "-O1", "-g1", "-pthread", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    surroundings = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [compiler, *flags, f"-I{SOURCES.folder}", DRIVER, SOURCES.folder / "threads.cpp", "-o", program]
    subprocess.run(command, check=True, env=surroundings, timeout=100)
    done = subprocess.run([program, "100"], capture_output=True, text=True, env=surroundings, timeout=100, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this sanitizer does not know how this kernel lays memory out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("120000 jobs, 0 wrong, ") and "wrong, 0 pieces" not in done.stdout
