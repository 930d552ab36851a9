"""The result of one evaluation, and its line in metrics.jsonl."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sluice.policy_version import PolicyVersion

Interval = tuple[float, float]
"""The ends of a 95 % confidence interval."""

_MEASURES = {
    "avg_at_n": "avg_interval",
    "pass_at_n": "pass_interval",
    "maj_at_n": "maj_interval",
    "greedy": "",
    "tool_use": "",
}
"""Measure -> its interval."""


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
    set: str = ""
    """Empty for the default set."""
    maj_at_n: float | None = None
    """None where the graders name no answers."""
    avg_interval: Interval | None = None
    """None with fewer than two prompts."""
    pass_interval: Interval | None = None
    maj_interval: Interval | None = None
    temperature: float = 0.0
    """0 where it was not recorded."""
    top_p: float = 0.0
    """0 where it was not recorded."""
    tool_use: float | None = None
    """Share of the episodes in which a tool was called, greedy ones apart; None where the samples are no episodes."""

    def __str__(self) -> str:
        """One line for people."""
        of = f"{self.set}, " if self.set else ""
        within = f" [{self.avg_interval[0]:.3f}, {self.avg_interval[1]:.3f}]" if self.avg_interval else ""
        majority = "" if self.maj_at_n is None else f", maj@{self.n} {self.maj_at_n:.3f}"
        greedy = "" if self.greedy is None else f", greedy {self.greedy:.3f}"
        tools = "" if self.tool_use is None else f", tool use {self.tool_use:.3f}"
        ungraded = f", {self.ungraded} samples not graded" if self.ungraded else ""
        return f"{of}version {self.version.number}: avg@{self.n} {self.avg_at_n:.3f}{within}{majority}{greedy}{tools}{ungraded}"

    @property
    def measures(self) -> dict[str, float]:
        """Accuracies and ends of intervals by catalogue name without `eval/`, those that there are."""
        found: dict[str, float] = {}
        for name, interval in _MEASURES.items():
            if (value := getattr(self, name)) is not None:
                found[name] = value
            if interval and (ends := getattr(self, interval)) is not None:
                found[f"{name}_low"], found[f"{name}_high"] = ends
        return found

    def metrics(self) -> dict[str, float]:
        """The measures by catalogue name: `eval/NAME`, of a named set `eval/set/SET/NAME`."""
        prefix = f"eval/set/{self.set}/" if self.set else "eval/"
        return {f"{prefix}{name}": value for name, value in self.measures.items()}

    def to_line(self) -> dict[str, Any]:
        """The result's line in metrics.jsonl."""
        scores = {f"eval/{name}": None for name in ("avg_at_n", "pass_at_n", "greedy")}
        size = {"n": self.n, "prompts": self.prompts, "ungraded": self.ungraded}
        return {
            "version": self.version.number,
            "lineage": self.version.lineage,
            "wall_s": self.wall_s,
            "mean_response_tokens": self.mean_response_tokens,
            **size,
            **scores,
            **{f"eval/{name}": value for name, value in self.measures.items()},
            "temperature": self.temperature,
            "top_p": self.top_p,
            **({"set": self.set} if self.set else {}),
        }

    @staticmethod
    def from_line(line: Mapping[str, Any]) -> "EvaluationResult":
        """The inverse of `to_line`; also of a line that an older version of Sluice wrote."""
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
            set=line.get("set", ""),
            maj_at_n=line.get("eval/maj_at_n"),
            temperature=line.get("temperature", 0.0),
            top_p=line.get("top_p", 0.0),
            tool_use=line.get("eval/tool_use"),
            **{
                field: (line[f"eval/{name}_low"], line[f"eval/{name}_high"])
                for name, field in _MEASURES.items()
                if field and f"eval/{name}_low" in line
            },
        )

    @staticmethod
    def from_dict(entry: Mapping[str, Any]) -> "EvaluationResult":
        """The inverse of dataclasses.asdict, after JSON."""
        intervals = {name: tuple(entry[name]) for name in filter(None, _MEASURES.values()) if entry.get(name)}
        fields: dict[str, Any] = {**entry, **intervals, "version": PolicyVersion(**entry["version"])}
        return EvaluationResult(**fields)
