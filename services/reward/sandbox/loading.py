"""Loads the verifier that a job names, in a worker process, and asks the verifier about completions.

A verifier is asked in one of three ways: a plain `grade` completion by completion; an async `grade` for all completions of
a group at once; a `grade_group`, plain or async, for the group as a whole. An exception about one completion is the outcome
of that completion; an exception about a group is the outcome of all its completions.
"""

import asyncio
import inspect
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from services.reward import functions
from services.reward.ports import Busy, Completion, Grade, Question
from services.reward.sandbox.frames import Frame


class Asked:
    """A verifier with its settings, ready to be asked. Raises every error that the loading raises."""

    def __init__(self, verifier: str, settings: Mapping[str, object]) -> None:
        module: Any = functions.load(verifier, settings) if ":" in verifier else functions.import_module(verifier)
        module.prepare()
        self.version = str(module.VERSION)
        self._group = getattr(module, "grade_group", None)
        self._grade = getattr(module, "grade", None)
        self._options = {} if ":" in verifier else _options(module, settings)
        self.whole = self._group is not None or inspect.iscoroutinefunction(self._grade)
        """Whether the verifier is asked about the group at once."""
        self._takes_deadline = self._grade is not None and "deadline_s" in inspect.signature(self._grade).parameters

    def about(self, question: Question, completion: Completion) -> Frame:
        """The reply on one completion."""
        try:
            assert self._grade is not None
            grade = self._grade(question=question, text=completion.text, finished=completion.finished, **self._options)
            return _graded(grade)
        except Exception as error:  # noqa: BLE001 - any error of a grader on untrusted text is this sample's outcome
            return _failed(error)

    def about_all(self, question: Question, completions: Sequence[Completion], *, timeout_s: float) -> list[Frame]:
        """The replies on a group; `timeout_s` is the limit of one completion where an async `grade` grades each apart."""
        if self._group is None:
            return asyncio.run(self._at_once(question, completions, timeout_s))
        try:
            grades = self._group(question=question, completions=completions, **self._options)
            if inspect.isawaitable(grades):
                grades = asyncio.run(_await(grades))
            if len(grades) != len(completions):
                raise ValueError(f"one grade a completion: got {len(grades)} for {len(completions)}")
            return [_graded(grade) for grade in grades]
        except Exception as error:  # noqa: BLE001 - as above
            return [_failed(error)] * len(completions)

    async def _at_once(self, question: Question, completions: Sequence[Completion], timeout_s: float) -> list[Frame]:
        async def about(completion: Completion) -> Frame:
            assert self._grade is not None
            asked: dict[str, Any] = {"question": question, "text": completion.text, "finished": completion.finished}
            if self._takes_deadline:
                asked["deadline_s"] = time.monotonic() + timeout_s
            limit = asyncio.timeout(timeout_s)
            try:
                async with limit:
                    return _graded(await self._grade(**asked, **self._options))
            except Exception as error:  # noqa: BLE001 - as above
                if limit.expired():
                    return {"timeout": f"not graded within {timeout_s:g} s"}
                return _failed(error)

        return list(await asyncio.gather(*(about(completion) for completion in completions)))


def describe(error: Exception) -> str:
    """An error as one line for people."""
    return f"{type(error).__name__}: {error}"[:500]


def _options(module: Any, settings: Mapping[str, object]) -> dict[str, object]:
    kind = getattr(module, "Settings", None)
    if kind is not None:
        return {"settings": kind(**settings)}
    if settings:
        raise ValueError(f"{module.NAME} takes no settings, got {', '.join(settings)}")
    return {}


async def _await(grades: Any) -> Any:
    return await grades


def _graded(grade: Grade) -> Frame:
    """The frame of a grade, whose numbers may be those of any library."""
    given = {"raw_score": grade.raw_score, "acc": grade.acc, **grade.parts}
    numbers = {str(name): functions.as_number(value) for name, value in given.items()}
    if bad := {name: value for name, value in numbers.items() if value is None or not math.isfinite(value)}:
        raise ValueError(f"scores must be finite numbers, got {bad}")
    raw_score, acc = numbers.pop("raw_score"), numbers.pop("acc")
    extracted = "" if grade.extracted is None else str(grade.extracted)
    return {
        "grade": {"raw_score": raw_score, "acc": acc, "extracted": extracted, "status": grade.status, "parts": numbers}
    }


def _failed(error: Exception) -> Frame:
    if isinstance(error, Busy):
        return {"busy": str(error)[:500]}
    return {"timeout" if isinstance(error, TimeoutError) else "error": describe(error)}
