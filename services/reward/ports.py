"""What the core of the reward service speaks of: questions, grades, outcomes, and who grades.

No wire types. A *verifier* is a module with `NAME`, `VERSION` and a `grade` function (see `Verifier`), or a user's
function (functions.py); it runs on the main thread of a worker process, so it may be slow, use `signal`, or hang: then
its process is killed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

GradeStatus = Literal["ok", "unparsed"]
OutcomeStatus = Literal["ok", "unparsed", "timeout", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What all samples of a group have in common."""

    data_source: str
    prompt_text: str
    ground_truth: str
    extra_info: Mapping[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What a verifier may see of one sample: text, never token ids."""

    text: str
    finished: bool
    """Whether the end token was produced; False for a truncated sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """A verifier's judgement of one completion."""

    raw_score: float
    acc: float
    """1 when the answer is right, else 0; what dynamic sampling looks at."""
    extracted: str
    """The answer that was found; empty when none."""
    status: GradeStatus = "ok"
    """`unparsed`: graded as wrong because no answer could be found."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Named components, for people and metrics; what of them counts is in `raw_score`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of grading one completion. `grade` is there iff it was graded: not graded is not wrong."""

    status: OutcomeStatus
    grade: Grade | None = None
    detail: str = ""
    """Why, when the status is `timeout` or `error`."""
    busy: bool = False
    """Whether an `error` only says that the grader is away for now (`Busy`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One group for one verifier."""

    verifier: str
    """Dotted name of the verifier's module, or `file.py:function`, or `module:function`."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What the route sets for it."""
    question: Question
    completions: Sequence[Completion]
    network: bool = False
    """Whether the verifier may use the network."""
    deadline_s: float | None = None
    """Monotonic seconds by which to answer; what is not graded by then is a `timeout`. None: no such time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graded:
    """The answer to a job; `outcomes[i]` belongs to `completions[i]`."""

    outcomes: Sequence[Outcome]
    version: str
    """Version the verifier stated where it ran; empty when it could not be loaded."""


class Busy(Exception):
    """Raised by a grader when what it asks is away or full for now: its group is graded later, at no cost of an attempt."""


class Verifier(Protocol):
    """A module that grades. Raising is fine: it makes that one sample an `error`, or a `timeout` for a TimeoutError;
    `Busy` makes its whole group wait.

    One that takes settings has a frozen dataclass `Settings`, which checks them, and its `grade` a keyword `settings` of
    that type; a built-in one that calls other services has `NETWORK = True`. `grade` may be async: then the samples of a
    group are graded at once, each within the limit of one; one that takes `deadline_s` is told when that is over
    (monotonic seconds). In place of `grade` there may be `grade_group(*, question, completions)`, which returns a grade a
    completion.
    """

    NAME: str
    VERSION: str

    def prepare(self) -> None:
        """Does the slow imports; called once a process, outside the limit of a single grading."""
        ...

    def grade(self, *, question: Question, text: str, finished: bool) -> Grade:
        """Judges one completion."""
        ...


class Graders(Protocol):
    """Whoever grades jobs: the sandbox, or a stand-in of a test."""

    async def grade(self, job: Job) -> Graded:
        """Grades a whole group. Raises Overloaded when too many jobs wait."""
        ...
