"""The process of a peer: the protocol, what it says when something fails, and that nothing of it is left."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from benchmarks.peers import process
from benchmarks.peers.checkpoint import fill
from benchmarks.peers.machine import members
from benchmarks.peers.process import Peer, PeerFailed, PeerRefused
from benchmarks.peers.run import Run
from benchmarks.peers.workloads import WORKLOADS

ADAPTER = """
import os, subprocess, sys
sys.path.insert(0, {folder!r})
from loop import Adapter, Refused, serve

class Stub(Adapter):
    def load(self, model, threads, precision, kv_tokens):
        print("not an answer")
        os.write(1, b"nor this\\n")
        self.child = subprocess.Popen(["sleep", "60"])
        return f"{{threads}} threads"
    def run(self, shot):
        if shot["schemas"]:
            raise Refused("no schemas")
        if shot["n"] > 1:
            raise ValueError("one at a time")
        if shot["temperature"]:
            os._exit(3)
        return [[7] * (shot["max_new"] - (len(ids) == 2)) for ids in shot["prompts"]]
    def counters(self):
        return {{"passes": 2.0}}

serve(Stub())
"""
SETTINGS = {"model": "", "threads": 2, "precision": "bf16", "kv_tokens": 1}
SHOT = {"prompts": [[1]], "max_new": 3, "n": 1, "temperature": 0.0, "schemas": None}


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Peer:
    """A process that stands in for sglite's adapter, loaded."""
    (tmp_path / "adapter_sglite.py").write_text(ADAPTER.format(folder=str(process.HERE)))
    monkeypatch.setattr(process, "HERE", tmp_path)
    found = Peer("sglite", tmp_path, 1, tmp_path / "log")
    assert found.ask("load", **{"with": SETTINGS}) == {"about": "2 threads"}
    return found


def test_answers_come_back_and_what_libraries_print_does_not(peer: Peer, tmp_path: Path) -> None:
    with peer:
        answer = peer.ask("run", shot=SHOT)
        assert answer["outputs"] == [[7, 7, 7]]
        assert answer["counters"] == {"passes": 2.0}
        assert answer["cpu"] >= 0 and 0 <= answer["wall"] < 5
    assert "nor this" in (tmp_path / "log").read_text()


def test_refusals_and_failures_say_which_peer_and_why(peer: Peer) -> None:
    with peer:
        with pytest.raises(PeerRefused, match=r"^sglite: no schemas$"):
            peer.ask("run", shot={**SHOT, "schemas": [{}]})
        with pytest.raises(PeerFailed, match=r"^sglite, run: ValueError: one at a time$"):
            peer.ask("run", shot={**SHOT, "n": 2})
        assert peer.ask("run", shot=SHOT)["outputs"] == [[7, 7, 7]]
        with pytest.raises(PeerFailed, match=r"^sglite, run: ended with 3; see "):
            peer.ask("run", shot={**SHOT, "temperature": 1.0})


def test_what_a_peer_started_ends_with_it(peer: Peer) -> None:
    with peer:
        assert len(members(peer.session)) == 2
        assert peer.others_cpu() < 1
    deadline = time.monotonic() + 5
    while members(peer.session) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert members(peer.session) == {}


def test_an_output_of_another_length_is_no_sample(peer: Peer) -> None:
    run = Run(given=None, model="29M", peers=[])  # type: ignore[arg-type]
    work = WORKLOADS["W1"].shortened(8)
    with peer:
        shot = run.repeat(peer, work, "whole", 0)
        assert (shot.tokens, shot.rows, shot.passes, shot.mask_ms) == (16, 1, 2.0, None)
        with pytest.raises(PeerFailed, match=r"sglite: 1 outputs of \[15\] tokens, not 1 of 16"):
            run.repeat(peer, dataclasses.replace(work, own=2), "whole", 0)


def test_a_vocabulary_is_filled_with_pairs_of_known_words() -> None:
    vocab = {"a": 0, "b": 1, "\u0120a": 2, "ab": 3, "1": 4}
    merges = [("a", "b")]
    fill(vocab, merges, 11)
    assert sorted(vocab.values()) == list(range(11))
    assert [left + right for left, right in merges] == ["ab", *list(vocab)[5:]]
    assert all(left in vocab and right in vocab for left, right in merges)
