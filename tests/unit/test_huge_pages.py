"""Memory that is brought into huge pages stays what it was, does not grow by much, and is left alone where unwanted."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sglite.runtime import huge_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
WHOLE = """
import mmap, re
from sglite.runtime import huge_pages

def kilobytes(name):
    return int(re.search(rf"^{name}: +([0-9]+)", open("/proc/self/smaps_rollup").read(), re.MULTILINE)[1])

full, sparse = (mmap.mmap(-1, 2**25, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2))
pattern = bytes(range(251))
full.write((pattern * (2**25 // 251 + 1))[: 2**25])
for at in range(0, 2**25, 2**20):
    sparse[at] = 7
before = kilobytes("Rss")
print(huge_pages.use(), kilobytes("AnonHugePages"), kilobytes("Rss") - before)
assert full[:] == (pattern * (2**25 // 251 + 1))[: 2**25]
assert set(sparse[:: 2**20]) == {7} and set(sparse[1 :: 2**20]) == {0}
"""


def collapses() -> bool:
    """Linux from 6.1 on brings memory into huge pages at once, where it has any."""
    if not SETTING.exists() or "[never]" in SETTING.read_text():
        return False
    return tuple(int(part) for part in platform.release().split(".")[:2]) >= (6, 1)


@pytest.mark.skipif(not collapses(), reason="the system has no huge pages, or brings nothing into them at once")
def test_full_memory_comes_into_huge_pages_and_stays_what_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", WHOLE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    used, huge, more = map(int, done.stdout.split())
    assert used >= 2**25 - 2**22 and huge * 1024 >= 2**25 - 2**22
    assert more < 2**14, "what is hardly used is left alone"


def test_an_owner_who_wants_none_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]\n")
    monkeypatch.setattr(huge_pages, "_SETTING", setting)
    assert huge_pages.use() == 0


def test_a_system_without_them_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_SETTING", tmp_path / "enabled")
    assert huge_pages.use() == 0
