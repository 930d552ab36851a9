"""The types of the reward service's core: questions, grades, outcomes, and the protocols of verifiers and graders.

No wire types. A *verifier* is a module with `NAME`, `VERSION` and a `grade` function (see `Verifier`), or a user's
function (functions.py). A verifier runs on the main thread of a worker process, so a verifier may be slow, use `signal`, or
hang: then the process is killed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

GradeStatus = Literal["ok", "unparsed"]
OutcomeStatus = Literal["ok", "unparsed", "timeout", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """The facts that all samples of a group have in common."""

    data_source: str
    prompt_text: str
    ground_truth: str
    extra_info: Mapping[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """The part of a sample that a verifier may see: text, never token ids."""

    text: str
    finished: bool
    """Whether the end token was produced; False for a truncated sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """A verifier's judgement of one completion."""

    raw_score: float
    acc: float
    """1 when the answer is right, else 0; dynamic sampling looks at `acc` by default."""
    extracted: str
    """The answer that was found; empty without an answer."""
    status: GradeStatus = "ok"
    """`unparsed`: graded as wrong because no answer could be found."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Named components, for people and metrics; only `raw_score` counts for training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The outcome of grading one completion. `grade` is None iff the completion could not be graded, which is not wrong."""

    status: OutcomeStatus
    grade: Grade | None = None
    detail: str = ""
    """The reason of a `timeout` or an `error`."""
    busy: bool = False
    """Whether an `error` only says that the grader is away for now (`Busy`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One group for one verifier."""

    verifier: str
    """Dotted name of the verifier's module, or `file.py:function`, or `module:function`."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """The route's settings for the verifier."""
    question: Question
    completions: Sequence[Completion]
    network: bool = False
    """Whether the verifier may use the network."""
    deadline_s: float | None = None
    """Monotonic seconds by which to answer; completions not graded by then are a `timeout`. None: no deadline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graded:
    """The answer to a job; `outcomes[i]` belongs to `completions[i]`."""

    outcomes: Sequence[Outcome]
    version: str
    """The version that the verifier stated in its process; empty when the verifier could not be loaded."""


class Busy(Exception):
    """Raised by a grader whose service is away or full for now: the group is graded later and loses no attempt."""


class Verifier(Protocol):
    """A module that grades. An exception makes one sample an `error`, or a `timeout` for a TimeoutError; `Busy` makes the
    sample's whole group wait.

    A verifier with settings has a frozen dataclass `Settings`, which checks the settings, and a keyword `settings` of its
    `grade`; a built-in verifier that calls other services has `NETWORK = True`. With an async `grade` the samples of a
    group are graded at once, each within the limit of one sample; a keyword `deadline_s` gets the end of this limit
    (monotonic seconds). In place of `grade` a verifier may have `grade_group(*, question, completions)`, which returns a
    grade a completion.
    """

    NAME: str
    VERSION: str

    def prepare(self) -> None:
        """Does the slow imports; called once a process, outside the limit of one sample."""
        ...

    def grade(self, *, question: Question, text: str, finished: bool) -> Grade:
        """Judges one completion."""
        ...


class Graders(Protocol):
    """Grades jobs: the sandbox, or a test's stand-in."""

    async def grade(self, job: Job) -> Graded:
        """Grades a whole group. Raises Overloaded when too many jobs wait."""
        ...
