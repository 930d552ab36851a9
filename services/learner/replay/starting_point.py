"""The checkpoint from which a step can be trained again, and the list of steps that can be replayed. Only reads.

Step K needs a version c <= K (a checkpoint, or `model.path` as version 0) and the batches c to K. The newest such checkpoint
is taken, because an older checkpoint needs more batches.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from services.learner.checkpoint import folders
from services.learner.replay.recorded_steps import batch_steps
from sluice.errors import NotFound
from sluice.run_dir.batch_file import batch_path
from sluice.run_dir.checkpoints import step_of


@dataclass(frozen=True, kw_only=True, slots=True)
class StartingPoint:
    """The version to load."""

    checkpoint: Path | None
    """None: version 0, which is `model.path`."""
    first: int
    """The number of the version, which is also the first step to train."""

    def __str__(self) -> str:
        return self.checkpoint.name if self.checkpoint else "model.path (version 0)"


def starting_point(run_dir: Path, step: int, *, recorded: Collection[int]) -> StartingPoint:
    """The starting point of a replay of step `step`; `recorded` are the steps with a line in metrics.jsonl.

    Raises NotFound with what is missing and which steps can be replayed.
    """
    checkpoints, batches = run_dir / "checkpoints", batch_steps(run_dir)
    newest = folders.newest_that_verifies(checkpoints, up_to=step)
    first = step_of(newest) if newest else 0
    needed = range(first, step + 1)
    versions = {0} | {number for number in folders.steps(checkpoints) if not first < number <= step}
    replayable = _replayable(versions, batches & set(recorded))
    if step in batches and step not in recorded:
        raise NotFound(f"step {step}: metrics.jsonl has no line of it with digests; {_these(replayable)}")
    if step not in batches:
        raise NotFound(f"step {step}: {batch_path(run_dir, step)} is not there; {_these(replayable)}")
    if any(number not in batches or number not in recorded for number in needed):
        base = newest.name if newest else "model.path, since no checkpoint before it verifies"
        raise NotFound(
            f"step {step}: would have to start from {base}, and not all of batches {first} to {step} are there; "
            f"{_these(replayable)}"
        )
    return StartingPoint(checkpoint=newest, first=first)


def _replayable(versions: Collection[int], batches: Collection[int]) -> Iterator[int]:
    """Steps with a version to start from and with all batches from that version on, oldest first."""
    reached = False
    for step in range(max(batches, default=-1) + 1):
        reached = step in batches and (reached or step in versions)
        if reached:
            yield step


def _these(steps: Iterator[int]) -> str:
    """The steps as ranges, for a message."""
    ranges: list[list[int]] = []
    for step in steps:
        if ranges and ranges[-1][1] == step - 1:
            ranges[-1][1] = step
        else:
            ranges.append([step, step])
    if not ranges:
        return "no step of this run can be replayed"
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in ranges]
    return f"steps that can be replayed: {', '.join(texts)}"
