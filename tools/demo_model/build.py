"""Re-does everything with one command: tokenizer, training, evaluation, export, check.

    python -m tools.demo_model.build                       # the full run: about 75 minutes on two cores
    python -m tools.demo_model.build --minutes 5 --items 8 --target build/try    # a rehearsal

Interrupted, it goes on where it stopped: what is in the run folder (tokenizer, checkpoint) is kept and used.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer

from tools.demo_model import card, evaluate, export, tokenizer

ROOT = Path(__file__).resolve().parents[2]


def train(run: Path, minutes: float, seed: int, threads: int, compiled: bool) -> None:
    """Train in a process of its own, so that the OpenMP settings hold and a crash leaves the checkpoints."""
    command = [sys.executable, "-m", "tools.demo_model.train", "--run", str(run), "--minutes", str(minutes)]
    command += ["--seed", str(seed), "--threads", str(threads)] + (["--compile"] if compiled else [])
    env = {**os.environ, "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(command, cwd=ROOT, env=env, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "build" / "demo_model", help="working folder")
    parser.add_argument(
        "--target", type=Path, default=ROOT / "sglite" / "bundled" / "sglite-demo", help="the folder to write"
    )
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--items", type=int, default=200, help="evaluated items per task and side")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--skip-training", action="store_true", help="export the newest checkpoint as it is")
    args = parser.parse_args()
    if not (args.run / "tokenizer.json").exists():
        tokenizer.train(args.run / "tokenizer.json")
    if not args.skip_training:
        train(args.run.resolve(), args.minutes, args.seed, args.threads, args.compile)
    tok = Tokenizer.from_file(str(args.run / "tokenizer.json"))
    model = export.load_model(args.run / "checkpoint.safetensors")
    scores = evaluate.evaluate(model, tok, args.items)
    print(evaluate.table(scores))
    export.write(model, args.run, args.target, card.write(args.run, scores))
    print(export.check(args.run, args.target))


if __name__ == "__main__":
    main()
