"""The training loop's view of the outside. Adapters: control/plane.py and control/publisher_state.py, with blocking calls."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.learner.batches.batch import Batch
from sluice.policy_version import PolicyVersion
from sluice.run_dir.token_figures import TokenFigures
from sluice.weights.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class NoBatch:
    """No batch yet, or no batch any more."""

    reason: str
    """The reason for the log; empty when `wake` ended the wait."""
    ended: bool
    """Whether the run is over: nobody needs this learner any more."""


class Coordinator(Protocol):
    """The coordinator's part in a step. Calls outlast restarts of the coordinator.

    Raises Unavailable when the coordinator stays away, Fenced when another learner has taken over.
    """

    def batch(self, step: int) -> Batch | NoBatch:
        """Batch `step`; NoBatch after one long poll without a batch, and at once after `wake`."""
        ...

    def commit_step(
        self,
        batch: Batch,
        *,
        version: PolicyVersion,
        weights_digest: str,
        metrics: Mapping[str, float],
        example: TokenFigures | None,
    ) -> str:
        """Books the step that made `version`; returns the digest recorded when the step was first booked.

        example: the tokens of one group of the batch, for people.
        """
        ...

    def commit_checkpoint(self, version: PolicyVersion, path: Path) -> None:
        """Books a complete checkpoint."""
        ...

    def wake(self) -> None:
        """Ends a wait for a batch early. Safe from any thread."""
        ...


class Publisher(Protocol):
    """What the learner shows to others, and what others ask of the learner."""

    def publish(self, snapshot: Snapshot) -> None:
        """Makes `snapshot` the newest version, ready to be sent."""
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
        """Tells that a checkpoint has just begun, which everybody who waits now will get."""
        ...

    def checkpoint_saved(self, version: PolicyVersion, path: Path | None) -> None:
        """Answers the waiters for the checkpoint that had begun; `path` is None when the write has failed."""
        ...
