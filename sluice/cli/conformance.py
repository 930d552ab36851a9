"""`sluice conformance`: checks a reward, environment or rollout server, in any language, against the contract."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WIDTH = 160
"""Width of the table in characters where the output is no terminal."""


def add_parser(commands: Any) -> None:
    """Adds `conformance reward`, `conformance environment` and `conformance rollout`."""
    conformance = commands.add_parser(
        "conformance", help="check a reward, environment or rollout server against the contract"
    )
    roles = conformance.add_subparsers(dest="role", required=True, metavar="ROLE")
    reward = roles.add_parser(
        "reward", help="check a reward server", description="Checks a reward server, which may be at work."
    )
    reward.add_argument("address", metavar="HOST:PORT", help="its gRPC server")
    reward.add_argument("--data-source", default="", metavar="NAME", help="what to grade (default: the first it lists)")
    reward.add_argument("--ground-truth", default="42", metavar="TEXT", help="of the question (default %(default)s)")
    reward.add_argument(
        "--answer", default="", metavar="TEXT", help="a right completion (default: the ground truth in common forms)"
    )
    reward.set_defaults(run=_reward)
    environment = roles.add_parser(
        "environment",
        help="check a server of environments",
        description="Checks a server of environments, which must not be at work: its places are filled for a moment.",
    )
    environment.add_argument("address", metavar="HOST:PORT", help="its gRPC server")
    environment.add_argument("--environment", default="", metavar="NAME", help="which (default: the first it lists)")
    environment.add_argument(
        "--row",
        default="",
        metavar="JSON",
        help="a row of a data file for its episodes (default: one with a user's turn)",
    )
    environment.set_defaults(run=_environment)
    rollout = roles.add_parser(
        "rollout", help="check a rollout server", description="Checks a rollout server, which must not be at work."
    )
    rollout.add_argument("address", metavar="HOST:PORT", help="its gRPC server")
    rollout.add_argument(
        "--model",
        type=Path,
        default=None,
        metavar="DIR",
        help="push the weights of this Hugging Face folder to it first",
    )
    rollout.add_argument("--drain", action="store_true", help="also drain it; it takes no more work then")
    rollout.set_defaults(run=_rollout)


def _reward(args: argparse.Namespace) -> int:
    from sluice.testing.conformance import check_reward

    return _show(
        asyncio.run(
            check_reward(args.address, data_source=args.data_source, ground_truth=args.ground_truth, answer=args.answer)
        )
    )


def _environment(args: argparse.Namespace) -> int:
    from sluice.testing.conformance import check_environment

    return _show(asyncio.run(check_environment(args.address, environment=args.environment, row=args.row)))


def _rollout(args: argparse.Namespace) -> int:
    from sluice.testing.conformance import check_rollout

    return _show(asyncio.run(check_rollout(args.address, model=args.model, drain=args.drain)))


def _show(verdicts: Sequence[Any]) -> int:
    """Prints the table; returns 1 when a check failed, else 0."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sluice.report.figures import printable

    styles = {"PASS": "green", "FAIL": "bold red", "SKIP": "yellow"}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", "check", "expected", "seen"):
        table.add_column(column, overflow="fold")
    for verdict in verdicts:
        outcome = Text(verdict.outcome, style=styles[verdict.outcome])
        table.add_row(outcome, verdict.check, Text(verdict.expected), Text(printable(verdict.seen)))
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)
    counts = {outcome: sum(verdict.outcome == outcome for verdict in verdicts) for outcome in styles}
    print(f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} left out")
    return 1 if counts["FAIL"] else 0
