"""Scores one group: the verifier's grade of every sample, then soft overlong shaping; raw and shaped are kept apart.

It decides nothing about groups (dynamic sampling is the coordinator's) and never turns "could not grade" into "wrong":
a sample that timed out or failed carries NaN scores, which poison any sum that forgets to look at the status.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.reward.ports import Completion, Graders, Job, Outcome, OutcomeStatus, Question
from services.reward.routing import Router
from sluice.dapo.overlong import overlong_penalty


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleToScore:
    """One sample to score."""

    text: str
    response_tokens: int
    """Completion tokens, end token included."""
    finished: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlongBuffer:
    """The constants of DAPO eq. 13 (arXiv:2503.14476)."""

    max_response_length: int
    """L_max in tokens."""
    buffer_len: int
    """L_cache in tokens."""
    penalty_factor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Reward:
    """The verdict on one sample. Scores are NaN unless the status is `ok` or `unparsed`."""

    status: OutcomeStatus
    raw_score: float
    acc: float
    extracted: str
    overlong_penalty: float
    """<= 0; 0 without shaping."""
    detail: str

    @property
    def shaped_reward(self) -> float:
        """What the learner optimises."""
        return self.raw_score + self.overlong_penalty


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    """`rewards[i]` belongs to `samples[i]`; the verifier that gave them."""

    rewards: Sequence[Reward]
    grader: str
    grader_version: str


class Scorer:
    """Routes, grades and shapes."""

    def __init__(
        self, *, graders: Graders, router: Router, max_answer_chars: int, overlong: OverlongBuffer | None
    ) -> None:
        self._graders = graders
        self._router = router
        self._max_answer_chars = max_answer_chars
        self._overlong = overlong

    async def score(
        self, *, question: Question, samples: Sequence[SampleToScore], deadline_s: float | None = None
    ) -> ScoredGroup:
        """Scores the samples of one question; `deadline_s` is event-loop time.

        Raises:
            InvalidRequest: no verifier for the data source.
            Overloaded: too many groups wait already.
        """
        name = self._router.name_of(question.data_source)
        completions = [Completion(text=s.text[-self._max_answer_chars :], finished=s.finished) for s in samples]
        graded = await self._graders.grade(
            Job(
                verifier=self._router.module_of(name),
                question=question,
                completions=completions,
                deadline_s=deadline_s,
            )
        )
        rewards = [self._reward(sample, outcome) for sample, outcome in zip(samples, graded.outcomes, strict=True)]
        return ScoredGroup(rewards=rewards, grader=name, grader_version=graded.version)

    def _reward(self, sample: SampleToScore, outcome: Outcome) -> Reward:
        grade = outcome.grade
        return Reward(
            status=outcome.status,
            raw_score=grade.raw_score if grade else math.nan,
            acc=grade.acc if grade else math.nan,
            extracted=grade.extracted if grade else "",
            overlong_penalty=self._penalty(sample.response_tokens),
            detail=outcome.detail,
        )

    def _penalty(self, response_tokens: int) -> float:
        if self._overlong is None:
            return 0.0
        return overlong_penalty(
            response_tokens,
            max_response_length=self._overlong.max_response_length,
            buffer_len=self._overlong.buffer_len,
            penalty_factor=self._overlong.penalty_factor,
        )
