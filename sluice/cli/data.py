"""`sluice data prepare`: a published data set as a file that a run can read."""

import argparse
import importlib.util
import subprocess
from typing import Any

from sluice.errors import LaunchError
from sluice.flags import add_data_prepare_flags
from sluice.process.child import module_command


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
    add_data_prepare_flags(prepare)
    prepare.set_defaults(run=_prepare)


def _prepare(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("pyarrow") is None:
        raise LaunchError("data prepare: needs pyarrow to read and write Parquet; install sluice-rl[data]")
    flags = {"--out": args.out, "--source": args.source, "--revision": args.revision}
    argv = [*module_command("services.coordinator.data_prep"), args.name]
    argv += [f"{flag}={value}" for flag, value in flags.items() if value is not None]
    argv += ["--force"] if args.force else []
    return subprocess.run(argv, check=False).returncode
