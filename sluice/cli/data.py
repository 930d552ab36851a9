"""`sluice data prepare`: a published data set as a file that a run can read."""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

from sluice.errors import LaunchError


def add_parser(commands: Any) -> None:
    """Adds `data prepare`."""
    data = commands.add_parser("data", help="published data sets as files for a recipe")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    prepare = actions.add_parser(
        "prepare",
        help="fetch one, leave out the copies of every prompt, write Parquet",
        description="Takes a published data set from the Hugging Face hub, or from a file of this machine, writes it with "
        "every prompt once, and prints the counts, the source's SHA-256 and what a recipe says to use it.",
    )
    add_flags(prepare)
    prepare.set_defaults(run=_prepare)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What services.coordinator.data_prep takes, which does the work."""
    parser.add_argument("name", metavar="NAME", help="dapo-math-17k or aime-2024")
    parser.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="where to (default %(default)s/)")
    parser.add_argument(
        "--source", type=Path, metavar="DIR_OR_FILE", help="the published file, or a folder that has it"
    )
    parser.add_argument("--revision", metavar="COMMIT", help="which one of the hub (default: the newest)")
    parser.add_argument("--force", action="store_true", help="replace the file that is there")


def _prepare(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("pyarrow") is None:
        raise LaunchError("data prepare: needs pyarrow to read and write Parquet; install sluice-rl[data]")
    flags = {"--out": args.out, "--source": args.source, "--revision": args.revision}
    argv = [sys.executable, "-m", "services.coordinator.data_prep", args.name]
    argv += [f"{flag}={value}" for flag, value in flags.items() if value is not None]
    argv += ["--force"] if args.force else []
    return subprocess.run(argv, check=False).returncode
