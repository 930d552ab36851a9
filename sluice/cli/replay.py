"""`sluice replay`: one step of a run trained again from its records, by the learner alone."""

import argparse
import subprocess
from typing import Any

from sluice.flags import add_replay_flags
from sluice.process.child import module_command


def add_parser(commands: Any) -> None:
    """Adds `replay`."""
    replay = commands.add_parser(
        "replay",
        help="train a step again and compare it with what the run recorded",
        description="Trains step K again, from the newest checkpoint <= K and the recorded batches, without coordinator "
        "and Redis, and compares its figures with those in metrics.jsonl. Writes nothing into the run. Exits 0 when the "
        "loss agrees to 1e-6 and, on a CPU with as many ranks as the run had, the weights to the bit; 1 otherwise.",
    )
    add_replay_flags(replay)
    replay.set_defaults(run=_replay)


def _replay(args: argparse.Namespace) -> int:
    flags = {"--step": args.step, "--ranks": args.ranks, "--out": args.out}
    flags["--context-parallel-size"] = args.context_parallel_size
    argv = [*module_command("services.learner.replay"), str(args.run_dir)]
    argv += [f"{flag}={value}" for flag, value in flags.items() if value is not None]
    return subprocess.run(argv, check=False).returncode
