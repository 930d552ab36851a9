"""What this learner has trained, as it tells the coordinator: it outlasts a Redis that forgot. Pure.

Written by the training thread, read by the control thread whenever the learner registers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

STATED_STEPS = 1024
"""How many steps a registration states at most, the newest ones: a few megabytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedBatch:
    """What one step was trained on, and what came of it."""

    step: int
    digest: str
    """Of the batch."""
    group_ids: list[str]
    lineage: str = ""
    """Of the version that it made; empty in checkpoints of a time when this was not kept."""
    weights_digest: str = ""
    """Of that version."""
    committed: bool = True
    """Whether the coordinator has answered its commit."""


class TrainingRecord:
    """The batches in the newest complete checkpoint's own list, and those trained since. Thread-safe to read."""

    def __init__(self, restored: Sequence[TrainedBatch] = ()) -> None:
        self._steps = tuple(restored)
        self._saved = restored[-1].step + 1 if restored else 0

    @property
    def stated(self) -> tuple[TrainedBatch, ...]:
        """What to tell the coordinator, oldest first."""
        return self._steps[-STATED_STEPS:]

    @property
    def unsaved(self) -> list[TrainedBatch]:
        """Batches since the newest complete checkpoint."""
        return [batch for batch in self._steps if batch.step >= self._saved]

    def trained(self, batch: TrainedBatch) -> None:
        """A step was trained, and is about to be published and committed."""
        self._steps = (*self._steps, batch)

    def committed(self, lineage: str) -> None:
        """The newest step is booked, as a version of `lineage`."""
        self._steps = (*self._steps[:-1], replace(self._steps[-1], lineage=lineage, committed=True))

    def saved(self, version: int) -> None:
        """The checkpoint of `version` is complete. What it lists is kept until the next one is."""
        self._steps = tuple(batch for batch in self._steps if batch.step >= self._saved)
        self._saved = version
