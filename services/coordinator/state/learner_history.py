"""A learner's statement at its registration: its version, and its record of the steps up to that version. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from sluice.errors import Fenced, InvalidRequest
from sluice.lineage import Rollback, is_given_up, is_older
from sluice.policy_version import PolicyVersion

MAX_STEPS = 1024
"""The most steps in one registration; the learner states its newest steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedStep:
    """A step in the learner's record."""

    step: int
    batch_digest: str
    group_ids: Sequence[str]
    """The ids of the batch's groups, in the order of the batch."""
    version: PolicyVersion
    """The version that the step made."""
    weights_digest: str
    committed: bool
    """Whether CommitStep was answered; if not, the learner will call it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """A learner's version and steps. Steps come oldest first, without gaps; the last step made `version`. May be empty."""

    version: PolicyVersion
    steps: Sequence[TrainedStep] = ()

    def __post_init__(self) -> None:
        """Raises InvalidRequest with the facts that contradict each other."""
        if len(self.steps) > MAX_STEPS:
            raise InvalidRequest(f"register: trained: at most {MAX_STEPS} steps, got {len(self.steps)}")
        first = self.version.number - len(self.steps)
        numbers = [step.step for step in self.steps]
        if first < 0 or numbers != list(range(first, self.version.number)):
            raise InvalidRequest(
                f"register: trained: must be the steps before version {self.version.number}, oldest first, got {numbers}"
            )
        ids = [group_id for step in self.steps for group_id in step.group_ids]
        if len(set(ids)) < len(ids):
            twice = next(group_id for group_id in ids if ids.count(group_id) > 1)
            raise InvalidRequest(f"register: trained: group {twice!r} was trained twice; it must be in one step only")
        for step in self.steps:
            if not step.batch_digest or not step.group_ids:
                raise InvalidRequest(f"register: trained: step {step.step} has no batch digest or no groups")

    def refuse_given_up(self, rollbacks: Sequence[Rollback]) -> None:
        """Raises Fenced for a learner of a rolled-back history: the learner must end, and the next one starts from the rest."""
        for said in self.steps:
            if is_given_up(said.version.lineage, said.version.number, rollbacks):
                raise Fenced(
                    f"register: the learner trained step {said.step} as version {said.version.lineage}{said.version.number}, "
                    f"which was rolled back: the run went on from version {rollbacks[-1].to}. Start the learner again"
                )
        if rollbacks and is_older(self.version.lineage, rollbacks[-1].lineage):
            raise Fenced(
                f"register: the learner holds version {self.version.lineage}{self.version.number}, the run was rolled back "
                f"to version {rollbacks[-1].to} and goes on as lineage {rollbacks[-1].lineage}. Start the learner again"
            )

    def of(self, step: int) -> TrainedStep | None:
        """The statement about `step`; None without one."""
        place = step - (self.version.number - len(self.steps))
        return self.steps[place] if 0 <= place < len(self.steps) else None
