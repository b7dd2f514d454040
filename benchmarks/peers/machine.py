"""What the machine was doing: processor time of a peer and of everybody else, memory, bandwidth. Linux, from /proc."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")
PROBE_BYTES = 2**29
SESSION = 3
"""Field of /proc/PID/stat, counted from the state: the session; the times follow at ``TIMES``."""
TIMES = slice(11, 15)


@dataclass(frozen=True)
class Clock:
    """Readings of one moment, in seconds."""

    wall: float
    all_busy: float
    stolen: float
    own: float
    """Of the peer's processes, those it has waited for included, and of this one."""


@dataclass(frozen=True)
class Window:
    """What happened between two readings."""

    wall: float
    foreign: float
    """Share of all cores that other processes took, 0 to 1."""
    stolen: float
    """Share of all cores that the host gave to somebody else."""


def members(session: int) -> dict[int, float]:
    """Processor seconds of each live process of a session, its ended children included."""
    found = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            try:
                _, _, rest = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")
            except (FileNotFoundError, ProcessLookupError):
                continue
            fields = rest.split()
            if int(fields[SESSION]) == session:
                found[int(folder.name)] = sum(map(int, fields[TIMES])) * TICK
    return found


def read_clock(session: int) -> Clock:
    """Now, with the processes of ``session`` as one's own."""
    user, nice, system, _, _, irq, softirq, steal, *_ = (
        int(field) * TICK for field in (PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    )
    own = sum(members(session).values()) + time.process_time()
    return Clock(time.perf_counter(), user + nice + system + irq + softirq, steal, own)


def between(before: Clock, after: Clock, cores: int) -> Window:
    """Shares of the time that ``cores`` had."""
    wall = after.wall - before.wall
    available = max(wall * cores, TICK)
    foreign = (after.all_busy - before.all_busy) - (after.own - before.own)
    return Window(wall, max(0.0, foreign) / available, (after.stolen - before.stolen) / available)


def peak_memory(session: int) -> int:
    """Bytes: the sum of the most that each live process of a session has had resident."""
    total = 0
    for pid in members(session):
        try:
            status = (PROC / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return total


def bandwidth(threads: int) -> float:
    """Bytes a second that ``threads`` threads read from memory now, the best of three."""
    import torch

    torch.set_num_threads(threads)
    data = torch.ones(PROBE_BYTES // 4)
    return data.nbytes / min(_seconds(data.sum) for _ in range(3))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def describe() -> str:
    """Processor, its instruction sets, cores, memory, system."""
    info = (PROC / "cpuinfo").read_text(encoding="utf-8")
    values = dict(line.split(":", 1) for line in info.split("\n\n")[0].splitlines() if ":" in line)
    told = {name.strip(): value.strip() for name, value in values.items()}
    flags = told.get("flags", "").split()
    known = [
        name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if name in flags
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{told.get('model name', platform.machine())} ({', '.join(known)}), {os.cpu_count()} cores, "
        f"{memory:.0f} GiB, Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}"
    )
