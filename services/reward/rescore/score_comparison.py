"""Recorded scores of samples beside new scores: verdicts, means, and the verdicts of dynamic sampling on groups. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sluice.config.schema import FilterGroupsConfig
from sluice.dapo.dynamic_sampling import SIGNAL_RANGE, Verdict, judge_scores

SCORES = ("raw_score", "acc", "shaped_reward")
"""The scores to average over the samples that were graded both times."""

SAME_SCORE = 1e-9
"""Scores that differ by at most this count as equal, because scores went through float64 and back."""

_TERMS = {
    Verdict.KEPT: "kept",
    Verdict.ALL_RIGHT: "filtered_all_right",
    Verdict.ALL_WRONG: "filtered_all_wrong",
    Verdict.OTHER: "filtered_other",
}
FAILED = "failed"
"""The term of a group with a sample that could not be graded; such a group is never trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A grader's judgement of one sample. Scores mean nothing unless the status is `ok` or `unparsed`."""

    status: str
    """ok, unparsed, timeout or error."""
    raw_score: float
    acc: float
    shaped_reward: float
    extracted: str
    detail: str
    grader: str
    """Name and version of the grader."""

    @property
    def graded(self) -> bool:
        """Whether the scores mean anything."""
        return self.status in ("ok", "unparsed")

    @property
    def verdict(self) -> str:
        """right, wrong or partly right; unparsed, timeout or error."""
        if self.status != "ok":
            return self.status
        if self.acc >= 1 - SIGNAL_RANGE:
            return "right"
        return "wrong" if self.acc <= SIGNAL_RANGE else "partly right"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedSample:
    """One sample with another verdict."""

    step: int
    group_id: str
    sample: int
    ground_truth: str
    before: Judged
    after: Judged


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedGroup:
    """One group on which dynamic sampling would have decided otherwise."""

    step: int
    group_id: str
    before: str
    """kept, a ledger term that begins with filtered_, or failed."""
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredAgain:
    """One group with both of its judgements; `before[i]` and `after[i]` belong to sample `samples[i]`."""

    step: int
    group_id: str
    ground_truth: str
    samples: Sequence[int]
    before: Sequence[Judged]
    after: Sequence[Judged]


@dataclass(kw_only=True, slots=True)
class Comparison:
    """The comparison over all groups."""

    filters_before: FilterGroupsConfig
    filters_after: FilterGroupsConfig
    groups: int = 0
    samples: int = 0
    graders_before: Counter[str] = field(default_factory=Counter)
    graders_after: Counter[str] = field(default_factory=Counter)
    """Samples by grader and version."""
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Samples by verdict before and after, also with equal verdicts."""
    rescored_alone: int = 0
    """Samples with an equal verdict and another raw or shaped score."""
    terms: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Groups by the decision of dynamic sampling before and after."""
    changed_samples: list[ChangedSample] = field(default_factory=list)
    changed_groups: list[ChangedGroup] = field(default_factory=list)
    graded_twice: int = 0
    _sums: dict[str, tuple[float, float]] = field(default_factory=lambda: dict.fromkeys(SCORES, (0.0, 0.0)))

    def add(self, group: ScoredAgain) -> None:
        """Takes in one group."""
        self.groups += 1
        self.samples += len(group.samples)
        for sample, before, after in zip(group.samples, group.before, group.after, strict=True):
            self.graders_before[before.grader] += 1
            self.graders_after[after.grader] += 1
            self.verdicts[before.verdict, after.verdict] += 1
            if before.verdict != after.verdict:
                self.changed_samples.append(
                    ChangedSample(
                        step=group.step,
                        group_id=group.group_id,
                        sample=sample,
                        ground_truth=group.ground_truth,
                        before=before,
                        after=after,
                    )
                )
            if before.graded and after.graded:
                self._add_scores(before, after)
        before, after = term(group.before, self.filters_before), term(group.after, self.filters_after)
        self.terms[before, after] += 1
        if before != after:
            self.changed_groups.append(
                ChangedGroup(step=group.step, group_id=group.group_id, before=before, after=after)
            )

    @property
    def nothing_graded(self) -> bool:
        """Whether the new graders have graded no sample yet."""
        return not any(after not in ("timeout", "error") for _, after in self.verdicts)

    def means(self) -> dict[str, tuple[float, float]]:
        """Means of SCORES before and after; empty when no sample was graded both times."""
        if not self.graded_twice:
            return {}
        return {name: (was / self.graded_twice, now / self.graded_twice) for name, (was, now) in self._sums.items()}

    def _add_scores(self, before: Judged, after: Judged) -> None:
        self.graded_twice += 1
        for name, (was, now) in self._sums.items():
            self._sums[name] = (was + getattr(before, name), now + getattr(after, name))
        moved = any(abs(getattr(before, name) - getattr(after, name)) > SAME_SCORE for name in SCORES)
        self.rescored_alone += moved and before.verdict == after.verdict


def term(judged: Sequence[Judged], filters: FilterGroupsConfig) -> str:
    """The term of a group with these judgements: kept, filtered_all_right and so on, or failed."""
    if not all(one.graded for one in judged):
        return FAILED
    scores = {name: np.array([getattr(one, name) for one in judged]) for name in SCORES}
    verdict = judge_scores(
        filters.metric if filters.enable else None,
        raw_scores=scores["raw_score"],
        acc=scores["acc"],
        shaped_rewards=scores["shaped_reward"],
    )
    return _TERMS[verdict]
