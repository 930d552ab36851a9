"""Dynamic sampling (DAPO, arXiv:2503.14476, section 3.2, eq. 11): which groups carry a learning signal.

A group whose samples all score the same has zero advantage everywhere (eq. 9) and only dilutes the batch. Such a group is
dropped whole and another prompt takes its place; a group with signal is kept whole. Also decides when a run has starved
because too few groups have signal. Schedules nothing: the coordinator replaces dropped groups.

Letters: G samples of one group.
"""

import enum
from typing import Literal

import numpy as np

SIGNAL_RANGE = 1e-6
"""A metric whose range in a group is at most this counts as constant. Chosen: above float noise, below any real step."""

MetricName = Literal["acc", "score", "seq_reward", "seq_final_reward"]
"""The metrics that the filter can look at, by verl's names (`algorithm.filter_groups.metric`)."""


class Verdict(enum.Enum):
    """What becomes of a scored group. Groups with a verdict other than KEPT are dropped; the ledger counts them by verdict."""

    KEPT = "kept"
    """The metric varies: the group goes to the queue."""
    ALL_RIGHT = "all_right"
    """No signal because every sample is right."""
    ALL_WRONG = "all_wrong"
    """No signal because every sample is wrong."""
    OTHER = "other"
    """No signal for another reason, such as equal scores of samples that are right and wrong."""


def judge(*, metric: np.ndarray, acc: np.ndarray) -> Verdict:
    """Keeps a group iff max(metric) - min(metric) > SIGNAL_RANGE; for 0/1 accuracies this is eq. 11, 0 < #right < G.

    metric, acc: [G] float64, the metric chosen by `group_metric` and the accuracies, which decide the reason of a drop.
    Raises ValueError unless both are finite vectors of one length >= 1: a NaN must never pass for "no signal".
    """
    metric, acc = np.asarray(metric, dtype=np.float64), np.asarray(acc, dtype=np.float64)
    if metric.ndim != 1 or metric.size == 0 or metric.shape != acc.shape:
        raise ValueError(
            f"judge: metric and acc must be vectors of one length >= 1, got {metric.shape} and {acc.shape}"
        )
    if not (np.isfinite(metric).all() and np.isfinite(acc).all()):
        raise ValueError(f"judge: metric and acc must be finite, got {metric!r} and {acc!r}")
    if np.ptp(metric) > SIGNAL_RANGE:
        return Verdict.KEPT
    if (acc >= 1 - SIGNAL_RANGE).all():
        return Verdict.ALL_RIGHT
    if (acc <= SIGNAL_RANGE).all():
        return Verdict.ALL_WRONG
    return Verdict.OTHER


def judge_scores(
    metric: MetricName | None, *, raw_scores: np.ndarray, acc: np.ndarray, shaped_rewards: np.ndarray
) -> Verdict:
    """The verdict on a group by the named metric; each array is [G] float64. None: the filter is off, every group is kept.

    Raises ValueError as `judge` and `group_metric` do.
    """
    if metric is None:
        return Verdict.KEPT
    values = group_metric(metric, raw_scores=raw_scores, acc=acc, shaped_rewards=shaped_rewards)
    return judge(metric=values, acc=acc)


def group_metric(
    name: MetricName, *, raw_scores: np.ndarray, acc: np.ndarray, shaped_rewards: np.ndarray
) -> np.ndarray:
    """The [G] array that `name` stands for; each argument is [G] float64.

    `acc` is the default and the paper's choice. The two `seq_` metrics include the overlong punishment, so under a `seq_`
    metric a group of equally right answers of different lengths survives. Both `seq_` metrics are the same array here: in
    verl the two differ by a KL term in the reward, which Sluice refuses. Raises ValueError for an unknown name.
    """
    if name == "acc":
        return acc
    if name == "score":
        return raw_scores
    if name in ("seq_reward", "seq_final_reward"):
        return shaped_rewards
    raise ValueError(f"filter_groups.metric: must be one of acc, score, seq_reward, seq_final_reward, got {name!r}")


def gen_batches(*, verdicts_since_assignment: int, gen_batch_size: int) -> float:
    """Generation batches spent on the batch being filled: verdicts since the last assignment / `gen_batch_size`."""
    return verdicts_since_assignment / gen_batch_size


def starved(*, verdicts_since_assignment: int, gen_batch_size: int, max_num_gen_batches: int) -> bool:
    """Whether the run must stop: `max_num_gen_batches` generation batches went by without a full batch.

    Ask only while the batch is not full. `max_num_gen_batches` <= 0 means never, as in verl.
    """
    spent = gen_batches(verdicts_since_assignment=verdicts_since_assignment, gen_batch_size=gen_batch_size)
    return 0 < max_num_gen_batches <= spent
