"""What the training loop needs of the outside. Adapters: control/link.py and control/publisher_state.py, called blocking."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.learner.batches.batch import Batch
from sluice.policy_version import PolicyVersion
from sluice.weights.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class NoBatch:
    """There is no batch yet, or there will be none."""

    reason: str
    """For the log; empty when the wait was ended from this side."""
    ended: bool
    """The run is over: nobody needs this learner any more."""


class Coordinator(Protocol):
    """The coordinator's part in a step. Calls outlast its restarts.

    Raises Unavailable when it stays away, Fenced when another learner has taken over.
    """

    def batch(self, step: int) -> Batch | NoBatch:
        """Batch `step`; returns without one after a while, and at once when the publisher state wants something."""
        ...

    def commit_step(
        self, batch: Batch, *, version: PolicyVersion, weights_digest: str, metrics: Mapping[str, float]
    ) -> str:
        """Books the step that made `version`; returns the digest recorded when it was first booked."""
        ...

    def commit_checkpoint(self, version: PolicyVersion, path: Path) -> None:
        """Books a complete checkpoint."""
        ...

    def wake(self) -> None:
        """Ends a wait for a batch early. Safe from any thread."""
        ...


class Publisher(Protocol):
    """What the learner shows to others, and what others want of it."""

    def publish(self, snapshot: Snapshot) -> None:
        """Makes this the newest version, ready to be sent."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether the process was asked to end."""
        ...

    @property
    def checkpoint_wanted(self) -> bool:
        """Whether somebody waits for a checkpoint that has not begun."""
        ...

    def checkpoint_begun(self) -> None:
        """Those who wait now get the checkpoint that has just begun."""
        ...

    def checkpoint_saved(self, version: PolicyVersion, path: Path | None) -> None:
        """The checkpoint that had begun is complete: answers its waiters; None when it could not be written."""
        ...
