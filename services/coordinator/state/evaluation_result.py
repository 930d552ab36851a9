"""The result of one evaluation, and its line in metrics.jsonl."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sluice.policy_version import PolicyVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """One evaluation; fractions in [0, 1]."""

    version: PolicyVersion
    avg_at_n: float
    pass_at_n: float
    greedy: float
    n: int
    prompts: int
    mean_response_tokens: float
    wall_s: float

    def to_line(self) -> dict[str, Any]:
        """The result's line in metrics.jsonl."""
        scores = {"eval/avg_at_n": self.avg_at_n, "eval/pass_at_n": self.pass_at_n, "eval/greedy": self.greedy}
        size = {"n": self.n, "prompts": self.prompts, "mean_response_tokens": self.mean_response_tokens}
        return {
            "version": self.version.number,
            "lineage": self.version.lineage,
            "wall_s": self.wall_s,
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
        )
