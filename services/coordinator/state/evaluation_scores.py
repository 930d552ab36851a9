"""What the samples of one evaluation say: accuracies, majority answers, and how sure the accuracies are. Pure.

P prompts, n samples a prompt, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from services.coordinator.state.group import PromptLike, Reward, Sample

RESAMPLES: Final = 2000
"""R. Chosen: the ends of a 95 % interval then vary by about a fortieth of its width from seed to seed."""

_SEED: Final = 0
_LEVEL: Final = 0.95
_AT_ONCE: Final = 1 << 20
"""Indices drawn at once: 8 MB, however many prompts there are."""

ANSWER_CHARACTERS: Final = 200
"""How much of a majority answer a row keeps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptOutcome:
    """One prompt of an evaluation; NaN stands for what cannot be said."""

    position: int
    """Place in the set, 0-based."""
    prompt_id: str
    data_source: str
    accs: tuple[float, ...]
    """[n] in [0, 1], NaN for a sample that could not be graded: which is neither right nor wrong."""
    majority_answer: str
    """Empty without one."""
    majority_acc: float
    greedy_acc: float | None
    """None without a greedy completion."""
    tokens: int
    """Completion tokens of the n samples."""
    truncated: int
    """Samples that ended by their length."""
    called: int | None = None
    """Samples in which a tool was called; None where the samples are no episodes."""

    @property
    def graded(self) -> list[float]:
        """The accuracies of the samples that could be graded."""
        return [acc for acc in self.accs if acc == acc]

    def to_row(self) -> dict[str, Any]:
        """The columns that the prompt alone decides; None for what cannot be said."""
        graded = self.graded
        return {
            "prompt": self.position,
            "prompt_id": self.prompt_id,
            "data_source": self.data_source,
            "n": len(self.accs),
            "graded": len(graded),
            "ungradable": len(self.accs) - len(graded),
            "correct": sum(acc > 0 for acc in graded),
            "accuracy": sum(graded) / len(graded) if graded else None,
            "majority_answer": self.majority_answer or None,
            "majority_right": None if np.isnan(self.majority_acc) else self.majority_acc > 0,
            "greedy_right": None if self.greedy_acc is None or np.isnan(self.greedy_acc) else self.greedy_acc > 0,
            "mean_response_tokens": self.tokens / len(self.accs),
            "truncated": self.truncated,
        }


def outcome(
    position: int, prompt: PromptLike, samples: Sequence[Sample], rewards: Sequence[Reward], greedy: Sequence[Reward]
) -> PromptOutcome:
    """The outcome of a prompt's n samples, and of its greedy completion if there is one."""
    answer, majority_acc = majority(rewards)
    return PromptOutcome(
        position=position,
        prompt_id=prompt.prompt_id,
        data_source=prompt.data_source,
        accs=tuple(accs_of(rewards)),
        majority_answer=answer[:ANSWER_CHARACTERS],
        majority_acc=majority_acc,
        greedy_acc=next(iter(accs_of(greedy)), None),
        tokens=sum(sample.sampled_tokens for sample in samples),
        truncated=sum(sample.finish_reason == "length" for sample in samples),
        called=sum(sample.calls_tools for sample in samples) if any(sample.turns for sample in samples) else None,
    )


def accs_of(rewards: Sequence[Reward]) -> list[float]:
    """Accuracies, NaN for a sample that could not be graded."""
    return [reward.acc if reward.graded else float("nan") for reward in rewards]


def majority(rewards: Sequence[Reward]) -> tuple[str, float]:
    """The answer that most samples give, as the grader found it, and the accuracy of the first sample that gives it.

    Answers are equal when their texts are, blanks at the ends apart; of answers with equally many votes the one that comes
    first by sample index wins. A sample without an answer has no vote. Where the grader found an answer in no sample the
    majority is wrong; where the grader names no answers, or graded nothing, it is not known: NaN.
    """
    votes: dict[str, list[float]] = {}
    for reward in rewards:
        if reward.status == "ok" and (answer := reward.extracted.strip()):
            votes.setdefault(answer, []).append(reward.acc)
    if votes:
        chosen = max(votes, key=lambda answer: len(votes[answer]))
        return chosen, votes[chosen][0]
    graded = {reward.status for reward in rewards if reward.graded}
    return "", 0.0 if graded == {"unparsed"} else float("nan")


def mean_interval(values: np.ndarray) -> tuple[float, float] | None:
    """The 95 % interval of the mean of `values` [P] float64, one a prompt: percentiles of RESAMPLES bootstrap means.

    Prompts are drawn, not samples, because the samples of a prompt go together (Efron and Tibshirani 1993, section 13.3). The
    seed is fixed, so the same values have the same interval. None with fewer than two prompts.
    """
    if len(values) < 2:
        return None
    random = np.random.Generator(np.random.PCG64(_SEED))
    at_once = max(1, _AT_ONCE // len(values))
    means = [
        values[random.integers(0, len(values), size=(min(at_once, RESAMPLES - done), len(values)))].mean(axis=1)
        for done in range(0, RESAMPLES, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def accuracies(outcomes: Sequence[PromptOutcome]) -> Mapping[str, Any]:
    """The accuracies and intervals of an evaluation, by field of EvaluationResult; at least one sample must be graded."""
    accs = np.array([one.accs for one in outcomes])
    majorities = np.array([one.majority_acc for one in outcomes])
    greedy = np.array([one.greedy_acc for one in outcomes if one.greedy_acc is not None])
    means, passes = by_prompt(accs)
    known = majorities[~np.isnan(majorities)]
    called = [one.called / len(one.accs) for one in outcomes if one.called is not None]
    best = greedy[~np.isnan(greedy)]
    return {
        "avg_at_n": float(means.mean()),
        "pass_at_n": float(passes.mean()),
        "maj_at_n": float((known > 0).mean()) if len(known) else None,
        "greedy": float(best.mean()) if len(best) else None,
        "avg_interval": mean_interval(means),
        "pass_interval": mean_interval(passes),
        "maj_interval": mean_interval((known > 0).astype(np.float64)),
        "tool_use": float(np.mean(called)) if called else None,
        "ungraded": int(np.isnan(accs).sum() + np.isnan(greedy).sum()),
    }


def by_prompt(accs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean accuracy and whether a sample is right, [prompts with a grade] float64 each, of `accs` [P, n].

    Each prompt counts once, however many of its samples were graded; a prompt without any is left out.
    """
    graded = accs[~np.isnan(accs).all(axis=1)]
    assert len(graded), "a sample must be graded"
    return np.nanmean(graded, axis=1), (np.nanmax(graded, axis=1) > 0).astype(np.float64)
