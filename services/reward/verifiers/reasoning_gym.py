"""Grades reasoning-gym tasks with the library's own `score_answer`.

The ground truth is the task's entry as JSON (`question`, `answer`, `metadata`); the task is the part of the data source
after `reasoning_gym/`. The answer is the text between the last `<answer>` tags or, without tags, the whole completion.
Scores between 0 and 1 are partial credit: only a full score counts as right.
"""

import functools
import importlib.metadata
import json
import re
from collections.abc import Callable
from typing import Any, Final

from services.reward.ports import Grade, Question

NAME: Final = "reasoning_gym"
DATA_SOURCE_PREFIX: Final = "reasoning_gym/"

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FULL_SCORE = 1.0 - 1e-6

_GRIDS = frozenset({"arc_agi", "rearc"})
"""Tasks whose scorer compares with tuples, which JSON has turned into lists."""
_RAISE_ON_WORDS = frozenset({"prime_factorization"})
"""Tasks whose scorer raises ValueError for an answer that is no number, instead of scoring the answer as wrong."""


def __getattr__(name: str) -> str:
    """VERSION: the library's version, looked up late because the library is an optional dependency."""
    if name == "VERSION":
        return importlib.metadata.version("reasoning-gym")
    raise AttributeError(name)


def prepare() -> None:
    """Imports the library, which takes seconds."""
    import reasoning_gym  # noqa: F401


def grade(*, question: Question, text: str, finished: bool) -> Grade:
    """Raw score in [0, 1]; `unparsed` without any answer. A truncated completion may be right."""
    answer = _extract(text)
    if not answer:
        return Grade(raw_score=0.0, acc=0.0, extracted="", status="unparsed")
    task = question.data_source.removeprefix(DATA_SOURCE_PREFIX)
    entry = json.loads(question.ground_truth)
    if task in _GRIDS:
        entry["metadata"]["output"] = tuple(map(tuple, entry["metadata"]["output"]))
    try:
        raw_score = float(_scorer(task)(answer, entry))
    except ValueError:
        if task not in _RAISE_ON_WORDS:
            raise
        return Grade(raw_score=0.0, acc=0.0, extracted=answer, status="unparsed")
    return Grade(raw_score=raw_score, acc=float(raw_score >= _FULL_SCORE), extracted=answer)


@functools.cache
def _scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    """The task's `score_answer(answer, entry)`. Raises ValueError for a task that the library does not have."""
    import reasoning_gym

    score_answer: Any = reasoning_gym.get_score_answer_fn(task)  # the library annotates a function without parameters
    return score_answer


def _extract(text: str) -> str:
    tagged = _TAGGED.findall(text)
    return (tagged[-1] if tagged else text).strip()
