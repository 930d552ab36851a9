"""The result of one evaluation, and its line in metrics.jsonl."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sluice.policy_version import PolicyVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """One evaluation; fractions in [0, 1], of the samples that could be graded."""

    version: PolicyVersion
    avg_at_n: float
    pass_at_n: float
    greedy: float | None
    """None where no greedy completion was drawn, or none could be graded."""
    n: int
    prompts: int
    mean_response_tokens: float
    wall_s: float
    ungraded: int = 0
    """Samples that could not be graded, greedy ones included; the accuracies are those of the others."""

    def __str__(self) -> str:
        """One line for people."""
        greedy = "" if self.greedy is None else f", greedy {self.greedy:.3f}"
        ungraded = f", {self.ungraded} samples not graded" if self.ungraded else ""
        return f"version {self.version.number}: avg@{self.n} {self.avg_at_n:.3f}{greedy}{ungraded}"

    def to_line(self) -> dict[str, Any]:
        """The result's line in metrics.jsonl."""
        scores = {"eval/avg_at_n": self.avg_at_n, "eval/pass_at_n": self.pass_at_n, "eval/greedy": self.greedy}
        size = {"n": self.n, "prompts": self.prompts, "ungraded": self.ungraded}
        return {
            "version": self.version.number,
            "lineage": self.version.lineage,
            "wall_s": self.wall_s,
            "mean_response_tokens": self.mean_response_tokens,
            **size,
            **scores,
        }

    @staticmethod
    def from_line(line: Mapping[str, Any]) -> "EvaluationResult":
        """The inverse of `to_line`."""
        return EvaluationResult(
            version=PolicyVersion(lineage=line["lineage"], number=line["version"]),
            avg_at_n=line["eval/avg_at_n"],
            pass_at_n=line["eval/pass_at_n"],
            greedy=line["eval/greedy"],
            n=line["n"],
            prompts=line["prompts"],
            mean_response_tokens=line["mean_response_tokens"],
            wall_s=line["wall_s"],
            ungraded=line.get("ungraded", 0),
        )


def accuracies(accs: np.ndarray) -> tuple[float, float]:
    """(avg@n, pass@n) of `accs` [prompts, n] float64, NaN for a sample that could not be graded; at least one must be graded.

    Each prompt counts once, however many of its samples were graded; a prompt without any is left out.
    """
    graded = accs[~np.isnan(accs).all(axis=1)]
    assert len(graded), "a sample must be graded"
    return float(np.nanmean(graded, axis=1).mean()), float((np.nanmax(graded, axis=1) > 0).mean())
