"""What a run leaves behind, the same for both sides, so that evaluation and tables know no side.

RUN/moments.jsonl        a line a batch: seconds, CPU-seconds, completions and tokens so far
RUN/weights/batch-0004   Hugging Face folders, now and then
RUN/accuracy-SPLIT.jsonl a line an evaluated folder (evaluate.py)
RUN/done.json            written last: start-up time, versions, settings; a run without it is made again
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MOMENTS, DONE, WEIGHTS = "moments.jsonl", "done.json", "weights"


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """Where a run stood when its `batches`-th batch was trained; all counts are since the start of training."""

    batches: int
    seconds: float
    """Wall clock; saving weights for the evaluation is not in it where it stops the training."""
    cpu_seconds: float
    """User and system time of all processes of the side."""
    completions: int
    tokens: int
    """Completion tokens, end tokens included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """One folder of weights, evaluated."""

    batches: int
    avg: float
    """Mean over prompts and samples at temperature 1."""
    greedy: float


def add_moment(run: Path, moment: Moment) -> None:
    """Appends to RUN/moments.jsonl."""
    _append(run / MOMENTS, asdict(moment))


def moments(run: Path) -> list[Moment]:
    """RUN/moments.jsonl, in order."""
    return [Moment(**row) for row in _rows(run / MOMENTS)]


def weights_dir(run: Path, batches: int) -> Path:
    """Where the weights after `batches` batches are."""
    return run / WEIGHTS / f"batch-{batches:04d}"


def saved_batches(run: Path) -> list[int]:
    """Batches of the folders of weights there are, in order."""
    return sorted(int(folder.name.removeprefix("batch-")) for folder in (run / WEIGHTS).glob("batch-*"))


def accuracy_path(run: Path, split: str) -> Path:
    """Where the evaluations of a run on `split` are."""
    return run / f"accuracy-{split}.jsonl"


def add_accuracy(run: Path, split: str, accuracy: Accuracy) -> None:
    """Appends to RUN/accuracy-SPLIT.jsonl."""
    _append(accuracy_path(run, split), asdict(accuracy))


def accuracies(run: Path, split: str) -> dict[int, Accuracy]:
    """Evaluations by batches."""
    return {row["batches"]: Accuracy(**row) for row in _rows(accuracy_path(run, split))}


def finish(run: Path, facts: dict[str, Any]) -> None:
    """Writes RUN/done.json whole."""
    partial = run / f"{DONE}.partial"
    partial.write_text(json.dumps(facts, indent=2) + "\n")
    os.replace(partial, run / DONE)


def facts(run: Path) -> dict[str, Any] | None:
    """RUN/done.json; None while the run is not complete."""
    path = run / DONE
    return json.loads(path.read_text()) if path.exists() else None


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
