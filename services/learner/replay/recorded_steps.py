"""A run's records of its steps: figures and digests in metrics.jsonl, groups in batches/. Only reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from sluice.errors import ConfigError, NotFound, SluiceError
from sluice.report.metrics import METRICS_FILE, surviving
from sluice.run_dir.batch_file import batch_files, batch_path
from sluice.run_dir.json_lines import JsonObject, read_json_lines


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedStep:
    """One line of metrics.jsonl."""

    step: int
    lineage: str
    """The lineage of the version that the step made."""
    weights_digest: str
    """The digest of the weights of that version, as published."""
    batch_digest: str
    """blake3 of the batch file, hex."""
    metrics: Mapping[str, float]


def recorded_steps(run_dir: Path) -> dict[int, RecordedStep]:
    """Records by step: the last line of each step, without steps that a rollback has given up and lines without digests.

    Raises ConfigError.
    """
    try:
        lines = read_json_lines(run_dir / METRICS_FILE).objects
    except (OSError, ValueError) as error:
        raise ConfigError(f"RUN_DIR: must be the directory of a run; {error}") from error
    found = (_recorded(line) for line in surviving(lines) if line.get("kind") == "step")
    return {step.step: step for step in found if step is not None}


def batch_steps(run_dir: Path) -> set[int]:
    """The steps with a batch file."""
    return {step for step, path in batch_files(run_dir) if path == batch_path(run_dir, step)}


def batch_body(run_dir: Path, recorded: RecordedStep) -> bytes:
    """The batch file of a step, byte for byte. Raises NotFound, or SluiceError when the digest is not the recorded one."""
    path = batch_path(run_dir, recorded.step)
    try:
        body = path.read_bytes()
    except OSError as error:
        raise NotFound(f"batch {recorded.step}: {path} cannot be read: {error.strerror}") from error
    digest = blake3(body).hexdigest()
    if digest != recorded.batch_digest:
        raise SluiceError(
            f"batch {recorded.step}: {path} is not what was trained: its digest is {digest[:12]}, the run recorded "
            f"{recorded.batch_digest[:12]}"
        )
    return body


def _recorded(line: JsonObject) -> RecordedStep | None:
    step, texts = line.get("step"), [line.get(name) for name in ("lineage", "weights_digest", "batch_digest")]
    lineage, weights, batch = (text if isinstance(text, str) else "" for text in texts)
    if not isinstance(step, int) or not (lineage and weights and batch):
        return None
    metrics = {name: float(value) for name, value in line.items() if "/" in name and isinstance(value, int | float)}
    return RecordedStep(step=step, lineage=lineage, weights_digest=weights, batch_digest=batch, metrics=metrics)
