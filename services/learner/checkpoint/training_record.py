"""The record of trained batches, which the learner states when it registers. The record outlasts a Redis that lost its data.
Pure.

Written by the training thread and by the thread that makes versions known, read by the control thread whenever the learner
registers.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

STATED_STEPS = 1024
"""How many steps a registration states at most, the newest ones: a few megabytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedBatch:
    """One trained step: its batch, and the version that the step made."""

    step: int
    digest: str
    """Digest of the batch."""
    group_ids: list[str]
    lineage: str = ""
    """Lineage of the version that the step made; empty in checkpoints of earlier Sluice versions, which kept no lineage."""
    weights_digest: str = ""
    """Digest of the weights of that version."""
    committed: bool = True
    """Whether the coordinator has answered the commit of the step."""


class TrainingRecord:
    """The batches that the newest complete checkpoint lists, and the batches trained since. Thread-safe."""

    def __init__(self, restored: Sequence[TrainedBatch] = ()) -> None:
        self._steps = tuple(restored)
        self._saved = restored[-1].step + 1 if restored else 0
        self._writing = threading.Lock()

    @property
    def stated(self) -> tuple[TrainedBatch, ...]:
        """The batches that a registration states, oldest first."""
        return self._steps[-STATED_STEPS:]

    @property
    def unsaved(self) -> list[TrainedBatch]:
        """Batches since the newest complete checkpoint."""
        return [batch for batch in self._steps if batch.step >= self._saved]

    def trained(self, batch: TrainedBatch) -> None:
        """A step was trained, and is about to be published and committed."""
        with self._writing:
            self._steps = (*self._steps, batch)

    def committed(self, lineage: str) -> None:
        """The newest step is booked, as a version of `lineage`."""
        with self._writing:
            self._steps = (*self._steps[:-1], replace(self._steps[-1], lineage=lineage, committed=True))

    def saved(self, version: int) -> None:
        """The checkpoint of `version` is complete. The batches that it lists are kept until the next checkpoint is complete."""
        with self._writing:
            self._steps = tuple(batch for batch in self._steps if batch.step >= self._saved)
            self._saved = version
