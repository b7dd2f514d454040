"""A peer's process: started in its own environment, asked by lines of JSON, ended with all it started."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.machine import members

HERE = Path(__file__).parent
PEERS = ("sglite", "vllm", "llamacpp", "openvino", "transformers")
JUDGE = "transformers"
ANSWER_SECONDS = 1800.0
END_SECONDS = 20.0


class PeerFailed(Exception):
    """In one line: which peer, doing what, what it said."""


class PeerRefused(PeerFailed):
    """The peer has no such thing."""


class Peer:
    """One adapter, running. Ends with the ``with`` block, whatever happens."""

    def __init__(self, name: str, environments: Path, threads: int, log: Path) -> None:
        self.name = name
        self._log = log.open("ab")
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            [str(interpreter(name, environments)), str(HERE / f"adapter_{name}.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | variables(name, environments, threads),
            start_new_session=True,
        )
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def session(self) -> int:
        """Of the process and all it starts."""
        return self._process.pid

    def others_cpu(self) -> float:
        """Processor seconds so far of what the process started."""
        return sum(seconds for pid, seconds in members(self.session).items() if pid != self.session)

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Send a command, wait for the answer. Raises ``PeerFailed`` and ``PeerRefused``."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=ANSWER_SECONDS)
        except queue.Empty:
            raise PeerFailed(f"{self.name}, {do}: no answer in {ANSWER_SECONDS:.0f} s") from None
        except BrokenPipeError:
            line = b""
        if not line:
            raise PeerFailed(f"{self.name}, {do}: ended with {self._process.wait()}; see {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise PeerRefused(f"{self.name}: {answer['refused']}")
        if "error" in answer:
            raise PeerFailed(f"{self.name}, {do}: {answer['error']}")
        return answer

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(b'{"do": "exit"}\n')
            self._process.stdin.close()
            self._process.wait(END_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            pass
        for how in (signal.SIGTERM, signal.SIGKILL):
            for pid in members(self.session):
                _signal(pid, how)
            deadline = time.monotonic() + END_SECONDS
            while self._process.poll() is None or members(self.session):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        self._log.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(b"")


def _signal(pid: int, how: signal.Signals) -> None:
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return


def interpreter(name: str, environments: Path) -> Path:
    """The Python that has the peer; this one has sglite."""
    return Path(sys.executable) if name == "sglite" else environments / name / "bin" / "python"


def missing(names: list[str], environments: Path) -> Iterator[str]:
    """Those of ``names`` that are not set up."""
    for name in names:
        if name != "sglite" and not (environments / f"{name}.ready").exists():
            yield name


def variables(name: str, environments: Path, threads: int) -> dict[str, str]:
    """Environment variables that give a peer its threads, and what its makers recommend."""
    given = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if name == "vllm":
        preload = [environments / "vllm" / "lib" / "libiomp5.so"]
        preload += sorted((environments / "tcmalloc").rglob("libtcmalloc_minimal.so.4"))
        given["LD_PRELOAD"] = ":".join(str(path) for path in preload if path.exists())
        given["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}" if threads > 1 else "0"
        given["VLLM_CPU_KVCACHE_SPACE"] = "2"
        given["VLLM_NO_USAGE_STATS"] = given["VLLM_DO_NOT_TRACK"] = "1"
    if name != "sglite":
        given["PYTHONPATH"] = ""
    return given
