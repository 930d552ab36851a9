"""`python -m services.learner.checkpoint.export_checkpoint RUN_DIR`: the program behind `sluice export`.

Runs on the CPU, during a run or after its end; needs no coordinator, no torchrun and no optimizer.
"""

import argparse
import sys
from pathlib import Path

from services.learner.checkpoint import folders
from sluice.config.load import parse_config
from sluice.config.schema import Config
from sluice.errors import ConfigError, NotFound, SluiceError
from sluice.flags import add_export_flags
from sluice.model_identity import model_identity
from sluice.telemetry.logs import configure_logs


def main(argv: list[str] | None = None) -> int:
    """Exports; returns the exit code: 0 done, 1 failed, 2 bad usage."""
    parser = argparse.ArgumentParser(prog="python -m services.learner.checkpoint.export_checkpoint")
    add_export_flags(parser)
    args = parser.parse_args(argv)
    configure_logs(service="export")
    try:
        print(_export(args))
    except SluiceError as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


def _export(args: argparse.Namespace) -> str:
    """Writes the folder; returns the line to print."""
    config = read_config(args.run_dir, dtype=args.dtype)
    checkpoint = _checkpoint(args.run_dir / "checkpoints", args.checkpoint)
    target = (args.to or args.run_dir / "exports" / checkpoint.name).resolve()
    _check_target(target, force=args.force)
    from services.learner.checkpoint.export import export_version
    from services.learner.checkpoint.stored_weights import read_snapshot

    snapshot = read_snapshot(checkpoint, config)
    export_version(snapshot, config=config, target=target)
    size_bytes = sum(file.stat().st_size for file in target.iterdir())
    return f"{target}: version {snapshot.manifest.version}, {config.model.dtype}, {size_bytes / 1e6:.1f} MB"


def read_config(run_dir: Path, *, dtype: str | None = None) -> Config:
    """The run's own configuration, with the wanted type of weights. Raises ConfigError."""
    path = run_dir / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"RUN_DIR: must be the directory of a run, {path} cannot be read: {why}") from error
    config = parse_config(text, where=str(path))
    model_identity(config.model.path)
    model = config.model.model_copy(update={"dtype": dtype or config.model.dtype})
    return config.model_copy(update={"model": model})


def _checkpoint(directory: Path, wanted: str | None) -> Path:
    """The newest checkpoint that verifies, or the `wanted` checkpoint. Raises NotFound."""
    if wanted is None:
        if newest := folders.newest_that_verifies(directory):
            return newest
        raise NotFound(
            f"{directory} holds no checkpoint that verifies; one is written at each learner.checkpoint_every_steps"
        )
    named = directory / wanted if (directory / wanted).is_dir() else Path(wanted)
    try:
        folders.verify(named)
    except ValueError as error:
        there = ", ".join(f"step-{step}" for step in sorted(folders.steps(directory))) or "none"
        raise NotFound(f"--checkpoint: {error}; {directory} has {there}") from error
    return named


def _check_target(target: Path, *, force: bool) -> None:
    """Raises ConfigError when `target` is in the way: not a model folder, or a model folder without `force`."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / "config.json").is_file():
        raise ConfigError(f"--to: {target} exists and is not a model; name a folder that does not exist")
    if not force:
        raise ConfigError(f"--to: {target} exists; name another folder, or replace the model there with --force")


if __name__ == "__main__":
    sys.exit(main())
