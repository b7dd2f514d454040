"""The examples of ``docs/clients.md`` run as they stand, on a server over the bundled model.

Only the address is another. A client that is not installed is skipped: those that the tests bring run always.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import start

import sglite as sgl

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:30000"


def examples(language: str) -> list[tuple[str, str]]:
    """The blocks in ``language`` with the heading each stands under."""
    found, heading = [], ""
    for part in re.finditer(rf"^## ([^\n]+)$|^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL):
        heading = part[1] or heading
        if part[2]:
            found.append((f"{heading} {sum(name.startswith(heading) for name, _ in found) + 1}", part[2]))
    return found


def missing(code: str) -> list[str]:
    """Packages that ``code`` imports and that are not there."""
    names = set(re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE))
    return sorted(name for name in names if importlib.util.find_spec(name) is None)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with sgl.Engine(dtype="float32", show_progress=False, num_threads=1, max_total_tokens=16_384) as engine:
        server, url, thread = start(engine)
        yield url
        server.should_exit = True
        thread.join(10)


def run(command: list[str], code: str, url: str) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    ran = subprocess.run([*command, code.replace(ADDRESS, url)], capture_output=True, text=True, timeout=100, env=env)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), examples("py"), ids=[name for name, _ in examples("py")])
def test_a_client_of_the_guide_works_as_shown(name: str, code: str, url: str) -> None:
    if absent := missing(code):
        pytest.skip(f"not installed: {', '.join(absent)}")
    assert run([sys.executable, "-c"], code, url).strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("name", "code"), examples("sh"), ids=[name for name, _ in examples("sh")])
def test_a_curl_line_of_the_guide_works_as_shown(name: str, code: str, url: str) -> None:
    said = run(["sh", "-c"], code, url)
    assert re.search(r'"city\\": \\"|"[0-9]{3}-[0-9]{4}"', said), said


def test_every_client_of_the_guide_has_an_example_that_is_python() -> None:
    assert len(examples("py")) >= 10 and len(examples("sh")) == 2
    for name, code in examples("py"):
        compile(code, name, "exec")
        assert ADDRESS in code, name
