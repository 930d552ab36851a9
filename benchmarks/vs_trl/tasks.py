"""The tasks of the race: what both sides are trained on and graded by. Standard library alone: TRL's environment imports it.

`demo` is the task of `sluice demo`: a tiny model, prompts without end. `sums` is that of `sluice demo-llm`: a real model, a
file of chats.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from services.reward.ports import Question
from services.reward.verifiers import numeric
from sluice.tasks import mixadd3, sums

Level = tuple[Literal["avg", "greedy"], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One prompt as TRL takes it, text or messages, and the right answer."""

    prompt: Any
    answer: str


class Task(Protocol):
    """What the race asks of a task."""

    name: str
    levels: Sequence[Level]
    """Accuracies whose costs are compared."""
    samples: int
    """Completions a prompt of an evaluation at temperature 1."""

    def rows(self, *, seed: int, count: int) -> list[Row]:
        """Training rows in the order of `seed`."""
        ...

    def reward(self, *, completion: str, answer: str, finished: bool) -> float:
        """Raw score of one completion, 0 or 1: what Sluice's grader gives."""
        ...


class Demo:
    """Sums of two numbers, one token a character."""

    name = "demo"
    levels: Sequence[Level] = (*(("avg", level) for level in (0.5, 0.6, 0.7, 0.8, 0.9)), ("greedy", 0.9))
    samples = 8

    def rows(self, *, seed: int, count: int) -> list[Row]:
        """As the coordinator makes them for that `run.seed`."""
        prompts = (mixadd3.prompt_at(seed=seed, index=index, split="train") for index in range(count))
        return [Row(prompt=prompt, answer=mixadd3.answer(prompt)) for prompt in prompts]

    def reward(self, *, completion: str, answer: str, finished: bool) -> float:
        """See `mixadd3.verify`."""
        right, _ = mixadd3.verify(ground_truth=answer, completion=completion, finished=finished)
        return float(right)


class Sums:
    """Sums of one- and two-digit numbers, asked in plain words."""

    name = "sums"
    levels: Sequence[Level] = (*(("avg", level) for level in (0.3, 0.4, 0.5, 0.6, 0.7)), ("greedy", 0.7))
    samples = 4

    def rows(self, *, seed: int, count: int) -> list[Row]:
        """The file's rows in an order of their own each epoch. The order is not the coordinator's for that seed."""
        rng, made, found = random.Random(seed), sums.rows("train"), []
        while len(found) < count:
            found += rng.sample(made, len(made))
        return [Row(prompt=row["prompt"], answer=row["reward_model"]["ground_truth"]) for row in found[:count]]

    def reward(self, *, completion: str, answer: str, finished: bool) -> float:
        """That of the grader `numeric`, which the recipe names."""
        question = Question(data_source=sums.DATA_SOURCE, prompt_text="", ground_truth=answer, extra_info={})
        return numeric.grade(question=question, text=completion, finished=finished).raw_score


TASKS: dict[str, Task] = {task.name: task for task in (Demo(), Sums())}
