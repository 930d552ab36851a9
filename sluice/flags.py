"""Flags that a `sluice` command shares with the service program that does the command's work, such as `sluice replay`.

Both programs parse these flags: the command to explain and check the flags at once, the service program because a user may
start that program directly. Needs the standard library alone, so that --help is instant.
"""

import argparse
from pathlib import Path


def add_replay_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `services.learner.replay`."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory")
    parser.add_argument("--step", type=int, required=True, metavar="K", help="the step: batch K made version K + 1")
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="ranks on this machine (default: as many as the run had)"
    )
    parser.add_argument(
        "--context-parallel-size",
        type=int,
        metavar="C",
        help="ranks that compute a micro-batch together (default: as the run, or as near to it as the ranks allow)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep version K + 1 here, as a Hugging Face folder")


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `services.learner.checkpoint.export_checkpoint`."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory")
    parser.add_argument("--checkpoint", metavar="step-K|PATH", help="which one (default: the newest that verifies)")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where (default: RUN_DIR/exports/step-K)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="type of the weights (default: model.dtype)")
    parser.add_argument("--force", action="store_true", help="replace the model that is there")


def add_rescore_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `services.reward.rescore`."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory")
    parser.add_argument("-c", "--config", type=Path, help="recipe whose graders are asked (default: the run's own)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and every change here")


def add_data_prepare_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `services.coordinator.data_prep`."""
    parser.add_argument("name", metavar="NAME", help="dapo-math-17k or aime-2024")
    parser.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="where to (default %(default)s/)")
    parser.add_argument(
        "--source", type=Path, metavar="DIR_OR_FILE", help="the published file, or a folder that has it"
    )
    parser.add_argument("--revision", metavar="COMMIT", help="which one of the hub (default: the newest)")
    parser.add_argument("--force", action="store_true", help="replace the file that is there")
