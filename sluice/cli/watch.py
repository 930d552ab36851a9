"""`sluice watch`: shows a run that Docker Compose or a scheduler keeps up, and writes the run's closing report."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from sluice.cli.control import add_coordinator_flag
from sluice.rpc.service import add_credentials_flag


def add_parser(commands: Any) -> None:
    """Adds `watch`."""
    watch = commands.add_parser(
        "watch",
        help="show a run that was started elsewhere until it ends",
        description="Shows a run until it has ended and its model is exported; exits as `sluice up` would. With --run-dir it "
        "then writes curves.png and summary.json there.",
    )
    watch.add_argument("--run-dir", type=Path, metavar="RUN", help="run directory to close the account in")
    watch.add_argument("--plain", action="store_true", help="plain lines instead of the live view")
    add_coordinator_flag(watch)
    add_credentials_flag(watch)
    watch.set_defaults(run=run_watch)


def run_watch(args: argparse.Namespace) -> int:
    """Returns when the run has ended. Raises Unavailable when the run's coordinator stays away."""
    import asyncio

    from sluice.cli.closing import report
    from sluice.launch.following import follow
    from sluice.launch.view import make_view
    from sluice.report.summary import SUMMARY_FILE
    from sluice.rpc.access import Role
    from sluice.rpc.credentials import load_credentials

    credentials = load_credentials(args.credentials, role=Role.OPERATOR)
    started, view = time.monotonic(), make_view(sys.stdout, plain=args.plain)
    try:
        followed = asyncio.run(follow(args.coordinator, view, credentials=credentials))
    finally:
        view.close()
    status, run_dir = followed.status, args.run_dir
    closed = run_dir is not None and followed.had_ended and (run_dir / SUMMARY_FILE).exists()
    if run_dir is not None and status.step and not closed:
        report(status, departures=followed.departures, run_dir=run_dir, wall_s=time.monotonic() - started)
    if status.reason:
        print(f"sluice: {status.reason}", file=sys.stderr)
    return followed.exit_code
