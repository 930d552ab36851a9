"""Flags of the commands whose work a process of a service does: `sluice replay` and `python -m services.learner.replay`.

Both parse them: the command to explain and check them at once, the process because it may be started by itself.
Standard library alone, so that --help is instant.
"""

import argparse
from pathlib import Path


def add_replay_flags(parser: argparse.ArgumentParser) -> None:
    """What `services.learner.replay` takes."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory")
    parser.add_argument("--step", type=int, required=True, metavar="K", help="the step: batch K made version K + 1")
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="ranks on this machine (default: as many as the run had)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep version K + 1 here, as a Hugging Face folder")


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """What `services.learner.checkpoint.export_checkpoint` takes."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory")
    parser.add_argument("--checkpoint", metavar="step-K|PATH", help="which one (default: the newest that verifies)")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where (default: RUN_DIR/exports/step-K)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="type of the weights (default: model.dtype)")
    parser.add_argument("--force", action="store_true", help="replace the model that is there")


def add_rescore_flags(parser: argparse.ArgumentParser) -> None:
    """What `services.reward.rescore` takes."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory")
    parser.add_argument("-c", "--config", type=Path, help="recipe whose graders are asked (default: the run's own)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and every change here")


def add_data_prepare_flags(parser: argparse.ArgumentParser) -> None:
    """What `services.coordinator.data_prep` takes."""
    parser.add_argument("name", metavar="NAME", help="dapo-math-17k or aime-2024")
    parser.add_argument("--out", type=Path, default=Path("data"), metavar="DIR", help="where to (default %(default)s/)")
    parser.add_argument(
        "--source", type=Path, metavar="DIR_OR_FILE", help="the published file, or a folder that has it"
    )
    parser.add_argument("--revision", metavar="COMMIT", help="which one of the hub (default: the newest)")
    parser.add_argument("--force", action="store_true", help="replace the file that is there")
