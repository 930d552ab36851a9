"""The port between `sluice submit` and a cluster's queue: Ray's job API, sbatch, Kubernetes.

What is submitted runs `sluice up` on the cluster. Rendering is text alone: no cluster is asked, so that `--dry-run` and the
tests see every byte that a cluster would get. No rendered text holds a secret.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from sluice.config.schema import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A run to hand in."""

    name: str
    """Of the run directory; letters, digits and dashes."""
    recipe: Path
    overrides: Sequence[str]
    """KEY=VALUE, as for `sluice up`."""
    config: Config
    """The recipe with the overrides, checked."""
    run_dir: Path
    """Where every node of the cluster sees it."""
    template: Path | None = None
    """The user's own text around the run, in place of ours."""


class JobState(StrEnum):
    """Where a submitted run stands in its queue."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


class Submitter(Protocol):
    """One kind of queue."""

    name: str
    """What `--on` calls it."""

    def render(self, submission: Submission) -> Mapping[str, str]:
        """The files that would be handed in, by name. Raises ConfigError for a template that misses a field, naming it."""
        ...

    def submit(self, submission: Submission) -> str:
        """Hands the run in; returns the job's id in the queue's own words.

        Raises LaunchError or ConfigError within seconds - which cluster, what is wrong, the fix - and leaves nothing queued.
        """
        ...

    def state(self, job: str) -> JobState:
        """Raises NotFound for a job that the queue does not know."""
        ...

    def stop(self, job: str) -> None:
        """Asks the job to end in order, as Ctrl-C ends `sluice up`."""
        ...

    def logs(self, job: str, *, follow: bool) -> Iterator[str]:
        """The lines of `sluice up` so far; with `follow` until the job has ended."""
        ...
