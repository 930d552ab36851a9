"""The chance that a group will have a signal, for choosing prompts before anything is generated.

Dynamic sampling (dynamic_sampling.py; DAPO, arXiv:2503.14476, eq. 11) keeps a group of n samples iff some are right and some
are wrong. With independent samples of a prompt whose pass rate is p this happens with probability 1 - p^n - (1 - p)^n.

Letters: N prompts.
"""

import math

import numpy as np


def signal_chance(pass_rates: np.ndarray, n: int) -> np.ndarray:
    """[N] float64: the chance that n samples differ, for [N] pass rates in [0, 1]. Raises ValueError for n < 1."""
    if n < 1:
        raise ValueError(f"signal_chance: n must be >= 1, got {n}")
    rates = np.asarray(pass_rates, dtype=np.float64)
    return 1.0 - rates**n - (1.0 - rates) ** n


def expected_signal_chance(right: float, wrong: float, n: int) -> float:
    """The mean of `signal_chance` over a pass rate ~ Beta(right, wrong): 1 - B(a+n, b)/B(a, b) - B(a, b+n)/B(a, b).

    The two quotients are beta-binomial probabilities (all n right, none right). Raises ValueError unless both are > 0.
    """
    if not (right > 0 and wrong > 0 and n >= 1):
        raise ValueError(f"expected_signal_chance: needs right > 0, wrong > 0, n >= 1, got {right}, {wrong}, {n}")
    total = math.lgamma(right + wrong) - math.lgamma(right + wrong + n)
    all_right = math.exp(total + math.lgamma(right + n) - math.lgamma(right))
    all_wrong = math.exp(total + math.lgamma(wrong + n) - math.lgamma(wrong))
    return max(0.0, 1.0 - all_right - all_wrong)
