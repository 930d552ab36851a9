"""Scores one group: the verifiers' grades of every sample, summed by weight, then soft overlong shaping; raw and shaped
are kept apart, and so are the parts of the sum.

Decides nothing about groups (dynamic sampling is the coordinator's) and never turns "could not grade" into "wrong": a
sample that timed out or failed carries NaN scores, which poison any sum that forgets to look at the status.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.reward.ports import Completion, Grade, Graded, Graders, Job, Outcome, OutcomeStatus, Question
from services.reward.routing import Part, Router, grader_name
from sluice.dapo.overlong import overlong_penalty
from sluice.limits import LARGEST_SCORE, NAME_CHARACTERS, TEXT_CHARACTERS


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
    busy: bool = False
    """Whether an `error` only says that the grader is away for now."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Unweighted scores of the graders where a route has several, and the graders' named components."""

    @property
    def shaped_reward(self) -> float:
        """Raw score plus overlong penalty: the reward that the learner optimises."""
        return self.raw_score + self.overlong_penalty


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    """The rewards of a group, `rewards[i]` for `samples[i]`, and the verifier that graded them."""

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
        """Scores the samples of one question; `deadline_s` is monotonic.

        Raises:
            InvalidRequest: the data source has no verifier.
            Overloaded: too many groups wait already.
        """
        parts = self._router.parts_of(question.data_source)
        # A text over the limit is cut here and its grade thrown away, because a grader of groups needs a text a sample.
        completions = [Completion(text=s.text[-self._max_answer_chars :], finished=s.finished) for s in samples]
        graded: list[Graded] = []
        for part in parts:
            job = Job(
                verifier=part.verifier,
                settings=part.settings,
                question=question,
                completions=completions,
                network=part.network,
                deadline_s=deadline_s,
            )
            graded.append(await self._graders.grade(job))
        columns = zip(*(one.outcomes for one in graded), strict=True)
        outcomes = [
            self._too_long(sample) or combine(parts, column) for sample, column in zip(samples, columns, strict=True)
        ]
        return ScoredGroup(
            rewards=[self._reward(sample, outcome) for sample, outcome in zip(samples, outcomes, strict=True)],
            grader=_sendable(grader_name(parts), NAME_CHARACTERS),
            grader_version=_sendable("+".join(one.version for one in graded), NAME_CHARACTERS),
        )

    def shape(
        self, samples: Sequence[SampleToScore], given: Sequence[Grade], *, environment: str, version: str
    ) -> ScoredGroup:
        """The verdicts of an environment in a version, with soft overlong shaping and without any grader."""
        outcomes = [Outcome(status="ok", grade=grade) for grade in given]
        return ScoredGroup(
            rewards=[self._reward(sample, outcome) for sample, outcome in zip(samples, outcomes, strict=True)],
            grader=_sendable(f"environment:{environment}", NAME_CHARACTERS),
            grader_version=_sendable(version, NAME_CHARACTERS),
        )

    def _too_long(self, sample: SampleToScore) -> Outcome | None:
        """An `error` for a text over the limit: half a text might be graded as wrong."""
        length, limit = len(sample.text), self._max_answer_chars
        if length <= limit:
            return None
        return Outcome(
            status="error", detail=f"completion of {length} characters, over reward.max_answer_chars ({limit})"
        )

    def _reward(self, sample: SampleToScore, outcome: Outcome) -> Reward:
        outcome = bounded(outcome)
        grade = outcome.grade
        return Reward(
            status=outcome.status,
            raw_score=grade.raw_score if grade else math.nan,
            acc=grade.acc if grade else math.nan,
            extracted=_sendable(grade.extracted, TEXT_CHARACTERS) if grade else "",
            overlong_penalty=self._penalty(sample.response_tokens),
            detail=_sendable(outcome.detail, TEXT_CHARACTERS),
            busy=outcome.busy,
            parts={_sendable(name, len(name)): score for name, score in grade.parts.items()} if grade else {},
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


def _sendable(text: str, most: int) -> str:
    """At most so many characters, and `?` for half of a surrogate pair, which a wire does not take: graders return anything."""
    return text[:most].encode("utf-8", "replace").decode()


def bounded(outcome: Outcome) -> Outcome:
    """The outcome; an `error` for scores that are not finite, or so large that their squares are not."""
    grade = outcome.grade
    if grade is None:
        return outcome
    scores = {"raw_score": grade.raw_score, "acc": grade.acc, **grade.parts}
    for name, score in scores.items():
        if not abs(score) <= LARGEST_SCORE:
            detail = f"the grader returned {name} {score:g}; scores must be finite and at most {LARGEST_SCORE:g}"
            return Outcome(status="error", detail=detail)
    return outcome


def combine(parts: Sequence[Part], outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of one sample from each part's outcome: the weighted sum of scores; the first part decides `acc`.

    A sample that one part could not grade is not graded.
    """
    for part, outcome in zip(parts, outcomes, strict=True):
        if outcome.grade is None:
            detail = outcome.detail if len(parts) == 1 else f"{part.name}: {outcome.detail}"
            return Outcome(status=outcome.status, detail=detail, busy=outcome.busy)
    grades = [outcome.grade for outcome in outcomes if outcome.grade is not None]
    return Outcome(
        status=outcomes[0].status,
        grade=Grade(
            raw_score=sum(part.weight * grade.raw_score for part, grade in zip(parts, grades, strict=True)),
            acc=grades[0].acc,
            extracted=grades[0].extracted,
            status=grades[0].status,
            parts=_named(parts, grades),
        ),
    )


def _named(parts: Sequence[Part], grades: Sequence[Grade]) -> dict[str, float]:
    if len(parts) == 1:
        return dict(grades[0].parts)
    named: dict[str, float] = {}
    for part, grade in zip(parts, grades, strict=True):
        named[part.name] = grade.raw_score
        named |= {f"{part.name}.{name}": value for name, value in grade.parts.items()}
    return named
