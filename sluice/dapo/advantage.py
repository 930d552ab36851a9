"""Group-relative advantages (DAPO, arXiv:2503.14476, eq. 9), and those of MaxRL, which are off by default.

Does not decide which groups are trained (dynamic_sampling) nor which tokens (the learner's mask): a truncated sample
that overlong filtering masks still counts in the mean and the deviation of its group.

Letters: G samples of one group.
"""

import numpy as np


def group_advantages(rewards: np.ndarray, *, norm_by_std: bool, eps: float = 1e-6) -> np.ndarray:
    """A_i = (R_i - mean(R)) / (std(R) + eps): [G] shaped rewards -> [G] float64, one value for all tokens of a sample.

    The deviation is the unbiased one (divisor G - 1), as in verl. Without `norm_by_std` rewards are centred only
    (Dr. GRPO, arXiv:2503.20783). The advantage of a group of one sample is the sample's reward, as in verl.

    Raises ValueError unless `rewards` is a non-empty vector of finite numbers.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.ndim != 1 or rewards.size == 0 or not np.isfinite(rewards).all():
        raise ValueError(f"group_advantages: rewards must be a non-empty vector of finite numbers, got {rewards!r}")
    if rewards.size == 1:
        return rewards.copy()
    centred = rewards - rewards.mean()
    if not norm_by_std:
        return centred
    return centred / (rewards.std(ddof=1) + eps)


def maxrl_advantages(acc: np.ndarray, *, eps: float = 1e-6) -> np.ndarray:
    """A_i = (r_i - mean(r)) / (mean(r) + eps): [G] accuracies in [0, 1] -> [G] float64; zeros where nothing is right.

    MaxRL (Tajwar et al. 2026, arXiv:2602.02710, algorithm 1, step 8; its 1 / G is the aggregation's business): centred by the
    group's success rate and divided by that rate instead of by the deviation. The gradient is then that of log P(right) up to
    order G, so hard prompts weigh more: a right sample among G weighs G - 1. Only for right or wrong: a mean near zero or below
    would turn the sign. The advantage of a group of one sample is 0. `eps` is that of the authors' code.

    Raises ValueError unless `acc` is a non-empty vector of numbers from 0 to 1.
    """
    acc = np.asarray(acc, dtype=np.float64)
    if acc.ndim != 1 or acc.size == 0 or not ((acc >= 0) & (acc <= 1)).all():
        raise ValueError(f"maxrl_advantages: acc must be a non-empty vector of numbers from 0 to 1, got {acc!r}")
    rate = acc.mean()
    return (acc - rate) / (rate + eps)
