"""The chance that a group has a signal, where a prompt's pass rate is known up to a Beta distribution.

Dynamic sampling (dynamic_sampling.py; DAPO, arXiv:2503.14476, eq. 11) keeps a group of n samples iff some are right and some
are wrong. With independent samples of a prompt whose pass rate is p this happens with probability 1 - p^n - (1 - p)^n.
"""

import math


def expected_signal_chance(right: float, wrong: float, n: int) -> float:
    """The mean chance of a signal over p ~ Beta(right, wrong): 1 - B(right + n, wrong) / B - B(right, wrong + n) / B.

    The two quotients are beta-binomial probabilities (all n right, none right). Raises ValueError unless both are > 0.
    """
    if not (right > 0 and wrong > 0 and n >= 1):
        raise ValueError(f"expected_signal_chance: needs right > 0, wrong > 0, n >= 1, got {right}, {wrong}, {n}")
    total = math.lgamma(right + wrong) - math.lgamma(right + wrong + n)
    all_right = math.exp(total + math.lgamma(right + n) - math.lgamma(right))
    all_wrong = math.exp(total + math.lgamma(wrong + n) - math.lgamma(wrong))
    return max(0.0, 1.0 - all_right - all_wrong)
