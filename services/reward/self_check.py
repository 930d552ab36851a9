"""The check before any real grading: gold answers must score right, garbage and empty answers must score wrong.

A prompt that asks for one answer format and a verifier that expects another format give all groups zero for hours; this
check finds the mismatch in a second. The service checks `KNOWN` at its start, through its own worker processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.reward.ports import Question
from services.reward.scoring import SampleToScore, Scorer
from sluice.gold_answers import GARBAGE


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldRow:
    """A question and a right completion."""

    question: Question
    gold_text: str


def _row(data_source: str, ground_truth: str, gold_text: str) -> GoldRow:
    question = Question(data_source=data_source, prompt_text="", ground_truth=ground_truth, extra_info={})
    return GoldRow(question=question, gold_text=gold_text)


KNOWN: Final = (
    _row("mixadd3", "125", "7+8+0=15;6+5+1=12#125"),
    _row("math_dapo", "12,034", "It follows that x = 12034.\nAnswer: $x = 12{,}034$"),
)
"""Rows for the verifiers that need no optional package."""


async def gold_check(rows: Sequence[GoldRow], scorer: Scorer) -> list[str]:
    """One message a problem; empty when every row is judged rightly."""
    problems: list[str] = []
    for row in rows:
        texts = (row.gold_text, *GARBAGE)
        samples = [SampleToScore(text=text, response_tokens=len(text) + 1, finished=True) for text in texts]
        scored = await scorer.score(question=row.question, samples=samples)
        for text, reward, expected in zip(texts, scored.rewards, (1.0, *[0.0] * len(GARBAGE)), strict=True):
            if reward.acc != expected:
                problems.append(
                    f"{row.question.data_source}: {text!r} must have acc {expected:g}, got {reward.acc:g} "
                    f"({reward.status}, ground truth {row.question.ground_truth!r}, extracted {reward.extracted!r})"
                    f"{': ' + reward.detail if reward.detail else ''}"
                )
    return problems
