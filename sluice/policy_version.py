"""The name of one set of weights, in every service, every file of a run and every message."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class PolicyVersion:
    """Names one set of weights. The learner alone makes new ones; numbers never go back within a run."""

    lineage: str
    number: int

    def __str__(self) -> str:
        return f"{self.lineage}{self.number}"


OWN_WEIGHTS = PolicyVersion(lineage="a", number=0)
"""The weights of the model's folder: the base model of a run, or what is evaluated without a run."""
