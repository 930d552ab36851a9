"""`second-try`: a task with a known answer, and another try after a wrong one. The environment scores the episode.

Settings: `grader` (a built-in grader that needs no network; by default `reasoning_gym` for rows of `reasoning_gym/...` and
`exact` otherwise), `grader_settings` ({}), `tries` (2), `feedback` (what the policy reads after a wrong try) and `later` (the
factor of the score of a later try, 1.0). The score is the grader's of the last try; its part `tries` says how many there were.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any, Final

from services.reward.ports import Completion, Question
from services.reward.sandbox.loading import Asked
from services.reward.verifiers.reasoning_gym import DATA_SOURCE_PREFIX
from sluice.config.graders import BUILT_IN_GRADERS
from sluice.environments import Message, Reply, Row, Score

VERSION: Final = "1"

MOST_TRIES: Final = 100
_FEEDBACK = "That is not right. Look at your answer again, then answer once more in the same form."


class SecondTry:
    """The environment."""

    scores = True

    def __init__(
        self,
        *,
        grader: str = "",
        grader_settings: Mapping[str, object] | None = None,
        tries: int = 2,
        feedback: str = _FEEDBACK,
        later: float = 1.0,
    ) -> None:
        """Raises ValueError for a setting that cannot be."""
        if grader and (grader not in BUILT_IN_GRADERS or grader == "judge"):
            known = ", ".join(name for name in BUILT_IN_GRADERS if name != "judge")
            raise ValueError(f"grader: must be one of {known}, got {grader!r:.60}")
        if not 0 < tries <= MOST_TRIES:
            raise ValueError(f"tries: must be 1 to {MOST_TRIES}, got {tries}")
        self._grader, self._settings = grader, json.dumps(dict(grader_settings or {}))
        self._tries, self._feedback, self._later = tries, feedback, float(later)
        self._question: Question | None = None
        self._tried = 0
        if grader:
            _asked(grader, self._settings)

    def open(self, row: Row) -> None:
        """The row's chat as it is."""
        self._tries = min(self._tries, row.max_turns)
        self._question = Question(
            data_source=row.data_source,
            prompt_text="\n".join(message.content for message in row.messages),
            ground_truth=row.ground_truth,
            extra_info=row.extra_info,
        )

    def step(self, message: Message) -> Reply:
        """Right or out of tries: done, with the score. Otherwise the feedback. Raises RuntimeError for a turn that
        cannot be graded.
        """
        assert self._question is not None
        self._tried += 1
        default = "reasoning_gym" if self._question.data_source.startswith(DATA_SOURCE_PREFIX) else "exact"
        asked = _asked(self._grader or default, self._settings)
        graded = asked.about(self._question, Completion(text=message.content, finished=True))
        if "grade" not in graded:
            raise RuntimeError(f"could not be graded: {graded}")
        grade: dict[str, Any] = graded["grade"]
        if grade["acc"] < 1 and self._tried < self._tries:
            return Reply(messages=[Message(role="user", content=self._feedback)])
        worth = 1.0 if self._tried == 1 else self._later
        return Reply(
            done=True,
            score=Score(
                score=worth * grade["raw_score"],
                acc=grade["acc"],
                parts={"tries": float(self._tried)},
                extracted=grade["extracted"],
            ),
        )


@functools.cache
def _asked(grader: str, settings_json: str) -> Asked:
    """The grader, loaded once a process."""
    return Asked(f"services.reward.verifiers.{grader}", json.loads(settings_json))
