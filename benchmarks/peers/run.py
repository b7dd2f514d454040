"""sglite beside vLLM, llama.cpp, OpenVINO GenAI and transformers on this machine's processor: ``make bench-peers``.

    python -m benchmarks.peers.run --peers sglite,vllm --models 29M --workloads W1,W3 --threads 2 --rounds 3

Every peer runs in its own environment (``setup.sh`` makes them), one at a time. A round starts each of them once, in an
order that turns from round to round: load, one token, every workload once unmeasured and shortened, then measured.
All get the same ids of the same weights, room for the same number of cached tokens, no end but the number of tokens.
Before the first round sglite's greedy tokens are held against transformers', afterwards everybody's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.checkpoint import make
from benchmarks.peers.figures import LOAD, OWN, Sample, Shot, disturbances, table
from benchmarks.peers.machine import Clock, Window, bandwidth, between, describe, peak_memory, read_clock
from benchmarks.peers.parity import SHOT as PARITY
from benchmarks.peers.parity import is_fatal, line, sequences, verdict
from benchmarks.peers.process import HERE, JUDGE, PEERS, Peer, PeerFailed, PeerRefused, interpreter, missing
from benchmarks.peers.workloads import WEIGHT_OF_A_SAMPLE, WORKLOADS, Workload
from benchmarks.shapes import DENSE

KV_TOKENS = 18_432
"""Room of every cache: what W4 takes without sharing."""
LEFT_OUT = {("transformers", "W4"): "keeps nothing from one prompt to the next"}
"""What a peer could run only by doing all of the work again, which takes it minutes."""
DEFAULT_FOLDER = Path(".peers")


@dataclasses.dataclass
class Run:
    """One model, all peers and rounds."""

    given: argparse.Namespace
    model: str
    peers: list[str]
    samples: list[Sample] = dataclasses.field(default_factory=list)
    bandwidths: list[float] = dataclasses.field(default_factory=list)
    about: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    written: dict[str, list[list[int]]] = dataclasses.field(default_factory=dict)
    """Each peer's greedy tokens for the parity prompts."""
    judged: set[str] = dataclasses.field(default_factory=set)

    @property
    def folder(self) -> Path:
        return self.given.folder / "models" / self.model

    def prepare(self) -> None:
        """Checkpoints in every peer's format; a peer that has none is left out."""
        make(self.model, self.folder)
        for peer in list(self.peers):
            try:
                convert(peer, self.folder, self.given.precision, interpreter(peer, self.given.folder))
            except subprocess.CalledProcessError as error:
                self.peers.remove(peer)
                self.note(f"{peer} has no checkpoint: its conversion ended with {error.returncode}")

    def start(self, peer: str) -> Peer:
        return Peer(peer, self.given.folder, self.given.threads, self.given.folder / f"{peer}.run.log")

    def load(self, process: Peer, precision: str) -> None:
        settings = {"model": str(self.folder), "threads": self.given.threads, "kv_tokens": KV_TOKENS}
        about = process.ask("load", **{"with": {**settings, "precision": precision}})["about"]
        self.about.setdefault(process.name, about)

    def measure(self) -> None:
        """All rounds."""
        for number in range(self.given.rounds):
            self.bandwidths.append(bandwidth(self.given.threads))
            turn = number % len(self.peers)
            for peer in self.peers[turn:] + self.peers[:turn]:
                say(f"{self.model} round {number + 1}: {peer}")
                try:
                    self.visit(peer, number)
                except PeerFailed as error:
                    self.note(str(error))

    def check_own(self) -> None:
        """Before anything is timed: sglite's tokens. Ends the program where they are wrong."""
        if OWN not in self.peers:
            return
        try:
            with self.start(OWN) as process:
                self.load(process, self.given.precision)
                self.written[OWN] = process.ask("run", shot=PARITY)["outputs"]
        except PeerFailed as error:
            sys.exit(str(error))
        self.judge()

    def judge(self) -> None:
        """Hold what has been written and not been judged against transformers."""
        waiting = {peer: outputs for peer, outputs in self.written.items() if peer not in self.judged}
        try:
            if list(missing([JUDGE], self.given.folder)):
                raise PeerFailed(f"{JUDGE} is not set up")
            with self.start(JUDGE) as process:
                self.load(process, "float32")
                below = {peer: process.ask("judge", **sequences(out))["below"] for peer, out in waiting.items()}
        except PeerFailed as error:
            return self.note(f"greedy tokens were not checked: {error}")
        self.judged |= waiting.keys()
        for peer, found in ((peer, verdict(rows)) for peer, rows in below.items()):
            self.note(line(peer, found, self.given.precision))
            if is_fatal(peer, found, self.given.precision):
                sys.exit(1)

    def visit(self, peer: str, number: int) -> None:
        """One peer's part of a round."""
        with self.start(peer) as process:
            before = read_clock(process.session)
            self.load(process, self.given.precision)
            process.ask("run", shot=WORKLOADS["W1"].shot("first", f"start {number}"))
            took, window = time.perf_counter() - process.started, self.since(before, process)
            if peer not in self.written:
                self.written[peer] = process.ask("run", shot=PARITY)["outputs"]
            for name in self.given.workloads:
                if (peer, name) in LEFT_OUT:
                    self.note(f"{peer}: {LEFT_OUT[peer, name]} ({name})")
                    continue
                try:
                    self.workload(process, name, number)
                except PeerRefused as error:
                    self.note(f"{error} ({name})")
            memory = peak_memory(process.session)
            told = {"foreign": window.foreign, "stolen": window.stolen}
            self.add(Sample(peer=peer, round=number, workload=LOAD, start=took, memory=memory, **told))

    def workload(self, process: Peer, name: str, number: int) -> None:
        """Warm up, then one sample."""
        work = shorten(WORKLOADS[name], self.given.quick)
        for kind in work.shots:
            process.ask("run", shot={**work.shot(kind, f"warm {number}"), "max_new": min(8, work.max_new)})
        before = read_clock(process.session)
        shots = {kind: self.repeat(process, work, kind, number) for kind in work.shots}
        window = self.since(before, process)
        told = {"foreign": window.foreign, "stolen": window.stolen}
        self.add(Sample(peer=process.name, round=number, workload=name, shots=shots, **told))

    def repeat(self, process: Peer, work: Workload, kind: str, number: int) -> Shot:
        """Means over as many shots as make a sample; every output has the tokens it should."""
        answers, others = [], 0.0
        for i in range(WEIGHT_OF_A_SAMPLE[self.model]):
            shot = work.shot(kind, f"{number} {i}")
            before = process.others_cpu()
            answer = process.ask("run", shot=shot)
            others += process.others_cpu() - before
            lengths = {len(ids) for ids in answer["outputs"]}
            if lengths != {shot["max_new"]} or len(answer["outputs"]) != len(shot["prompts"]) * shot["n"]:
                raise PeerFailed(
                    f"{process.name}: {len(answer['outputs'])} outputs of {sorted(lengths)} tokens, not "
                    f"{len(shot['prompts']) * shot['n']} of {shot['max_new']}"
                )
            answers.append(answer)
        count, rows = len(answers), len(answers[0]["outputs"])
        told = answers[0]["counters"]
        return Shot(
            wall=sum(answer["wall"] for answer in answers) / count,
            cpu=(sum(answer["cpu"] for answer in answers) + others) / count,
            tokens=rows * shot["max_new"],
            rows=rows,
            passes=_mean(answers, "passes") if "passes" in told else None,
            mask_ms=_mean(answers, "mask_ms") if "mask_ms" in told else None,
        )

    def add(self, sample: Sample) -> None:
        """Keep it, on disk too: a run takes long, and may be broken off."""
        self.samples.append(sample)
        if self.given.samples is not None:
            told = {"model": self.model, "bandwidth": self.bandwidths[-1], **dataclasses.asdict(sample)}
            with self.given.samples.open("a", encoding="utf-8") as file:
                file.write(json.dumps(told) + "\n")

    def since(self, before: Clock, process: Peer) -> Window:
        """What others took of the machine."""
        return between(before, read_clock(process.session), os.cpu_count() or 1)

    def note(self, text: str) -> None:
        """Say it now, and once more below the table."""
        if text not in self.notes:
            self.notes.append(text)
            say(text)

    def report(self) -> list[str]:
        """The table and what belongs to it."""
        rates = ", ".join(f"{value / 1e9:.1f}" for value in self.bandwidths)
        weights = (self.folder / "model.safetensors").stat().st_size * (0.5 if self.given.precision == "int8" else 1)
        floor = 1e3 * weights / max(self.bandwidths)
        return [
            f"### {self.model}, {self.given.precision}, {self.given.threads} threads, {self.given.rounds} rounds",
            "",
            *table(self.peers, self.samples),
            "",
            *(f"- {peer}: {self.about[peer]}" for peer in self.peers if peer in self.about),
            f"- memory reads {rates} GB/s before the rounds: {floor:.2f} ms for the weights once",
            *(f"- {line}" for line in [*self.notes, *disturbances(self.samples, self.bandwidths)]),
        ]


def shorten(work: Workload, quick: bool) -> Workload:
    return work.shortened(8) if quick else work


def _mean(answers: list[dict[str, Any]], name: str) -> float:
    return float(sum(answer["counters"][name] for answer in answers) / len(answers))


def convert(peer: str, folder: Path, precision: str, python: Path) -> None:
    """Make a peer's own format of a checkpoint, whole or not at all; what is there is left alone."""
    if peer == "llamacpp":
        subprocess.run([str(python), str(HERE / "write_gguf.py"), str(folder)], check=True, stdout=sys.stderr)
    kind = "int8" if precision == "int8" else "fp16"
    made, part = folder / f"openvino-{kind}", folder / f"openvino-{kind}.part"
    if peer == "openvino" and not made.exists():
        shutil.rmtree(part, ignore_errors=True)
        options = ["--task", "text-generation-with-past", "--weight-format", kind]
        command = [str(python.with_name("optimum-cli")), "export", "openvino", "-m", str(folder), *options, str(part)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        part.rename(made)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=_names(PEERS), default=list(PEERS))
    parser.add_argument("--models", type=_names(DENSE), default=list(DENSE))
    parser.add_argument("--workloads", type=_names(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--precision", choices=("bf16", "int8"), default="bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="of environments and checkpoints")
    parser.add_argument(
        "--samples", type=Path, help="a file to add every sample to, a line of JSON each, when it is made"
    )
    parser.add_argument("--quick", action="store_true", help="an eighth of the lengths, to see whether it all works")
    return parser.parse_args()


def _names(known: Any) -> Any:
    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return read


def main() -> None:
    given = parse()
    # So that a peer does not outlive a driver that is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    given.folder = given.folder.resolve()
    absent = list(missing(given.peers, given.folder))
    print(describe())
    for model in given.models:
        run = Run(given, model, [peer for peer in given.peers if peer not in absent])
        for peer in absent:
            run.note(f"{peer} is not set up: see {given.folder}/{peer}.log")
        run.prepare()
        run.check_own()
        run.measure()
        run.judge()
        print("\n".join(["", *run.report()]), flush=True)


if __name__ == "__main__":
    main()
