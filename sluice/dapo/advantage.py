"""Group-relative advantages (DAPO, arXiv:2503.14476, eq. 9).

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
