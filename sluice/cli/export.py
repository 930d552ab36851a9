"""`sluice export`: a checkpoint as a Hugging Face folder, without a run around it."""

import argparse
import subprocess
from typing import Any

from sluice.flags import add_export_flags
from sluice.process.child import module_command


def add_parser(commands: Any) -> None:
    """Adds `export`."""
    export = commands.add_parser(
        "export",
        help="write a checkpoint as a Hugging Face model",
        description="Writes a checkpoint of a run as a Hugging Face folder; the run may be going on or over.",
    )
    add_export_flags(export)
    export.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    flags = {"--checkpoint": args.checkpoint, "--to": args.to, "--dtype": args.dtype}
    argv = [*module_command("services.learner.checkpoint.export_checkpoint"), str(args.run_dir)]
    argv += [f"{flag}={value}" for flag, value in flags.items() if value is not None]
    argv += ["--force"] if args.force else []
    return subprocess.run(argv, check=False).returncode
