"""A server in processes of its own, and what can be seen of them from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from faults.watched_server import MARK
from tiny_models import make_checkpoint

import sglite

READY = "sglite is ready at "
_WATCHED = Path(__file__).with_name("watched_server.py")


def tiny_folder(folder: Path) -> Path:
    """A tiny random checkpoint that takes conversations and tools."""
    make_checkpoint(folder, max_position_embeddings=2048)
    template = next((Path(sglite.__file__).parent / "bundled").glob("*/chat_template.jinja"))
    shutil.copy(template, folder / "chat_template.jinja")
    return folder


class Server:
    """``sglite serve``, ready. ``watch``: see ``watched_server``."""

    def __init__(self, model: Path | None, *flags: str, watch: bool = True) -> None:
        program = [str(_WATCHED)] if watch else ["-m", "sglite"]
        named = [] if model is None else [str(model)]
        command = [sys.executable, *program, "serve", *named, "--port", "0", "--num-threads", "1", *flags]
        began = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and self.process.stderr is not None
        self.log: list[str] = []
        threading.Thread(target=self._drain, args=(self.process.stderr,), daemon=True).start()
        line = self.process.stdout.readline()
        assert line.startswith(READY), (line, self.log)
        self.load_seconds = time.monotonic() - began
        self.url = line[len(READY) :].strip()
        self.port = int(self.url.rpartition(":")[2])
        self.pid = self.process.pid
        self.http = httpx.Client(base_url=self.url, timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
        threading.Thread(target=self._drain, args=(self.process.stdout,), daemon=True).start()

    def _drain(self, stream: Any) -> None:
        for line in stream:
            self.log.append(line)

    # --- what it says -----------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """``/server_info``."""
        return dict(self.http.get("/server_info").json())

    def open_work(self) -> dict[str, int]:
        """Everything that must be zero when nobody waits for anything."""
        info = self.info()
        found = {name: info[name] for name in ("num_running", "num_waiting", "num_compiling", "num_open_requests")}
        found |= {"open_sequences": info["open_sequences"], "pins": info["pins"], "held": info["pages"]["held"]}
        pages = info["pages"]
        lost = pages["total"] - pages["free"] - pages["held"] - pages["cached"]
        return {**found, "lost_pages": lost, "page_mismatches": info["page_mismatches"]}

    def is_idle(self) -> bool:
        """Nothing is open, held or lost."""
        return not any(self.open_work().values())

    def costliest(self) -> list[tuple[float, str]]:
        """Processor seconds of the loop's costliest callbacks since it was watched last, and what they were."""
        return self.watched()[0]

    def watched(self) -> tuple[list[tuple[float, str]], int]:
        """``costliest``, and how many objects of the API's process only collections have let go of since."""
        before = len(self.log)
        os.kill(self.pid, signal.SIGUSR1)
        assert settles(lambda: any(line.startswith(MARK) for line in self.log[before:]), 10)
        line = next(line for line in self.log[before:] if line.startswith(MARK))
        costliest, collected = json.loads(line[len(MARK) :])
        return [(seconds, name) for seconds, name in costliest], collected

    def errors(self) -> list[str]:
        """Lines of its log that tell of a failure."""
        return [line for line in self.log if "Traceback" in line or "failed" in line or "Error" in line]

    # --- its processes ----------------------------------------------------------------------------------------

    @property
    def engine_pid(self) -> int:
        """Of the engine's process: the server's only child."""
        (pid,) = children(self.pid)
        return pid

    def resources(self) -> dict[str, int]:
        """Threads, file descriptors and memory (MB) of both processes."""
        found = {}
        for name, pid in (("api", self.pid), ("engine", self.engine_pid)):
            found[f"{name} threads"] = len(os.listdir(f"/proc/{pid}/task"))
            found[f"{name} fds"] = len(os.listdir(f"/proc/{pid}/fd"))
            found[f"{name} MB"] = resident(pid) >> 20
        return found

    def close(self) -> int:
        """Ends it; its exit code."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


def resident(pid: int) -> int:
    """Bytes of memory that a process occupies."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Processes that ``pid`` has started."""
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether a process is there and no mere entry of a table."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def settles(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether something becomes true before long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def settling(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until something is true, ``seconds`` at most, which then are too many."""
    began = time.monotonic()
    settles(condition, seconds)
    return time.monotonic() - began
