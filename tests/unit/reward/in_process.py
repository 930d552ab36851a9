"""Grades with the real verifiers in this process, as a worker would."""

from services.reward.ports import Grade, Graded, Job, Outcome
from services.reward.sandbox.loading import Asked


class InProcess:
    """Texts in `failing` get that outcome instead."""

    def __init__(self, failing: dict[str, Outcome] | None = None) -> None:
        self.failing = failing or {}
        self.jobs: list[Job] = []

    async def grade(self, job: Job) -> Graded:
        self.jobs.append(job)
        asked = Asked(job.verifier, job.settings)
        outcomes = []
        for completion in job.completions:
            grade = Grade(**asked.about(job.question, completion)["grade"])
            outcomes.append(self.failing.get(completion.text) or Outcome(status=grade.status, grade=grade))
        return Graded(outcomes=outcomes, version=asked.version)
