"""`sluice logs`: what a run's processes have written, of a run directory here or of a submitted job."""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sluice.cli.queued import JOB_HELP

_LOOK_EVERY_S = 0.5
_CHUNK = 1 << 16


def add_parser(commands: Any) -> None:
    """Adds `logs`."""
    logs = commands.add_parser(
        "logs",
        help="print what a run's processes have written",
        description="Prints RUN/logs/NAME.log; without NAME the logs that there are, or for a job what `sluice up` prints.",
    )
    logs.add_argument("name", nargs="?", metavar="NAME", help="a process: coordinator, learner, rollout-0 ...")
    which = logs.add_mutually_exclusive_group(required=True)
    which.add_argument("--run-dir", type=Path, metavar="RUN", help="run directory")
    which.add_argument("--job", metavar="JOB", help=JOB_HELP)
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is written; Ctrl-C ends it")
    logs.set_defaults(run=run_logs)


def run_logs(args: argparse.Namespace) -> int:
    """Prints a log, or the list of logs."""
    from sluice.errors import NotFound
    from sluice.report.figures import printable

    folder = args.run_dir
    if args.job is not None:
        from sluice.cli.submissions import find
        from sluice.launch.submit.choice import submitter_of

        submitted = find(args.job)
        if args.name is None:
            for line in submitter_of(submitted.on).logs(submitted.job, follow=args.follow):
                print(printable(line), flush=True)
            return 0
        if not submitted.run_dir:
            raise NotFound(
                f"logs: {args.job} was not handed in from this machine; --run-dir RUN names its run directory"
            )
        folder = Path(submitted.run_dir)
    if args.name is None:
        for path in _logs(folder):
            print(f"{path.stem:<20} {path.stat().st_size:>12,} bytes")
        return 0
    for text in _text(_log(folder, args.name), follow=args.follow):
        print(printable(text), end="", flush=True)
    return 0


def _log(folder: Path, name: str) -> Path:
    """The log of a process. Raises NotFound with the names that there are."""
    from sluice.errors import NotFound

    logs = {path.stem: path for path in _logs(folder)}
    if name not in logs:
        raise NotFound(f"logs: {folder} has no log of {name}; it has {', '.join(logs)}")
    return logs[name]


def _logs(folder: Path) -> list[Path]:
    """The logs in a run directory. Raises NotFound for a folder without logs, as seen from this machine."""
    from sluice.errors import NotFound

    found = sorted((folder / "logs").glob("*.log"))
    if not found:
        raise NotFound(
            f"logs: {folder / 'logs'} has no log on this machine; give the directory of a run that was started"
        )
    return found


def _text(path: Path, *, follow: bool) -> Iterator[str]:
    """The whole log, and what is added; from the start again after the launcher has emptied a log that was too large."""
    with path.open("rb") as log:
        while True:
            while chunk := log.read(_CHUNK):
                yield chunk.decode("utf-8", errors="replace")
            if not follow:
                return
            time.sleep(_LOOK_EVERY_S)
            if os.fstat(log.fileno()).st_size < log.tell():
                log.seek(0)
