"""The coordinator's metrics of one step, counted since the last commit and named as in the catalogue."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
import structlog

from services.coordinator.state.board import Board
from services.coordinator.state.group import Group, Phase, QueuedGroup, Sample
from sluice.dapo.dynamic_sampling import Verdict
from sluice.limits import MOST_PARTS

log = structlog.get_logger(__name__)

OTHER_PARTS = "other"

# Characters that Prometheus does not accept in a name.
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_]")


def queue_metrics(board: Board) -> dict[str, float]:
    """The catalogue's metrics of the groups' present state, which are read and not accumulated."""
    return {
        "queue/groups": float(len(board.queued)),
        "queue/in_flight_groups": float(board.count(Phase.IN_FLIGHT) + board.count(Phase.SCORED)),
        "sampling/gen_batches": board.verdicts / board.gen_batch_size,
    }


@dataclass(kw_only=True, slots=True)
class StepWindow:
    """Accumulates verdicts between two commits."""

    started_s: float
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    judged_tokens: int = 0
    dropped_tokens: int = 0
    predicted: list[float] = field(default_factory=list)
    """Of judged groups whose prompt a sampler chose: the chance of a signal that was expected."""
    chosen: int = 0
    """How many of these are prompts that a sampler took for their chance, and not in their turn."""
    tokens: int = 0
    lengths: list[int] = field(default_factory=list)
    accs: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    shaped: list[float] = field(default_factory=list)
    penalties: list[float] = field(default_factory=list)
    parts: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    known_parts: list[str] = field(default_factory=list)
    """The names of parts that the run has metrics of, kept by the run (Progress.part_names); a new name is added."""
    statuses: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    unique: list[float] = field(default_factory=list)
    episodes: list[Sample] = field(default_factory=list)
    """Of rows with an environment."""
    restarts: int = 0

    def add_scored(self, group: Group) -> None:
        """Counts a group that came back from its grader."""
        samples = group.samples.values()
        self.lengths += [sample.sampled_tokens for sample in samples]
        self.episodes += [sample for sample in samples if sample.turns]
        self.truncated += sum(sample.finish_reason == "length" for sample in samples)
        self.unique.append(len({sample.token_ids.tobytes() for sample in samples}) / len(samples))
        self.statuses.update(reward.status for reward in group.rewards)
        graded = [reward for reward in group.rewards if reward.graded]
        self.accs += [reward.acc for reward in graded]
        self.raw += [reward.raw_score for reward in graded]
        self.shaped += [reward.shaped_reward for reward in graded]
        self.penalties += [reward.overlong_penalty for reward in graded]
        for reward in graded:
            for name, score in reward.parts.items():
                self.parts[self._part(name)].append(score)

    def _part(self, name: str) -> str:
        """The name of the part's metric: its own for the run's first MOST_PARTS names, then OTHER_PARTS."""
        name, known = _NOT_IN_A_NAME.sub("_", name), self.known_parts
        if name in known[:MOST_PARTS]:
            return name
        if len(known) < MOST_PARTS:
            known.append(name)
            return name
        if len(known) == MOST_PARTS:
            known.append(OTHER_PARTS)  # so that the warning comes once a run
            log.warning(
                "too_many_part_names",
                name=name,
                kept=MOST_PARTS,
                consequence=f"further names of score components count under reward/part/{OTHER_PARTS}",
                fix="a component is a thing that is measured for every sample: take what varies out of its name",
            )
        return OTHER_PARTS

    def add_tokens(self, tokens: int) -> None:
        """Counts completion tokens that arrived from a rollout."""
        self.tokens += tokens

    def add_restart(self) -> None:
        """Counts an episode that began again."""
        self.restarts += 1

    def add_verdict(self, verdict: Verdict, group: Group | None = None) -> None:
        """Counts the verdict on a group."""
        self.verdicts[verdict] += 1
        if group is None:
            return
        self.judged_tokens += group.response_tokens
        if verdict is not Verdict.KEPT:
            self.dropped_tokens += group.response_tokens
        if group.admitted is not None and group.admitted.predicted >= 0:
            self.predicted.append(group.admitted.predicted)
            self.chosen += group.admitted.chosen

    def seconds_to_keep(self, groups: int, *, now_s: float) -> float | None:
        """Seconds until `groups` more groups are kept, at the pace since the last commit; None while no group was kept."""
        kept = self.verdicts[Verdict.KEPT]
        return groups * (now_s - self.started_s) / kept if kept else None

    def metrics(self, *, now_s: float, step: int, trained: list[QueuedGroup]) -> dict[str, float]:
        """The catalogue's coordinator metrics; metrics without data are left out."""
        wall_s = max(now_s - self.started_s, 1e-9)
        values: dict[str, float] = {"step/wall_s": wall_s, "rollout/generated_tokens_per_s": self.tokens / wall_s}
        judged, samples = self.verdicts.total(), len(self.lengths)
        if judged:
            values["sampling/acceptance"] = self.verdicts[Verdict.KEPT] / judged
            values["sampling/all_right_fraction"] = self.verdicts[Verdict.ALL_RIGHT] / judged
            values["sampling/all_wrong_fraction"] = self.verdicts[Verdict.ALL_WRONG] / judged
        if self.judged_tokens:
            values["sampling/dropped_tokens_fraction"] = self.dropped_tokens / self.judged_tokens
        if self.predicted:
            values["sampling/predicted_acceptance"] = float(np.mean(self.predicted))
            values["sampling/chosen_fraction"] = self.chosen / len(self.predicted)
        if samples:
            values["sampling/unique_fraction"] = float(np.mean(self.unique))
            values["response/length_mean_tokens"] = float(np.mean(self.lengths))
            values["response/length_max_tokens"] = float(max(self.lengths))
            values["response/truncated_fraction"] = self.truncated / samples
            for status in ("unparsed", "timeout", "error"):
                values[f"reward/{status}_fraction"] = self.statuses[status] / samples
        values |= episode_metrics(self.episodes, restarts=self.restarts)
        if self.accs:
            values["reward/generated_acc"] = float(np.mean(self.accs))
            values["reward/generated_raw_mean"] = float(np.mean(self.raw))
            values["reward/generated_mean"] = float(np.mean(self.shaped))
            values["reward/overlong_fraction"] = float(np.mean(np.asarray(self.penalties) < 0))
            values["reward/overlong_penalty_mean"] = float(np.mean(self.penalties))
        for name, scores in self.parts.items():
            values[f"reward/part/{name}"] = float(np.mean(scores))
        if trained:
            ages = [step - group.oldest_version for group in trained]
            values["staleness/age_mean_steps"] = float(np.mean(ages))
            values["staleness/age_max_steps"] = float(max(ages))
            values["reward/trained_mean"] = float(np.mean([group.shaped_mean for group in trained]))
        return values


def episode_metrics(episodes: list[Sample], *, restarts: int) -> dict[str, float]:
    """The catalogue's metrics of a step's episodes; empty for a step without episodes."""
    if not episodes and not restarts:
        return {}
    values = {"episode/restarts": float(restarts)}
    if episodes:
        turns = [turn for sample in episodes for turn in sample.turns]
        observed = [len(sample.token_ids) - sample.sampled_tokens for sample in episodes]
        values["episode/turns_mean"] = len(turns) / len(episodes)
        values["episode/tool_calls_mean"] = sum(len(turn.tools) for turn in turns) / len(episodes)
        values["episode/tool_use"] = sum(sample.calls_tools for sample in episodes) / len(episodes)
        values["episode/observed_mean_tokens"] = float(np.mean(observed))
        values["episode/environment_s"] = float(np.mean([turn.answered_s for turn in turns]))
    return values
