"""`python -m services.learner.replay RUN_DIR --step K`: the program behind `sluice replay`.

Finds the checkpoint to start from, starts ranks in the same way as the learner, compares. Writes nothing into the run.
Waits: for the ranks, as long as the ranks train; a signal ends the ranks.
"""

import argparse
import json
import math
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from services.learner.checkpoint.export_checkpoint import read_config
from services.learner.replay.recorded_steps import batch_body, recorded_steps
from services.learner.replay.starting_point import StartingPoint, starting_point
from services.learner.replay.step_comparison import Replayed, compare
from sluice.config.schema import Config
from sluice.errors import ConfigError, SluiceError
from sluice.flags import add_replay_flags
from sluice.launch.commands import inherited, learner_command, service_environ
from sluice.process.child import armed
from sluice.telemetry.logs import configure_logs


def main(argv: list[str] | None = None) -> int:
    """Replays; returns 0 when the step was reproduced, 1 when the step differs or cannot be replayed, 2 on bad usage."""
    parser = argparse.ArgumentParser(prog="python -m services.learner.replay")
    add_replay_flags(parser)
    args = parser.parse_args(argv)
    configure_logs(service="replay")
    try:
        return _replay(args)
    except SluiceError as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        return 130


def _replay(args: argparse.Namespace) -> int:
    run_dir: Path = args.run_dir.resolve()
    config = read_config(run_dir)
    ranks = config.learner_ranks if args.ranks is None else args.ranks
    context = _context(args, config, ranks=ranks)
    _check(args, ranks=ranks, context=context)
    recorded = recorded_steps(run_dir)
    start = starting_point(run_dir, args.step, recorded=recorded)
    for step in range(start.first, args.step + 1):
        batch_body(run_dir, recorded[step])
    batches = f"batch {args.step}" if start.first == args.step else f"batches {start.first} to {args.step}"
    together = f", {context} a micro-batch" if context > 1 else ""
    print(f"step {args.step} of {run_dir}: {batches} from {start}, ranks: {ranks}{together}", flush=True)
    with tempfile.TemporaryDirectory(prefix="sluice-replay-") as scratch:
        result = Path(scratch) / "result.json"
        code = _train(args, config, start, ranks=ranks, context=context, result=result)
        if code:
            return code
        replayed = Replayed(**json.loads(result.read_text(encoding="utf-8")))
    run_context = config.learner.context_parallel_size
    comparison = compare(recorded[args.step], replayed, run_ranks=config.learner_ranks, run_context=run_context)
    print("\n".join([*comparison.table, *comparison.notes]))
    if args.out is not None:
        print(f"weights: {args.out}")
    print(f"differs: {' and '.join(comparison.differs)}" if comparison.differs else "same")
    return 1 if comparison.differs else 0


def _context(args: argparse.Namespace, config: Config, *, ranks: int) -> int:
    """The ranks of a context group: as asked for, else the run's number, or as much of it as divides the ranks."""
    if args.context_parallel_size is not None:
        return args.context_parallel_size
    return math.gcd(config.learner.context_parallel_size, ranks)


def _check(args: argparse.Namespace, *, ranks: int, context: int) -> None:
    """Raises ConfigError for flags that cannot be served."""
    if args.step < 0:
        raise ConfigError(f"--step: must be >= 0, got {args.step}")
    if ranks < 1:
        raise ConfigError(f"--ranks: must be >= 1, got {ranks}")
    if context < 1 or ranks % context:
        raise ConfigError(f"--context-parallel-size: must be >= 1 and divide the {ranks} ranks, got {context}")
    if args.out is not None and args.out.exists():
        raise ConfigError(f"--out: {args.out} exists; name a folder that does not exist")


def _train(
    args: argparse.Namespace, config: Config, start: StartingPoint, *, ranks: int, context: int, result: Path
) -> int:
    """Runs the ranks, whose output goes to this terminal; returns their exit code."""
    flags = [str(args.run_dir.resolve()), "--step", str(args.step), "--resume", str(start.checkpoint or "never")]
    flags += ["--scratch", str(result.parent), "--result", str(result), "--context-parallel-size", str(context)]
    flags += [] if args.out is None else ["--out", str(args.out.resolve())]
    node = ["--nproc-per-node", str(ranks), "--module", "services.learner.replay.rank", "--", *flags]
    command = learner_command(node, environ=service_environ(threads=config.learner.threads or 1))
    ranks_end_with_this = armed(signal.SIGTERM)
    environ = inherited() | dict(command.environ)
    return subprocess.run([*ranks_end_with_this, *command.argv], env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
