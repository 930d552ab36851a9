"""How far the learner's policy is from the policy that sampled, split by age. Diagnostics: nothing here touches the loss.

Age 0 shows kernels and precision alone, larger ages add staleness. Estimators of KL(rollout || learner) are those of
Schulman, "Approximating KL divergence" (2020); the tokens were sampled from the behaviour policy.

Letters: T trained tokens of a step, all ranks.
"""

import numpy as np

from sluice.dapo.step_scale import effective_share

MAX_LOG_RATIO = 20.0
"""Clamp in nats before exp, as in the loss, so that one broken token cannot turn a mean or a quantile into inf."""


def mismatch(*, rollout_logprobs: np.ndarray, learner_logprobs: np.ndarray, ages: np.ndarray) -> dict[str, float]:
    """The `mismatch/*` metrics of the catalogue, from logprobs taken before the first update of the step.

    rollout_logprobs, learner_logprobs: [T] nats; ages: [T] int, steps. With d = learner - rollout and r = e^d:

    - `abs_diff_mean`, `abs_diff_max`   of |d|
    - `k1_nats`                         mean(-d), unbiased
    - `k3_nats`                         mean(r - 1 - d), unbiased too, >= 0 and of low variance
    - `k1_age*_nats`, `k3_age*_nats`    the same over tokens of age 0, 1, and 2 or more (`2plus`); absent without such tokens
    - `ratio_p50`, `ratio_p99`          quantiles of r
    - `ess`                             (sum r)^2 / (T sum r^2) in (0, 1]: share of the tokens an importance-weighted
                                        estimate really uses (Kish); free of the clamp, since a factor common to
                                        all r cancels

    Raises ValueError unless the three are vectors of one length >= 1, or if an age is negative.
    """
    rollout, learner = np.asarray(rollout_logprobs, np.float64), np.asarray(learner_logprobs, np.float64)
    ages = np.asarray(ages)
    if rollout.ndim != 1 or rollout.size == 0 or not rollout.shape == learner.shape == ages.shape:
        shapes = [rollout.shape, learner.shape, ages.shape]
        raise ValueError(f"mismatch: rollout, learner and ages must be vectors of one length >= 1, got {shapes}")
    if (ages < 0).any():
        raise ValueError(f"mismatch: ages must be >= 0, got {ages.min()}")
    diff = learner - rollout
    clamped = diff.clip(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = np.exp(clamped)
    k3 = np.expm1(clamped) - clamped
    p50, p99 = np.quantile(ratio, [0.5, 0.99])
    return {
        "mismatch/abs_diff_mean": float(np.abs(diff).mean()),
        "mismatch/abs_diff_max": float(np.abs(diff).max()),
        "mismatch/k1_nats": float(-diff.mean()),
        "mismatch/k3_nats": float(k3.mean()),
        **_by_age("k1", -diff, ages),
        **_by_age("k3", k3, ages),
        "mismatch/ratio_p50": float(p50),
        "mismatch/ratio_p99": float(p99),
        "mismatch/ess": effective_share(diff),
    }


def _by_age(name: str, values: np.ndarray, ages: np.ndarray) -> dict[str, float]:
    """Means of values [T] over the ages 0, 1, and 2 or more; an age without tokens has no entry."""
    parts = {"age0": values[ages == 0], "age1": values[ages == 1], "age2plus": values[ages >= 2]}
    return {f"mismatch/{name}_{age}_nats": float(part.mean()) for age, part in parts.items() if part.size}
