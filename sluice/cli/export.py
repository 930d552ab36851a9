"""`sluice export`: a checkpoint as a Hugging Face folder, without a run around it."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Adds `export`."""
    export = commands.add_parser(
        "export",
        help="write a checkpoint as a Hugging Face model",
        description="Writes a checkpoint of a run as a Hugging Face folder; the run may be going on or over.",
    )
    add_flags(export)
    export.set_defaults(run=_export)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What services.learner.checkpoint.export_checkpoint takes, which does the work."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory")
    parser.add_argument("--checkpoint", metavar="step-K|PATH", help="which one (default: the newest that verifies)")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where (default: RUN_DIR/exports/step-K)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="type of the weights (default: model.dtype)")
    parser.add_argument("--force", action="store_true", help="replace the model that is there")


def _export(args: argparse.Namespace) -> int:
    flags = {"--checkpoint": args.checkpoint, "--to": args.to, "--dtype": args.dtype}
    argv = [sys.executable, "-m", "services.learner.checkpoint.export_checkpoint", str(args.run_dir)]
    argv += [f"{flag}={value}" for flag, value in flags.items() if value is not None]
    argv += ["--force"] if args.force else []
    return subprocess.run(argv, check=False).returncode
