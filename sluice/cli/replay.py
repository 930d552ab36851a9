"""`sluice replay`: one step of a run trained again from its records, by the learner alone."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Adds `replay`."""
    replay = commands.add_parser(
        "replay",
        help="train a step again and compare it with what the run recorded",
        description="Trains step K again, from the newest checkpoint <= K and the recorded batches, without coordinator "
        "and Redis, and compares its figures with those in metrics.jsonl. Writes nothing into the run. Exits 0 when the "
        "loss agrees to 1e-6 and, on a CPU with as many ranks as the run had, the weights to the bit; 1 otherwise.",
    )
    add_flags(replay)
    replay.set_defaults(run=_replay)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What services.learner.replay takes, which does the work."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory")
    parser.add_argument("--step", type=int, required=True, metavar="K", help="the step: batch K made version K + 1")
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="ranks on this machine (default: as many as the run had)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep version K + 1 here, as a Hugging Face folder")


def _replay(args: argparse.Namespace) -> int:
    flags = {"--step": args.step, "--ranks": args.ranks, "--out": args.out}
    argv = [sys.executable, "-m", "services.learner.replay", str(args.run_dir)]
    argv += [f"{flag}={value}" for flag, value in flags.items() if value is not None]
    return subprocess.run(argv, check=False).returncode
