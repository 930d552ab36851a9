"""The name of one set of weights, in every service, every file of a run and every message."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class PolicyVersion:
    """Names one set of weights. The learner alone makes new ones; numbers never go back within a run."""

    lineage: str
    number: int

    def __str__(self) -> str:
        return f"{self.lineage}{self.number}"
