"""What every adapter is: a process that reads a command a line and answers each with a line. Imports no peer.

    {"do": "load", "with": {"model": FOLDER, "threads": 2, "precision": "bf16", "kv_tokens": 18432}}   {"about": TEXT}
    {"do": "run", "shot": SHOT}           {"wall": s, "cpu": s, "outputs": [[id, ...], ...], "counters": {...}}
    {"do": "judge", "sequences": [[id, ...], ...], "starts": [i, ...]}            {"below": [[logits, ...], ...]}
    {"do": "exit"}

A shot is ``{"prompts": [[id, ...], ...], "max_new": int, "n": int, "temperature": float, "schemas": [...] or null}``:
``n`` outputs a prompt, all of them at once, exactly ``max_new`` tokens each unless a schema ends one. ``wall`` and
``cpu`` are of this process and of the call alone; forgetting cached prefixes comes before it and is not timed. What a
peer cannot do is answered with ``{"refused": TEXT}``, what fails with ``{"error": TEXT}``. Everything that libraries
print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

Shot = dict[str, Any]
Outputs = list[list[int]]


class Refused(Exception):
    """This peer has no such thing; the text says what."""


class Adapter:
    """What a peer's file fills in."""

    def load(self, model: str, threads: int, precision: str, kv_tokens: int) -> str:
        """Be ready to run; what has been loaded, for people."""
        raise NotImplementedError

    def run(self, shot: Shot) -> Outputs:
        """Ids of the new tokens, in the prompts' order, ``n`` lists a prompt."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget cached prefixes."""

    def counters(self) -> dict[str, float]:
        """Of the last run, where the peer counts: ``passes`` (forward passes of a row), ``mask_ms``."""
        return {}

    def judge(self, sequences: Outputs, starts: list[int]) -> list[list[float]]:
        """How far each token from ``starts`` on is below the first choice at its place, in logits."""
        raise Refused("only transformers judges")


def serve(adapter: Adapter) -> None:
    """Answer commands until ``exit`` or the end of the input."""
    # Should memory run short, the kernel ends this process rather than other people's.
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "exit":
            break
        answers.write(json.dumps(_answer(adapter, command)) + "\n")
        answers.flush()


def _answer(adapter: Adapter, command: dict[str, Any]) -> dict[str, Any]:
    try:
        return _do(adapter, command)
    except Refused as refused:
        return {"refused": str(refused)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def _do(adapter: Adapter, command: dict[str, Any]) -> dict[str, Any]:
    if command["do"] == "load":
        return {"about": adapter.load(**command["with"])}
    if command["do"] == "judge":
        return {"below": adapter.judge(command["sequences"], command["starts"])}
    adapter.reset()
    wall, cpu = time.perf_counter(), time.process_time()
    outputs = adapter.run(command["shot"])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "outputs": outputs, "counters": adapter.counters()}
