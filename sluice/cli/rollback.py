"""`sluice rollback`: takes a run, live or at rest, back to a checkpoint, after saying which work the rollback gives up."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sluice.cli.control import add_coordinator_flag, call
from sluice.errors import ConfigError
from sluice.rpc.service import add_credentials_flag


def add_parser(commands: Any) -> None:
    """Adds `rollback`."""
    parser = commands.add_parser(
        "rollback",
        help="go back to a checkpoint and on from there",
        description="Gives up every step behind a checkpoint; the run goes on from there under a new lineage.",
    )
    parser.add_argument(
        "--to", type=_step, required=True, metavar="step-C", help="the checkpoint; step-0 is the base model"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--run-dir", type=Path, metavar="RUN", help="a run that is not up; `sluice up` then goes on with it"
    )
    add_coordinator_flag(where)
    add_credentials_flag(parser)
    parser.set_defaults(run=_rollback)


def _step(text: str) -> int:
    number = text.removeprefix("step-")
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        raise argparse.ArgumentTypeError(f"must be like step-300, got {text!r}")
    return int(number)


def _rollback(args: argparse.Namespace) -> int:
    if not args.yes and not sys.stdin.isatty():
        raise ConfigError("--yes: must be given where nobody can be asked (stdin is not a terminal)")
    if args.run_dir is None:
        return call(_ask_and_do, args)
    import asyncio

    from sluice.launch.resting import resting_run

    resting = resting_run(args.run_dir.resolve())
    with asyncio.Runner() as runner:
        args.coordinator, args.credentials = runner.run(resting.__aenter__())
        try:
            return call(_ask_and_do, args)
        finally:
            runner.run(resting.__aexit__(None, None, None))


def _ask_and_do(client: Any, args: argparse.Namespace) -> str:
    print(rollback_page(client.rollback(args.to, preview=True)))
    if not args.yes and input("Give this up? [y/N] ").strip().lower() not in ("y", "yes"):
        return "nothing was changed"
    made = client.rollback(args.to)
    then = "the run goes on" if args.run_dir is None else "`sluice up --run-dir` goes on"
    return f"rolled back from step {made.reached} to {made.to}; {then} from there as lineage {made.lineage}"


def rollback_page(account: Any) -> str:
    """What a rollback gives up, as lines for people."""
    groups, tokens = sum(account.groups.values()), sum(account.tokens.values())
    split = ", ".join(f"{account.groups[was]} {was}" for was in ("trained", "assigned", "queued", "open"))
    aside = ", ".join(f"step-{number}" for number in account.checkpoints)
    aside = f"{aside} (set aside until the run has come as far again)" if aside else "none"
    steps = account.reached - account.to
    return "\n".join(
        (
            f"back from step {account.reached} to step {account.to} gives up",
            f"  steps        {account.to} to {account.reached - 1}: {steps}, and their evaluations",
            f"  groups       {groups}: {split}",
            f"  tokens       {tokens}",
            f"  checkpoints  {aside}",
        )
    )
